//! From a guest's configuration to QEMU's arguments and device plan, without I/O.
//!
//! [`plan`] says what the QEMU in a guest's stubdomain is started with, and which PV disks, PV NICs and consoles the
//! stubdomain needs for it. The arguments follow what libxl of Xen 4.17 gives a Linux stubdomain
//! (`libxl__build_device_model_args_new`, `tools/libs/light/libxl_dm.c`), so that a saved device model fits both
//! toolstacks. They differ where a row says so:
//!
//! | what | xl | here | why |
//! |---|---|---|---|
//! | which PV disk of the stubdomain is behind a drive | `/dev/xvd` and the letter of the guest's own disk number | the letter of the disk's place in the configuration | `hda`, `sda` and `xvda` are one letter to xl, and QEMU would write one disk's data to another |
//! | two disks on one place, such as `hda` and `xvda` | both are given to QEMU, which refuses to start | the one whose name asks for it; the other stays PV only | |
//! | read-only `xvd` disks that would be emulated | refused | PV only | |
//! | a CD drive on place 4 | given to QEMU, which has no such place | PV only | |
//! | `sdh` to `sdp` | given to QEMU | PV only | SCSI targets above 6 are seen by no firmware |
//! | partitions (`hda1`) | emulated like the whole disk | PV only | `docs/man/xen-vbd-interface.7.pandoc` |
//! | taps | `vif<domid>.<devid>-emu`, or the configured name with `-emu` | `tap<devid>` | the name lives in the stubdomain alone, and xl's can be longer than Linux allows |
//! | `br=` of a tap | the bridge in dom0 | none | the bridge is dom0's; within the stubdomain the agent has its own |
//! | the guest's name | `-name NAME` | `-name guest=NAME`, commas doubled | a name with `,` or `=` would be taken for options |
//! | no ACPI | `-no-acpi` | `acpi=off` of the machine | QEMU has removed the former |
//! | machine | `xenfv`, `pc` | `xenfv-3.1`, `pc-i440fx-7.2`, or the next that the QEMU has | what an alias means changes from release to release, and a state fits one machine only; see [`mod@abilities`] |
//! | PCI addresses | those that QEMU gives | the same, said (`addr=`) | a device that is left out shifts no other, and a state still fits; see `pci.rs` |
//! | `-incoming` | alone | with `-S` | a device model is looked at before it runs |
//! | `-sandbox` | never | everything denied, where the QEMU has it | |
//! | `device_model_args` | before `-machine`, `_hvm` behind it | at the end | what is said last counts |
//!
//! `tests/against_xl.rs` holds this table against what xl was seen to write for three configurations.
//!
//! No monitor is among the arguments, because the stubdomain adds its own, as under xl; unless `device_model_qmp` asks
//! for one on a console, which a stubdomain need not know of.
#![forbid(unsafe_code)]

pub mod abilities;
mod args;
mod disks;
mod nics;
mod pci;
mod unsavable;

use config::{GuestConfig, QmpTransport, Uuid, Vdev};
use stubdom_abi::{Argv, ArgvError, ConsoleError, QemuAbilities, QmpConsole, StubConsole};
use thiserror::Error;
use xen_types::{DomId, KiB};

pub use abilities::Part;
pub use disks::{Place, StubDisk, Unemulated, WhyNot, cd_device, scsi_drive, scsi_target};
pub use nics::StubNic;
pub use unsavable::{Unsavable, WhyUnsavable, unsavable};

/// What is known of the guest and its stubdomain besides the configuration, before they have domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The guest's UUID, on which addresses of NICs without a configured one depend.
    pub uuid: Uuid,
    /// What the QEMU in the image can do, as the image's manifest says it.
    pub qemu: QemuFeatures,
    /// A device state waits for QEMU: it is started for a restore, a migration or a replacement. It loads the state
    /// and stays stopped until it is told `cont`. Since it does not report `running` before that, its stubdomain has
    /// to be one that holds QEMU ([`stubdom_abi::HOLD_WORD`]).
    pub incoming: bool,
}

/// What a QEMU was built with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuFeatures {
    /// It has `-sandbox`.
    pub sandbox: bool,
    /// Its machine types, devices and formats, where the image's manifest lists them.
    pub abilities: Option<QemuAbilities>,
}

/// How a guest's QEMU is started, and what its stubdomain needs for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// QEMU's arguments behind those about its target.
    args: Vec<String>,
    /// The machine type, by its versioned name: what a state of this guest's QEMU can be loaded into.
    pub machine: &'static str,
    /// The disks that QEMU emulates, in the configuration's order: each needs a PV disk of the stubdomain, unless it
    /// is a drive without a medium.
    pub disks: Vec<StubDisk>,
    /// The disks that the guest sees as PV disks only, in the configuration's order.
    pub unemulated: Vec<Unemulated>,
    /// The NICs that QEMU emulates, in the configuration's order: each needs a PV NIC of the stubdomain.
    pub nics: Vec<StubNic>,
    /// The guest's serial ports, COM1 first: each needs a console of the stubdomain.
    pub serials: Vec<StubSerial>,
    /// The console of QEMU's monitor, where it has one.
    pub qmp: Option<QmpConsole>,
    /// The guest's video memory, which is part of its memory.
    pub video_memory: KiB,
}

