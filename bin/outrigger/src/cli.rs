//! The command line's grammar; man pages and shell completion are generated from it.

mod console;
mod images;
mod migrate;
mod power;
mod refused;
mod saved;
mod show;
mod vcpus;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use xen_types::KiB;

pub(crate) use console::{Console, ConsoleChoice, DmLog};
pub(crate) use images::{Image, ImagePart};
pub(crate) use migrate::{Compress, Migrate};
pub(crate) use power::{ConfigUpdate, Create, Reboot, Several, Shutdown};
pub(crate) use saved::{DumpCore, Restore, Save};
pub(crate) use show::{DeviceList, Info, List, Shown, Top, Uptime};
pub(crate) use vcpus::{VcpuPin, VcpuSet, WhichVcpus};

const EXIT_CODES: &str = "Exit status:\n  \
    0    success\n  \
    1    failure; completed steps were undone, and the message says what to do\n  \
    2    wrong command line\n  \
    3    wrong configuration file or device description\n  \
    4    no such guest\n  \
    5    outriggerd cannot be reached, or ended during the call\n  \
    6    a migration of the guest is not settled; run migrate --resolve\n  \
    141  nothing reads the output any more";

/// Manages HVM guests whose QEMU runs in a small Linux domain of its own, not in dom0.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, after_help = EXIT_CODES, infer_subcommands = true)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "OUTRIGGER_SOCKET", default_value = api::DEFAULT_SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// What only xl has.
    #[command(flatten)]
    pub(crate) xl: XlOptions,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that `xl` has before its commands: accepted without effect, or refused with a reason.
#[derive(Debug, Args)]
pub(crate) struct XlOptions {
    #[arg(short = 'v', action = ArgAction::Count, hide = true)]
    verbose: u8,
    #[arg(short = 'f', hide = true)]
    force: bool,
    #[arg(short = 't', hide = true)]
    progress: bool,
    #[arg(short = 'T', hide = true)]
    timestamps: bool,
    #[arg(short = 'N', hide = true)]
    dry_run: bool,
}

