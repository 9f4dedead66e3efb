//! The command line's grammar; man pages and shell completion are made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXIT_CODES: &str = "Exit status:\n  \
    0  done\n  \
    1  failed; what had been done was undone, and the message says what to do\n  \
    2  wrong command line\n  \
    3  wrong configuration file\n  \
    4  no such guest\n  \
    5  outriggerd cannot be reached";

/// Runs HVM guests whose QEMU lives in a small Linux domain beside the guest, with no QEMU in dom0.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "OUTRIGGER_SOCKET", default_value = api::DEFAULT_SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a guest and its stubdomain from a configuration file
    Create(Create),
    /// List guests
    #[command(visible_alias = "ls")]
    List(List),
    /// Destroy guests at once, with their stubdomains and all that was made for them
    Destroy(Guests),
    /// Pause guests
    Pause(Guests),
    /// Let paused guests run
    Unpause(Guests),
    /// Ask guests to power off
    Shutdown(Stop),
    /// Ask guests to reboot
    Reboot(Guests),
    /// Attach to a console of a guest; Ctrl-] leaves
    Console(Console),
    /// Show what the stubdomain's kernel, agent and QEMU have said
    DmLog(DmLog),
    /// Show the host, or a guest in detail
    Info(Info),
    /// Print the domid of a guest
    Domid {
        /// Name or uuid of the guest.
        guest: String,
    },
    /// Print the name of a guest
    Domname {
        /// Domid or uuid of the guest.
        guest: String,
    },
    /// Follow what happens to guests
    Events {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Work with configuration files
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: Config,
    },
    /// Work with the stubdomain's image
    Image {
        /// What to do with it.
        #[command(subcommand)]
        command: Image,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages into a folder
    Man {
        /// The folder, made when absent.
        dir: PathBuf,
    },
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Attach to the guest's first serial console as soon as it runs.
    #[arg(short = 'c', long)]
    pub(crate) console: bool,
    /// Leave the guest paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Print one JSON object for each step, and the guest in the last.
    #[arg(long, conflicts_with = "console")]
    pub(crate) json: bool,
    /// The configuration file, in the language of xl.cfg(5).
    #[arg(value_name = "CFG")]
    pub(crate) config: PathBuf,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also uuid, processor time and the stubdomain's share.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// Only these guests.
    #[arg(value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of the commands that take guests and nothing else.
#[derive(Debug, Args)]
pub(crate) struct Guests {
    /// Names, uuids or domids.
    #[arg(required = true, value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of `shutdown`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Wait until the guests are gone, at most this many seconds.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    pub(crate) wait: Option<u64>,
    /// Names, uuids or domids.
    #[arg(required = true, value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of `console`.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Name, uuid or domid.
    pub(crate) guest: String,
    /// Which one.
    #[command(flatten)]
    pub(crate) which: WhichConsole,
    /// Print what is kept (the last 64 KiB) and leave.
    #[arg(long)]
    pub(crate) no_follow: bool,
}

/// Which of a guest's consoles.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct WhichConsole {
    /// The guest's serial port with this number, from 0 (the default, port 0).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=6))]
    pub(crate) serial: Option<u8>,
    /// The guest's own PV console.
    #[arg(long)]
    pub(crate) pv: bool,
    /// The log of the stubdomain.
    #[arg(long)]
    pub(crate) log: bool,
    /// The stubdomain's console with this number.
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) number: Option<u8>,
}

/// Arguments of `dm-log`.
#[derive(Debug, Args)]
pub(crate) struct DmLog {
    /// Keep printing what is added.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Name of the guest; its log is kept after the guest is gone.
    pub(crate) guest: String,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Name, uuid or domid; the host when absent.
    pub(crate) guest: Option<String>,
}

/// What to do with a configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check files and point at what is wrong
    Check {
        /// Print the configuration in force as JSON.
        #[arg(long)]
        json: bool,
        /// The files.
        #[arg(required = true, value_name = "CFG")]
        files: Vec<PathBuf>,
    },
}

/// What to do with the stubdomain's image.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build the image from Debian packages, without root
    Build {
        /// The folder that gets vmlinuz, initramfs.img and manifest.json.
        #[arg(short, long, value_name = "DIR", default_value = "/usr/lib/outrigger/stubdom")]
        output: PathBuf,
        /// The static outrigger-agent binary that becomes the image's first process.
        #[arg(long, value_name = "FILE", default_value = "/usr/lib/outrigger/outrigger-agent")]
        agent: PathBuf,
        /// The stubdomain's kernel; without it, the minimal one where it was compiled before, else Debian's.
        #[arg(long, value_enum)]
        kernel: Option<ImagePart>,
        /// The stubdomain's QEMU; without it, the minimal one where it was compiled before, else Debian's.
        #[arg(long, value_enum)]
        qemu: Option<ImagePart>,
        /// How many compilers run at once; without it, one a processor.
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
    },
    /// Show what an image holds
    Info {
        /// Print the manifest as JSON.
        #[arg(long)]
        json: bool,
        /// The image's folder.
        #[arg(value_name = "DIR", default_value = "/usr/lib/outrigger/stubdom")]
        dir: PathBuf,
    },
}

/// Where a part of an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImagePart {
    /// Debian's own package: there in a minute.
    Debian,
    /// Compiled for stubdomains alone from Debian's sources: smaller, faster, sandboxed; takes minutes once.
    Minimal,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wait_takes_no_guest_for_its_seconds() {
        let cli = Cli::try_parse_from(["outrigger", "shutdown", "-w", "hello"]).unwrap();
        let Command::Shutdown(stop) = cli.command else { panic!("not shutdown: {:?}", cli.command) };
        assert_eq!((stop.wait, stop.guests), (Some(300), vec!["hello".to_owned()]));
    }

    #[test]
    fn only_one_console_can_be_named() {
        assert!(Cli::try_parse_from(["outrigger", "console", "--pv", "--log", "g"]).is_err());
        assert!(Cli::try_parse_from(["outrigger", "console", "--serial", "1", "g"]).is_ok());
        assert!(Cli::try_parse_from(["outrigger", "console", "--serial", "7", "g"]).is_err());
    }
}