/// One serial port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StubSerial {
    /// The guest's port, 0 being COM1.
    pub port: usize,
    /// The stubdomain's console that it is.
    pub console: StubConsole,
}

/// Why there is no plan for a configuration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// QEMU's IDE and AHCI disks are always writable.
    #[error("Disk {0} cannot be read-only on IDE or AHCI: use sd* or xvd*, or make it a CD drive")]
    ReadOnlyHardDisk(Vdev),
    /// More serial ports than consoles.
    #[error(
        "The guest's serial ports, and QEMU's monitor if it is to have a console, cannot all be served: configure fewer"
    )]
    Serial(#[source] ConsoleError),
    /// The arguments are too many or too long to be handed over.
    #[error("QEMU's arguments cannot be handed to the stubdomain: shorten device_model_args")]
    Argv(#[source] ArgvError),
    /// Video memory leaves none for the guest.
    #[error(
        "The guest's {video} of video memory are not less than its memory of {memory}: give it more memory"
    )]
    NoMemory {
        /// Video memory.
        video: KiB,
        /// The guest's memory.
        memory: KiB,
    },
    /// More devices than slots of the PCI bus.
    #[error("The guest's PCI bus has no slot left for {device}: configure fewer NICs")]
    NoPciSlot {
        /// QEMU's name of the device.
        device: String,
    },
    /// The image's QEMU lacks something.
    #[error(
        "The QEMU of the stubdomain's image has no {kind} {name}: change the configuration, or build an image whose \
         QEMU has it (`outrigger image info --json` lists what it has)"
    )]
    NotInQemu {
        /// What it is.
        kind: Part,
        /// QEMU's name of it.
        name: String,
    },
}

/// Works out how the guest's QEMU is started.
///
/// # Errors
/// When the configuration asks for what QEMU or the stubdomain cannot do, see [`PlanError`]. A configuration that
/// `config` has accepted fails only for arguments that are too long.
pub fn plan(config: &GuestConfig, facts: &Facts) -> Result<Plan, PlanError> {
    let (disks, unemulated) = disks::assign(config)?;
    let nics = nics::assign(config, &facts.uuid);
    let serials = serials(config)?;
    let qmp = qmp_console(config)?;
    let devices = args::Devices { disks: &disks, nics: &nics, serials: &serials, qmp };
    let machine = abilities::machine(config, facts.qemu.abilities.as_ref());
    let args = args::build(config, facts, machine, &devices)?;
    if let Some(has) = &facts.qemu.abilities {
        abilities::check(&args, has)?;
    }
    let video_memory = config.display.video_memory;
    let plan = Plan { args, machine, disks, unemulated, nics, serials, qmp, video_memory };
    // No other domid makes the arguments longer, so that they fit whatever the guest gets.
    plan.argv(DomId::LAST)?;
    Ok(plan)
}

impl Plan {
    /// QEMU's arguments, without the program's name, for the guest with this domid.
    ///
    /// # Errors
    /// When they are too many or too long to be handed over; not for a plan that [`plan`] has made.
    pub fn argv(&self, target: DomId) -> Result<Argv, PlanError> {
        let mut args = vec!["-xen-domid".to_owned(), target.to_string()];
        args.extend_from_slice(&self.args);
        Argv::new(args).map_err(PlanError::Argv)
    }
}

impl Plan {
    /// The slots of the PCI bus that QEMU's devices are said to have, each with its class (base class and subclass) where
    /// that is known. What the machine brings itself, and what the configuration's own arguments name, is not in it.
    #[must_use]
    pub fn pci_devices(&self) -> Vec<(u32, Option<u32>)> {
        let pairs = self.args.windows(2).filter(|pair| pair.first().is_some_and(|name| name == "-device"));
        pairs.filter_map(|pair| pci::device(pair.last()?)).collect()
    }
}

/// The console of the monitor of a guest's QEMU, where `device_model_qmp` asks for one.
///
/// # Errors
/// When the guest has so many serial ports that none is left.
pub fn qmp_console(config: &GuestConfig) -> Result<Option<QmpConsole>, PlanError> {
    match config.device_model.qmp {
        QmpTransport::Vchan => Ok(None),
        QmpTransport::Console => {
            QmpConsole::behind(config.serials.len()).map(Some).map_err(PlanError::Serial)
        }
    }
}

fn serials(config: &GuestConfig) -> Result<Vec<StubSerial>, PlanError> {
    (0..config.serials.len())
        .map(|port| Ok(StubSerial { port, console: StubConsole::serial(port).map_err(PlanError::Serial)? }))
        .collect()
}