impl XlOptions {
    /// Why one of them is refused, if one is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        const DRY_RUN: &str = "-N is not supported: `create -n` and `config check` show what a file means";
        self.dry_run.then_some(DRY_RUN)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a guest and its stubdomain from a configuration file
    Create(Create),
    /// Replace the configuration that a guest is restarted from
    ConfigUpdate(ConfigUpdate),
    /// List guests
    #[command(visible_alias = "ls")]
    List(List),
    /// List guests by UUID
    VmList {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Destroy guests at once, with their stubdomains and everything made for them
    Destroy(Destroy),
    /// Pause guests
    Pause(Guests),
    /// Unpause guests
    Unpause(Guests),
    /// Ask guests to power off
    Shutdown(Shutdown),
    /// Ask guests to reboot
    Reboot(Reboot),
    /// Attach to a console of a guest; Ctrl-] leaves
    Console(Console),
    /// Show the log of the stubdomain's kernel, agent and QEMU
    DmLog(DmLog),
    /// Show the host, or a guest in detail
    Info(Info),
    /// Print the domid of a guest
    Domid {
        /// Name or UUID of the guest.
        guest: String,
    },
    /// Print the name of a guest
    Domname {
        /// Domid or UUID of the guest.
        guest: String,
    },
    /// Attach a disk to a running guest
    BlockAttach {
        /// Name, UUID or domid.
        guest: String,
        /// The disk as in a configuration file, such as /srv/a.img,raw,xvdb,rw; several words are joined with commas.
        #[arg(required = true, value_name = "DISKSPEC")]
        disk: Vec<String>,
    },
    /// Detach a disk from a running guest
    BlockDetach {
        /// Detach without asking the guest.
        #[arg(short, long)]
        force: bool,
        /// Name, UUID or domid.
        guest: String,
        /// The disk's name or number, such as xvdb.
        vdev: String,
    },
    /// Insert a disc into a CD drive of a running guest
    CdInsert {
        /// Open the tray even if the guest has locked it.
        #[arg(short, long)]
        force: bool,
        /// Name, UUID or domid.
        guest: String,
        /// The drive's name or number, such as hdc.
        vdev: String,
        /// A raw image or a block device.
        file: PathBuf,
    },
    /// Eject the disc from a CD drive of a running guest
    CdEject {
        /// Open the tray even if the guest has locked it.
        #[arg(short, long)]
        force: bool,
        /// Name, UUID or domid.
        guest: String,
        /// The drive's name or number, such as hdc.
        vdev: String,
    },
    /// List the disks of a guest
    BlockList(DeviceList),
    /// Attach a network interface to a running guest
    NetworkAttach {
        /// Name, UUID or domid.
        guest: String,
        /// The interface as in a configuration file, such as bridge=xenbr0; several words are joined with commas.
        #[arg(value_name = "VIFSPEC")]
        vif: Vec<String>,
    },
    /// Detach a network interface from a running guest
    NetworkDetach {
        /// Detach without asking the guest.
        #[arg(short, long)]
        force: bool,
        /// Name, UUID or domid.
        guest: String,
        /// The interface's number or MAC address.
        nic: String,
    },
    /// List the network interfaces of a guest
    NetworkList(DeviceList),
    /// List the channels of a guest
    ChannelList(DeviceList),
    /// Move a network interface, PV and emulated, to another bridge
    NetworkSetBridge {
        /// Name, UUID or domid.
        guest: String,
        /// The interface's number or MAC address.
        nic: String,
        /// The bridge.
        bridge: String,
    },
    /// List the vCPUs of guests and of their stubdomains
    VcpuList(Shown),
    /// Choose the CPUs that the vCPUs of a guest may run on, until it ends
    VcpuPin(VcpuPin),
    /// Set the number of vCPUs of a guest
    VcpuSet(VcpuSet),
    /// Set the memory of a guest
    MemSet {
        /// Name, UUID or domid.
        guest: String,
        /// In MiB, or a number with b, k, m, g or t; at most maxmem.
        #[arg(value_parser = memory)]
        memory: KiB,
    },
    /// Limit the memory that a guest may be given, until it ends
    MemMax {
        /// Name, UUID or domid.
        guest: String,
        /// In MiB, or a number with b, k, m, g or t; at most maxmem.
        #[arg(value_parser = memory)]
        memory: KiB,
    },
    /// Save a guest to a file, and destroy it
    Save(Save),
    /// Dump the memory of a guest, also of one that has ended, to a core file
    DumpCore(DumpCore),
    /// Restore a saved guest from a file; it continues where it was saved
    Restore(Restore),
    /// Migrate a guest to another host, or settle a migration whose end is not known
    Migrate(Migrate),
    /// Receive a guest through standard input and output; `migrate` runs this at the other host
    MigrateReceive,
    /// List the migrations that this host's journals have
    Migrations {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Suspend guests, which stay in memory
    Suspend(Guests),
    /// Resume suspended guests
    Resume(Guests),
    /// Take a screenshot of a guest
    Screenshot {
        /// Name, UUID or domid.
        guest: String,
        /// The PNG file to write.
        #[arg(value_name = "FILE.png")]
        file: PathBuf,
    },
    /// Send a signal to a guest's virtual hardware
    Trigger {
        /// Name, UUID or domid.
        guest: String,
        /// What to send.
        #[arg(value_enum)]
        trigger: Trigger,
        /// The vCPU to send it to.
        #[arg(default_value_t = 0)]
        vcpu: u32,
    },
    /// Press a button of a guest, as `trigger` does
    ButtonPress {
        /// Name, UUID or domid.
        guest: String,
        /// The button.
        #[arg(value_enum)]
        button: Button,
    },
    /// Send a magic SysRq key to a guest's Linux kernel
    Sysrq {
        /// Name, UUID or domid.
        guest: String,
        /// The key, one character.
        key: char,
    },
    /// Rename a guest
    Rename {
        /// Name, UUID or domid.
        guest: String,
        /// The new name.
        name: String,
    },
    /// Send QMP commands to the QEMU of a guest
    Qmp(Qmp),
    /// Print how long guests and the host have been running
    Uptime(Uptime),
    /// Show guests and their stubdomains with the CPU time that they use, continuously
    Top(Top),
    /// Print events of guests as they occur
    Events {
        /// Print one JSON object per line.
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
    /// Write the man pages to a directory
    Man {
        /// The directory; it is created if it does not exist.
        dir: PathBuf,
    },
}

/// Arguments of the commands that take only guests.
#[derive(Debug, Args)]
pub(crate) struct Guests {
    /// Names, UUIDs or domids.
    #[arg(required = true, value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of `destroy`.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// What only xl has.
    #[command(flatten)]
    xl: refused::DestroyXl,
    /// Names, UUIDs or domids.
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
    /// Wakes a guest that sleeps (ACPI S3).
    S3resume,
}

/// What `button-press` presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Button {
    /// The power button.
    Power,
    /// The sleep button.
    Sleep,
}

impl From<Button> for Trigger {
    fn from(button: Button) -> Self {
        match button {
            Button::Power => Self::Power,
            Button::Sleep => Self::Sleep,
        }
    }
}

/// Reads an amount of memory as `xl mem-set` does: MiB without a unit.
fn memory(text: &str) -> Result<KiB, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, letter)) if letter.is_ascii_alphabetic() => {
            (text.get(..at).unwrap_or_default(), letter.to_ascii_lowercase())
        }
        _ => (text, 'm'),
    };
    let number = digits
        .parse::<u64>()
        .map_err(|_| "expected a number, or a number with b, k, m, g or t".to_owned())?;
    let kib = match unit {
        'b' => Some(number / 1024),
        'k' => Some(number),
        'm' => number.checked_mul(1 << 10),
        'g' => number.checked_mul(1 << 20),
        't' => number.checked_mul(1 << 30),
        _ => return Err("the unit must be b, k, m, g or t".to_owned()),
    };
    kib.map(KiB).ok_or_else(|| "the value is too large".to_owned())
}

