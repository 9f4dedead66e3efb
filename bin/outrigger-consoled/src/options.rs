use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use console::logfile::LogStyle;
use console::output::Overflow;
use console::server::{LogNames, Settings};

/// Where our logs are.
const LOG_DIR: &str = "/var/log/outrigger/console";
/// Where xenconsoled's are.
const XENCONSOLED_LOG_DIR: &str = "/var/log/xen/console";

/// Serves the PV consoles of all domains: logs, sockets and pseudo-terminals.
///
/// Runs instead of xenconsoled, and takes its options. SIGHUP opens the logs again; SIGTERM ends it, and so may
/// SIGKILL at any time: the next one takes all consoles up where they were.
///
/// With --log or --log-dir, logs are where and called as xenconsoled's: guest-NAME.log and hypervisor.log in
/// /var/log/xen/console. Without both they are NAME.NUMBER.log in /var/log/outrigger/console, for every console.
#[derive(Debug, Parser)]
#[command(name = "outrigger-consoled", version, max_term_width = 100)]
pub(crate) struct Options {
    /// Stay in the foreground and log to standard error
    #[arg(short = 'i', long = "foreground", visible_alias = "interactive")]
    pub(crate) foreground: bool,

    /// Which logs to write: those of guests' consoles, of Xen's own (hv), or both [default: guest]
    #[arg(short = 'l', long, value_name = "WHICH", hide_possible_values = false)]
    pub(crate) log: Option<Which>,

    /// Folder of the logs [default: /var/log/outrigger/console, or with --log /var/log/xen/console]
    #[arg(short = 'r', long, value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,

    /// What consoles' logs are called: NAME.NUMBER.log, or as xenconsoled calls them guest-NAME.log
    #[arg(long, value_name = "STYLE")]
    pub(crate) log_names: Option<Names>,

    /// Size at which a log is renamed to end with .1 and begun again: bytes, or with K, M or G; 0 for no logs
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = parse_size)]
    pub(crate) log_limit: u64,

    /// Begin each line of the logs with the time
    #[arg(short = 't', long, value_name = "WHICH", default_value = "none", num_args = 0..=1, default_missing_value = "guest")]
    pub(crate) timestamp: Which,

    /// Replace escape characters in the logs by dots
    #[arg(short = 'e', long)]
    pub(crate) replace_escape: bool,

    /// What to do with bytes that nobody reads from a pseudo-terminal: discard the oldest, or keep them and let the
    /// domain wait
    #[arg(short = 'o', long, value_name = "POLICY", default_value = "discard")]
    pub(crate) overflow_data: Policy,

    /// File that holds the process's number as soon as all consoles are served
    #[arg(short = 'p', long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Folder of the lock file and, in its folder console, of the consoles' sockets
    #[arg(long, value_name = "DIR", default_value = "/run/outrigger")]
    pub(crate) run_dir: PathBuf,

    /// Descriptor on which a line is written as soon as all consoles are served
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<u32>,

    /// File that the daemon's own messages go to, when it is in the background
    #[arg(long, value_name = "FILE", default_value = "/var/log/outrigger/consoled.log")]
    pub(crate) own_log: PathBuf,

    /// Say more; twice, even more
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Which logs, in the words of xenconsoled.
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

/// What consoles' logs are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Names {
    /// NAME.NUMBER.log
    Numbered,
    /// guest-NAME.log
    Xenconsoled,
}

/// What becomes of bytes that nobody reads, in the words of xenconsoled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// The oldest go
    Discard,
    /// They stay, and the domain waits
    Keep,
}

impl Options {
    /// Whether logs are to be as xenconsoled's.
    const fn as_xenconsoled(&self) -> bool {
        self.log.is_some() || self.log_dir.is_some()
    }

    /// What the server is to do.
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
        Some(_) => {
            Err("a log of less than 4096 bytes holds nothing worth reading; 0 means no logs".to_owned())
        }
        None => Err("this is no size: give bytes, or a number with K, M or G".to_owned()),
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
