//! The grammar of `migrate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Suspend the guest before its memory is sent, not after most of it has been sent.
    #[arg(long, conflicts_with = "resolve")]
    pub(crate) no_live: bool,
    /// Suspend the guest only if the rest of its memory can be sent within this many milliseconds; otherwise it stays here.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000), conflicts_with_all = ["no_live", "resolve"])]
    pub(crate) max_downtime: Option<u64>,
    /// Send at most this many megabits a second.
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u64).range(1..=10_000_000), conflicts_with = "resolve")]
    pub(crate) bandwidth: Option<u64>,
    /// Compress the memory.
    #[arg(long, value_enum, default_value_t = Compress::None, conflicts_with = "resolve")]
    pub(crate) compress: Compress,
    /// Give the guest this configuration at HOST, which may differ in what is behind its devices: paths of disks, bridges.
    #[arg(short = 'C', long, value_name = "FILE", conflicts_with = "resolve")]
    pub(crate) dest_config: Option<PathBuf>,
    /// Run this command instead of ssh, followed by HOST and the command to run there. If empty, HOST is itself the command.
    #[arg(short = 's', value_name = "SSH_COMMAND", requires = "host", conflicts_with = "connect")]
    pub(crate) ssh: Option<String>,
    /// Run this with sh instead of ssh. Its input and output have to reach `outrigger migrate-receive` at HOST, whose
    /// name is then only shown.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) connect: Option<String>,
    /// Print one JSON object per step or round.
    #[arg(long)]
    pub(crate) json: bool,
    /// Settle an earlier migration whose end is not known: ask HOST; without HOST, decide here if this is the receiver.
    #[arg(long)]
    pub(crate) resolve: bool,
    /// The line that `--resolve` has printed at the receiver.
    #[arg(long, value_name = "LINE", requires = "resolve", conflicts_with_all = ["host", "connect"])]
    pub(crate) answer: Option<String>,
    /// The receiver's host is off: destroy the suspended guest and boot it anew here.
    #[arg(long, requires = "resolve", conflicts_with_all = ["assume_sender_dead", "answer"])]
    pub(crate) assume_receiver_dead: bool,
    /// The sender's host is off: the guest may start here.
    #[arg(long, requires = "resolve", conflicts_with = "answer")]
    pub(crate) assume_sender_dead: bool,
    /// Do not ask whether the other host is off.
    #[arg(long, requires = "resolve")]
    pub(crate) yes: bool,
    /// What only xl has.
    #[command(flatten)]
    pub(crate) xl: XlOptions,
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The host to send it to, as ssh knows it.
    #[arg(value_name = "HOST", required_unless_present = "resolve", value_parser = host)]
    pub(crate) host: Option<String>,
}

/// How the memory is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// With zstd.
    Zstd,
    /// No compression.
    None,
}

/// Options of `xl migrate` that are accepted without effect, or refused with a reason.
#[derive(Debug, Args)]
pub(crate) struct XlOptions {
    /// A migration is live by default.
    #[arg(long, hide = true, conflicts_with = "no_live")]
    live: bool,
    #[arg(short = 'e', hide = true)]
    unwatched: bool,
    #[arg(long, hide = true)]
    debug: bool,
    #[arg(short = 'p', hide = true)]
    paused: bool,
    #[arg(short = 'D', hide = true)]
    domid: bool,
}

impl XlOptions {
    /// Why one of them is refused, if one is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        [
            (
                self.unwatched,
                "-e is not supported: outriggerd watches the guest at the other host, and no process waits for its end",
            ),
            (self.debug, "--debug is not supported: --json prints all figures, and outriggerd has a log"),
            (self.paused, "-p is not supported: the guest always runs at the other host; pause it there"),
            (
                self.domid,
                "-D is not supported: a host chooses the domids of its guests; name them by name or UUID",
            ),
        ]
        .into_iter()
        .find_map(|(is_given, reason)| is_given.then_some(reason))
    }
}

/// A host's name, which ssh does not take for an option.
fn host(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('-') {
        return Err("expected the name of a host".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(words: &[&str]) -> Result<Migrate, clap::Error> {
        let words = ["outrigger", "migrate"].iter().chain(words);
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Migrate(args) => args,
            other => panic!("not migrate: {other:?}"),
        })
    }

    #[test]
    fn migrate_takes_a_guest_and_a_host() {
        let args = parse(&["hello", "beta"]).unwrap();
        assert_eq!((args.guest.as_str(), args.host.as_deref()), ("hello", Some("beta")));
        assert!(!args.no_live && !args.json && !args.resolve && args.compress == Compress::None);
        let words =
            ["--max-downtime", "50", "--bandwidth", "1000", "--compress", "zstd", "hello", "root@beta"];
        let args = parse(&words).unwrap();
        assert_eq!((args.max_downtime, args.bandwidth), (Some(50), Some(1000)));
        assert_eq!(args.compress, Compress::Zstd);
        for wrong in [
            &["hello"][..],
            &["hello", ""],
            &["hello", "--", "-oProxyCommand=x"],
            &["--max-downtime", "0", "hello", "beta"],
            &["--no-live", "--max-downtime", "5", "hello", "beta"],
            &["-s", "ssh", "--connect", "cat", "hello", "beta"],
            &["--answer", "x", "hello", "beta"],
            &["--yes", "hello", "beta"],
            &["--assume-sender-dead", "hello", "beta"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn resolve_needs_no_host_and_has_one_way() {
        assert_eq!(parse(&["--resolve", "hello"]).unwrap().host, None);
        assert!(parse(&["--resolve", "hello", "beta"]).unwrap().host.is_some());
        assert!(parse(&["--resolve", "--connect", "cat", "hello"]).unwrap().connect.is_some());
        assert!(parse(&["--resolve", "--answer", "x y z", "hello"]).unwrap().answer.is_some());
        assert!(parse(&["--resolve", "--assume-receiver-dead", "--yes", "hello"]).unwrap().yes);
        for wrong in [
            &["--resolve"][..],
            &["--resolve", "--answer", "x", "hello", "beta"],
            &["--resolve", "--answer", "x", "--assume-sender-dead", "hello"],
            &["--resolve", "--assume-receiver-dead", "--assume-sender-dead", "hello"],
            &["--resolve", "--no-live", "hello"],
            &["--resolve", "-s", "ssh", "hello"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn options_of_xl_have_no_effect_or_are_refused_with_a_reason() {
        let refusal = |words: &[&str]| parse(&[words, &["hello", "beta"]].concat()).unwrap().xl.refusal();
        assert_eq!(refusal(&[]), None);
        assert_eq!(refusal(&["--live"]), None);
        for option in ["-e", "--debug", "-p", "-D"] {
            assert!(refusal(&[option]).unwrap().starts_with(option), "{option}");
        }
    }
}