/// Arguments of `qmp`.
#[derive(Debug, Args)]
pub(crate) struct Qmp {
    /// The role to use: observer, operator (the default), admin, or one from the policy file.
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<String>,
    /// Allow commands that would invalidate the toolstack's records, such as quit and device_add.
    #[arg(long = "unsafe")]
    pub(crate) toolstack: bool,
    /// Print events, one per line, until interrupted; after the command, if one is given.
    #[arg(long)]
    pub(crate) events: bool,
    /// Print answers unformatted, on one line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// A command with its arguments as NAME=VALUE or as one JSON object, or a whole request as JSON; `-` reads requests
    /// from standard input. Without it, shows a prompt, or reads standard input if that is not a terminal.
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// What to do with a configuration file.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check files and show what is wrong
    Check {
        /// Print one JSON document with the effective configurations and all diagnostics.
        #[arg(long)]
        json: bool,
        /// The directory of the stubdomain's image, whose QEMU must have the emulated devices.
        #[arg(long, value_name = "DIR", default_value = "/usr/lib/outrigger/stubdom")]
        image: PathBuf,
        /// The files; `-` is standard input.
        #[arg(required = true, value_name = "CFG")]
        files: Vec<PathBuf>,
    },
    /// Write a file anew: current keys only, defaults left out, paths made absolute
    Convert {
        /// Where to write it; the default is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace the output file if it exists.
        #[arg(long, requires = "output")]
        force: bool,
        /// The file; `-` is standard input.
        #[arg(value_name = "CFG")]
        file: PathBuf,
    },
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
    fn memory_is_in_mebibytes_unless_it_says_otherwise() {
        for (text, kib) in [("64", 65_536), ("64m", 65_536), ("512k", 512), ("1G", 1 << 20), ("2048b", 2)] {
            assert_eq!(memory(text), Ok(KiB(kib)), "{text}");
        }
        for text in ["", "m", "x", "-1", "1x", "99999999999999999999", "18446744073709551615t", "1é"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }
}
