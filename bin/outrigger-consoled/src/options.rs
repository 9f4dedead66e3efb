use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use console::logfile::LogStyle;

/// Serves the PV consoles of all domains: logs, sockets and pseudo-terminals.
///
/// Runs instead of xenconsoled, whose options it takes. SIGHUP opens the logs again; SIGTERM ends it, and so may
/// SIGKILL at any time: the next one takes all consoles up where they were.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Options {
    /// Stay in the foreground and log to standard error
    #[arg(short = 'i', long = "foreground", visible_alias = "interactive")]
    pub(crate) foreground: bool,

    /// Folder of the consoles' logs, NAME.NUMBER.log each
    #[arg(short = 'r', long, value_name = "DIR", default_value = "/var/log/outrigger/console")]
    pub(crate) log_dir: PathBuf,

    /// Folder of the lock file and, in its folder console, of the consoles' sockets
    #[arg(long, value_name = "DIR", default_value = "/run/outrigger")]
    pub(crate) run_dir: PathBuf,

    /// Size at which a log is renamed to NAME.NUMBER.log.1 and begun again: bytes, or with K, M or G; 0 for no logs
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = parse_size)]
    pub(crate) log_limit: u64,

    /// Begin each line of the logs with the time
    #[arg(short = 't', long, value_name = "WHICH", default_value = "none", num_args = 0..=1, default_missing_value = "guest")]
    pub(crate) timestamp: Timestamp,

    /// Replace escape characters in the logs by dots
    #[arg(short = 'e', long)]
    pub(crate) replace_escape: bool,

    /// File that holds the process's number as soon as all consoles are served
    #[arg(short = 'p', long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Descriptor on which a line is written as soon as all consoles are served
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<u32>,

    /// File that the daemon's own messages go to, when it is in the background
    #[arg(long, value_name = "FILE", default_value = "/var/log/outrigger/consoled.log")]
    pub(crate) own_log: PathBuf,

    /// Say more; twice, even more
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Which logs to write, as xenconsoled takes it (guests' are always written; see --log-limit)
    #[arg(short = 'l', long, value_name = "WHICH", hide = true)]
    pub(crate) log: Option<String>,

    /// What to do with bytes that nobody reads, as xenconsoled takes it (the oldest are always discarded)
    #[arg(short = 'o', long, value_name = "POLICY", hide = true)]
    pub(crate) overflow_data: Option<String>,
}

/// Which logs get times, in the words of xenconsoled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Timestamp {
    /// No log
    None,
    /// The hypervisor's
    Hv,
    /// The guests'
    Guest,
    /// All
    All,
}

impl Options {
    pub(crate) fn log_style(&self) -> LogStyle {
        LogStyle {
            limit: self.log_limit,
            timestamps: matches!(self.timestamp, Timestamp::Guest | Timestamp::All),
            replace_escape: self.replace_escape,
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
    use super::*;

    #[test]
    fn the_options_are_well_formed() {
        <Options as clap::CommandFactory>::command().debug_assert();
        let _: Options = Options::parse_from(["outrigger-consoled", "--log=all", "-i", "--timestamp=all"]);
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
