//! The command line's grammar; man pages and shell completion are made from it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use xen_types::KiB;

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
    /// Attach a disk to a running guest
    BlockAttach {
        /// Name, uuid or domid.
        guest: String,
        /// The disk as in a configuration file, such as /srv/a.img,raw,xvdb,rw; several words are joined by commas.
        #[arg(required = true, value_name = "DISKSPEC")]
        disk: Vec<String>,
    },
    /// Take a disk from a running guest
    BlockDetach {
        /// Take it away at once, whatever the guest does with it.
        #[arg(short, long)]
        force: bool,
        /// Name, uuid or domid.
        guest: String,
        /// The disk's name or number, such as xvdb.
        vdev: String,
    },
    /// Put a disc into a CD drive of a running guest
    CdInsert {
        /// Open the tray against the guest's lock.
        #[arg(short, long)]
        force: bool,
        /// Name, uuid or domid.
        guest: String,
        /// The drive's name or number, such as hdc.
        vdev: String,
        /// A raw image or a block device.
        file: PathBuf,
    },
    /// Take the disc out of a CD drive of a running guest
    CdEject {
        /// Open the tray against the guest's lock.
        #[arg(short, long)]
        force: bool,
        /// Name, uuid or domid.
        guest: String,
        /// The drive's name or number, such as hdc.
        vdev: String,
    },
    /// List the disks of a guest
    BlockList(DeviceList),
    /// Attach a network interface to a running guest
    NetworkAttach {
        /// Name, uuid or domid.
        guest: String,
        /// The interface as in a configuration file, such as bridge=xenbr0; several words are joined by commas.
        #[arg(value_name = "VIFSPEC")]
        vif: Vec<String>,
    },
    /// Take a network interface from a running guest
    NetworkDetach {
        /// Take it away at once, whatever the guest does with it.
        #[arg(short, long)]
        force: bool,
        /// Name, uuid or domid.
        guest: String,
        /// The interface's number or address.
        nic: String,
    },
    /// List the network interfaces of a guest
    NetworkList(DeviceList),
    /// Move a network interface to another bridge, its PV side and its emulated side
    NetworkSetBridge {
        /// Name, uuid or domid.
        guest: String,
        /// The interface's number or address.
        nic: String,
        /// The bridge.
        bridge: String,
    },
    /// Set how many of its virtual processors a guest shall use
    VcpuSet {
        /// Name, uuid or domid.
        guest: String,
        /// The number, at most maxvcpus.
        vcpus: u32,
    },
    /// Set how much memory a guest shall have
    MemSet {
        /// Name, uuid or domid.
        guest: String,
        /// In MiB, or with b, k, m, g or t behind it; at most maxmem.
        #[arg(value_parser = memory)]
        memory: KiB,
    },
    /// Take a picture of a guest's screen
    Screenshot {
        /// Name, uuid or domid.
        guest: String,
        /// The PNG file that is written.
        #[arg(value_name = "FILE.png")]
        file: PathBuf,
    },
    /// Send a signal to a guest's virtual hardware
    Trigger {
        /// Name, uuid or domid.
        guest: String,
        /// What is sent.
        #[arg(value_enum)]
        trigger: Trigger,
        /// To which virtual processor.
        #[arg(default_value_t = 0)]
        vcpu: u32,
    },
    /// Press a magic key (SysRq) of a guest's Linux kernel
    Sysrq {
        /// Name, uuid or domid.
        guest: String,
        /// The key, one character.
        key: char,
    },
    /// Give a guest another name
    Rename {
        /// Name, uuid or domid.
        guest: String,
        /// The new name.
        name: String,
    },
    /// Speak QMP with the QEMU of a guest
    Qmp(Qmp),
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

/// Arguments of `block-list` and `network-list`.
#[derive(Debug, Args)]
pub(crate) struct DeviceList {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Names, uuids or domids.
    #[arg(required = true, value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// What `trigger` sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trigger {
    /// The power button.
    Power,
    /// The sleep button.
    Sleep,
    /// A non-maskable interrupt.
    Nmi,
    /// A reset.
    Reset,
    /// An INIT.
    Init,
}

/// Reads an amount of memory as `xl mem-set` does: MiB without a unit.
fn memory(text: &str) -> Result<KiB, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            (text.get(..at).unwrap_or_default(), letter.to_ascii_lowercase())
        }
        _ => (text, 'm'),
    };
    let number =
        digits.parse::<u64>().map_err(|_| "it is a number, with b, k, m, g or t behind it".to_owned())?;
    let kib = match unit {
        'b' => Some(number / 1024),
        'k' => Some(number),
        'm' => number.checked_mul(1 << 10),
        'g' => number.checked_mul(1 << 20),
        't' => number.checked_mul(1 << 30),
        _ => return Err("the unit is b, k, m, g or t".to_owned()),
    };
    kib.map(KiB).ok_or_else(|| "that is too much".to_owned())
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
    /// Of what is kept, only what came in this time before now: seconds, or with s, m, h or d.
    #[arg(long, value_name = "AGO", value_parser = parse_ago)]
    pub(crate) since: Option<Duration>,
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
        .ok_or_else(|| "give seconds, or a number with s, m, h or d, at most a year".to_owned())
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
    /// The guest's channel with this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
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

/// Arguments of `qmp`.
#[derive(Debug, Args)]
pub(crate) struct Qmp {
    /// What the command may do: observer, operator (the default), admin, or a role of the policy file.
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<String>,
    /// Allow commands that make the toolstack's records wrong, such as quit and device_add.
    #[arg(long = "unsafe")]
    pub(crate) toolstack: bool,
    /// Print events, one a line, until interrupted; after the command if there is one.
    #[arg(long)]
    pub(crate) events: bool,
    /// Print answers as they are, on one line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Name, uuid or domid.
    pub(crate) guest: String,
    /// A command with its arguments as NAME=VALUE or as one JSON object; a whole request as JSON; `-` reads requests
    /// from standard input. Without it: a prompt, or standard input when that is no terminal.
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
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
    fn memory_is_in_mebibytes_unless_it_says_otherwise() {
        for (text, kib) in [("64", 65_536), ("64m", 65_536), ("512k", 512), ("1G", 1 << 20), ("2048b", 2)] {
            assert_eq!(memory(text), Ok(KiB(kib)), "{text}");
        }
        for text in ["", "m", "x", "-1", "1x", "99999999999999999999", "18446744073709551615t", "1é"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_one_console_can_be_named() {
        assert!(Cli::try_parse_from(["outrigger", "console", "--pv", "--log", "g"]).is_err());
        assert!(Cli::try_parse_from(["outrigger", "console", "--serial", "1", "g"]).is_ok());
        assert!(Cli::try_parse_from(["outrigger", "console", "--serial", "7", "g"]).is_err());
    }
}
