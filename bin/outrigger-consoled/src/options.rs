use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use console::logfile::LogStyle;
use console::output::Overflow;
use console::server::{LogNames, Settings};

/// The default directory of the logs.
const LOG_DIR: &str = "/var/log/outrigger/console";
/// The directory of xenconsoled's logs.
const XENCONSOLED_LOG_DIR: &str = "/var/log/xen/console";

/// Serves the PV consoles of all domains: logs, sockets and pseudo-terminals.
///
/// Replaces xenconsoled and accepts its options. SIGHUP reopens the logs. SIGTERM or SIGKILL may end it at any time;
/// the next process continues all consoles.
///
/// With --log or --log-dir, logs have the names and the directory of xenconsoled's: guest-NAME.log and hypervisor.log
/// in /var/log/xen/console. Otherwise each console's log is NAME.NUMBER.log in /var/log/outrigger/console.
#[derive(Debug, Parser)]
#[command(name = "outrigger-consoled", version, max_term_width = 100)]
pub(crate) struct Options {
    /// Stay in the foreground and log to standard error
    #[arg(short = 'i', long = "foreground", visible_alias = "interactive")]
    pub(crate) foreground: bool,

    /// Which logs to write: of guests' consoles (guest), of Xen's own console (hv), or of both (all) [default: guest]
    #[arg(short = 'l', long, value_name = "WHICH", hide_possible_values = false)]
    pub(crate) log: Option<Which>,

    /// Directory of the logs [default: /var/log/outrigger/console, or with --log /var/log/xen/console]
    #[arg(short = 'r', long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,

    /// How console logs are named: NAME.NUMBER.log, or guest-NAME.log as by xenconsoled
    #[arg(long, value_name = "STYLE")]
    pub(crate) log_names: Option<Names>,

    /// Size at which a log is renamed to end with .1 and a new one begun: bytes, or a number with K, M or G; 0: no logs
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = parse_size)]
    pub(crate) log_limit: u64,

    /// Which logs begin each line with the time
    #[arg(short = 't', long, value_name = "WHICH", default_value = "none", num_args = 0..=1, default_missing_value = "guest")]
    pub(crate) timestamp: Which,

    /// Replace escape characters in the logs with dots
    #[arg(short = 'e', long)]
    pub(crate) replace_escape: bool,

    /// What to do with bytes that nothing reads from a pseudo-terminal: discard the oldest, or keep them and let the
    /// domain wait
    #[arg(short = 'o', long, value_name = "POLICY", default_value = "discard")]
    pub(crate) overflow_data: Policy,

    /// File to write the process ID to as soon as all consoles are served
    #[arg(short = 'p', long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Directory of the lock file; the consoles' sockets are in its subdirectory console
    #[arg(long, value_name = "DIR", default_value = "/run/outrigger")]
    pub(crate) run_dir: PathBuf,

    /// Descriptor to write a line to as soon as all consoles are served
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<u32>,

    /// File for the daemon's own messages when it runs in the background
    #[arg(long, value_name = "FILE", default_value = "/var/log/outrigger/consoled.log")]
    pub(crate) own_log: PathBuf,

    /// Log more; repeat for even more
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Which logs, as xenconsoled's options name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// No log
    None,
    /// The guests'
    Guest,
    /// The hypervisor's
    Hv,
    /// All
    All,
}

impl Which {
    const fn guest(self) -> bool {
        matches!(self, Self::Guest | Self::All)
    }

    const fn hypervisor(self) -> bool {
        matches!(self, Self::Hv | Self::All)
    }
}

/// How console logs are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Names {
    /// NAME.NUMBER.log
    Numbered,
    /// guest-NAME.log
    Xenconsoled,
}

/// What to do with bytes that nothing reads, as xenconsoled's options name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Discard the oldest
    Discard,
    /// Keep them, and let the domain wait
    Keep,
}

impl Options {
    /// Whether logs have the names and the directory of xenconsoled's.
    const fn as_xenconsoled(&self) -> bool {
        self.log.is_some() || self.log_dir.is_some()
    }

    /// The server's settings.
    pub(crate) fn settings(&self) -> Settings {
        let usual_dir = if self.as_xenconsoled() { XENCONSOLED_LOG_DIR } else { LOG_DIR };
        let log_dir = self.log_dir.clone().unwrap_or_else(|| usual_dir.into());
        let which = self.log.unwrap_or(Which::Guest);
        let mut settings = Settings::new(log_dir, self.run_dir.join("console"));
        settings.log_guests = which.guest();
        settings.log_style = self.log_style(self.timestamp.guest());
        settings.hypervisor_log = which.hypervisor().then(|| self.log_style(self.timestamp.hypervisor()));
        settings.log_names = match self.log_names {
            Some(Names::Numbered) => LogNames::Numbered,
            Some(Names::Xenconsoled) => LogNames::Xenconsoled,
            None if self.as_xenconsoled() => LogNames::Xenconsoled,
            None => LogNames::Numbered,
        };
        settings.overflow = match self.overflow_data {
            Policy::Discard => Overflow::Drop,
            Policy::Keep => Overflow::Block,
        };
        settings
    }

    fn log_style(&self, timestamps: bool) -> LogStyle {
        LogStyle {
            limit: self.log_limit,
            timestamps,
            replace_escape: self.replace_escape,
            ..LogStyle::default()
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match size {
        Some(size) if size == 0 || size >= 4096 => Ok(size),
        Some(_) => Err("a log must have at least 4096 bytes; use 0 for no logs".to_owned()),
        None => Err("expected a size in bytes, or a number with K, M or G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(arguments: &[&str]) -> Settings {
        Options::parse_from([&["outrigger-consoled"], arguments].concat()).settings()
    }

    #[test]
    fn the_options_are_well_formed() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn xenconsoled_s_command_lines_mean_the_same() {
        let all =
            settings(&["--log=all", "-i", "-t", "hv", "--overflow-data=keep", "--replace-escape", "-v"]);
        assert_eq!(all.log_dir, Path::new("/var/log/xen/console"));
        assert_eq!((all.log_names, all.log_guests), (LogNames::Xenconsoled, true));
        assert!(all.hypervisor_log.is_some_and(|style| style.timestamps && style.replace_escape));
        assert!(!all.log_style.timestamps && all.overflow == Overflow::Block);
        let none = settings(&["--log=none", "--pid-file=/run/xenconsoled.pid"]);
        assert!(!none.log_guests && none.hypervisor_log.is_none());
        let folder = settings(&["--log", "hv", "--log-dir", "/x"]);
        assert!(!folder.log_guests && folder.log_dir == Path::new("/x"));
    }

    #[test]
    fn the_man_page_has_every_option() {
        let page = include_str!("../../../dist/man/outrigger-consoled.8").replace("\\-", "-");
        for argument in <Options as clap::CommandFactory>::command().get_arguments() {
            let long = format!("--{}", argument.get_long().expect("every option has a long name"));
            assert!(page.contains(&long), "the man page does not tell of {long}");
        }
    }

    #[test]
    fn our_own_logs_are_where_they_were() {
        let usual = settings(&[]);
        assert_eq!(usual.log_dir, Path::new(LOG_DIR));
        assert_eq!((usual.log_names, usual.log_guests), (LogNames::Numbered, true));
        assert!(usual.hypervisor_log.is_none());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4M"), Ok(4 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "K", "-1", "17", "99999999999G", "4MB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
