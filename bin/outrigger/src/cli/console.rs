//! The grammar of `console` and `dm-log`.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// Arguments of `console`.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// Which console.
    #[command(flatten)]
    pub(crate) which: WhichConsole,
    /// Print the stored output (the last 64 KiB) and exit.
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Print only stored output from this period: seconds, or a number with s, m, h or d.
    #[arg(long, value_name = "AGO", value_parser = parse_ago)]
    pub(crate) since: Option<Duration>,
    /// The key that leaves: one character, or ^ and another for Ctrl with it (default: ^]).
    #[arg(short, long, value_name = "KEY", value_parser = escape)]
    pub(crate) escape: Option<u8>,
}

/// The byte of a key, as xenconsole reads it.
fn escape(text: &str) -> Result<u8, String> {
    match *text.as_bytes() {
        [b'^', key @ b'@'..=b'_' | key @ b'a'..=b'z'] => Ok(key & 0x1f),
        [key] if key.is_ascii_graphic() && key != b'^' => Ok(key),
        _ => Err("expected one character, or ^ and a letter or one of @ [ \\ ] ^ _".to_owned()),
    }
}

fn parse_ago(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 60 * 60),
        Some((at, 'd')) => (&text[..at], 24 * 60 * 60),
        _ => (text, 1),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let seconds = seconds.filter(|seconds| *seconds <= 366 * 24 * 60 * 60);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "expected seconds, or a number with s, m, h or d; at most one year".to_owned())
}

/// The options that choose one of a guest's consoles.
const CHOICES: [&str; 5] = ["serial", "pv", "log", "stub", "channel"];

/// Which of a guest's consoles.
#[derive(Debug, Default, Args)]
pub(crate) struct WhichConsole {
    /// The kind of the console; serial by default.
    #[arg(short = 't', long = "type", value_enum, value_name = "TYPE", conflicts_with_all = CHOICES)]
    kind: Option<ConsoleKind>,
    /// The number of the console of that kind (default: 0). PV consoles above 0 are the guest's channels.
    #[arg(short = 'n', long = "num", value_name = "N", value_parser = clap::value_parser!(u8).range(0..=31), conflicts_with_all = CHOICES)]
    number: Option<u8>,
    /// The guest's serial port with this number (default: 0).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=6), conflicts_with_all = ["pv", "log", "stub", "channel"])]
    serial: Option<u8>,
    /// The guest's own PV console.
    #[arg(long, conflicts_with_all = ["log", "stub", "channel"])]
    pv: bool,
    /// The log of the stubdomain.
    #[arg(long, conflicts_with_all = ["stub", "channel"])]
    log: bool,
    /// The stubdomain's console with this number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9), conflicts_with = "channel")]
    stub: Option<u8>,
    /// The guest's channel with this name.
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
}

/// The kinds of consoles that xl has too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsoleKind {
    /// The guest's own PV console, or one of its channels.
    Pv,
    /// One of the guest's serial ports.
    Serial,
    /// What only guests on Arm have.
    #[value(hide = true)]
    Vuart,
}

/// The console that the options choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleChoice {
    /// A serial port of the guest.
    Serial(u8),
    /// A PV console of the guest: 0, or one of its channels.
    Pv(u8),
    /// The stubdomain's log.
    Log,
    /// A console of the stubdomain.
    Stub(u8),
    /// A channel by its name.
    Channel(String),
}

impl WhichConsole {
    /// Why a kind of xl's is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        const VUART: &str = "-t vuart is not supported: only guests on Arm have a vuart";
        (self.kind == Some(ConsoleKind::Vuart)).then_some(VUART)
    }

    /// The console that was chosen.
    pub(crate) fn choice(&self) -> ConsoleChoice {
        match (self.channel.as_ref(), self.stub) {
            (Some(name), _) => return ConsoleChoice::Channel(name.clone()),
            (None, Some(number)) => return ConsoleChoice::Stub(number),
            (None, None) => {}
        }
        let number = self.number.unwrap_or(0);
        match self.kind {
            _ if self.log => ConsoleChoice::Log,
            _ if self.pv => ConsoleChoice::Pv(0),
            Some(ConsoleKind::Pv) => ConsoleChoice::Pv(number),
            Some(ConsoleKind::Serial | ConsoleKind::Vuart) | None => {
                ConsoleChoice::Serial(self.serial.unwrap_or(number))
            }
        }
    }
}

/// Arguments of `dm-log`.
#[derive(Debug, Args)]
pub(crate) struct DmLog {
    /// Keep printing as the log grows.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Name of the guest; the log remains after the guest has ended.
    pub(crate) guest: String,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn choice(words: &str) -> Option<ConsoleChoice> {
        let words = format!("outrigger console {words} g");
        match Cli::try_parse_from(words.split_whitespace()).ok()?.command {
            Command::Console(console) => Some(console.which.choice()),
            other => panic!("not console: {other:?}"),
        }
    }

    #[test]
    fn type_and_number_choose_as_in_xl() {
        for (words, expected) in [
            ("", ConsoleChoice::Serial(0)),
            ("-t serial", ConsoleChoice::Serial(0)),
            ("-t serial -n 1", ConsoleChoice::Serial(1)),
            ("-n 0", ConsoleChoice::Serial(0)),
            ("-t pv", ConsoleChoice::Pv(0)),
            ("-n 2 -t pv", ConsoleChoice::Pv(2)),
            ("--serial 1", ConsoleChoice::Serial(1)),
            ("--pv", ConsoleChoice::Pv(0)),
            ("--log", ConsoleChoice::Log),
            ("--stub 3", ConsoleChoice::Stub(3)),
            ("--channel x", ConsoleChoice::Channel("x".to_owned())),
        ] {
            assert_eq!(choice(words), Some(expected), "{words}");
        }
    }

    #[test]
    fn escape_is_a_key_as_xenconsole_reads_it() {
        for (text, byte) in
            [("^]", 0x1d), ("^a", 1), ("^A", 1), ("^@", 0), ("^^", 0x1e), ("x", b'x'), ("]", b']')]
        {
            assert_eq!(escape(text), Ok(byte), "{text}");
        }
        for wrong in ["", "^", "^1", "xy", "é", " ", "^]]"] {
            assert!(escape(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_one_console_can_be_named() {
        for wrong in
            ["--pv --log", "-t pv --serial 0", "-n 1 --stub 1", "--serial 7", "-t stub", "--log --channel x"]
        {
            assert_eq!(choice(wrong), None, "{wrong}");
        }
    }
}
