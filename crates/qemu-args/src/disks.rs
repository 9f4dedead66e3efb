use std::collections::BTreeSet;

use config::{Disk, DiskController, DiskSource, GuestConfig, Vdev, VdevBus};

use crate::PlanError;

/// IDE has two buses of two drives.
const IDE_PLACES: u32 = 4;
/// AHCI has six ports.
const AHCI_PLACES: u32 = 6;
/// Targets of a SCSI bus that firmware looks at; the controller is the seventh.
const SCSI_PLACES: u32 = 7;
/// The stubdomain's disks are `/dev/xvda` to `/dev/xvdz`.
const LETTERS: usize = 26;

/// A disk that QEMU emulates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubDisk {
    /// The disk's index in the configuration's list.
    pub index: usize,
    /// The disk as the guest sees it.
    pub guest_vdev: Vdev,
    /// The PV disk of the stubdomain that is behind it: `xvd` and the letter of `index`.
    pub stub_vdev: Vdev,
    /// That PV disk's device in the stubdomain, `/dev/xvda` and so on.
    pub device: String,
    /// Where QEMU puts it.
    pub place: Place,
    /// It is a CD drive.
    pub cdrom: bool,
    /// QEMU may write to it.
    pub writable: bool,
    /// There is something behind it. Without, it is a CD drive without a medium, and the stubdomain needs no PV disk.
    pub medium: bool,
}

/// Where QEMU puts a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// An IDE drive, 0 to 3.
    Ide(u32),
    /// An AHCI port, 0 to 5.
    Ahci(u32),
    /// A SCSI target, 0 to 6.
    Scsi(u32),
}

/// A disk that the guest sees as a PV disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unemulated {
    /// The disk's index in the configuration's list.
    pub index: usize,
    /// The disk.
    pub vdev: Vdev,
    /// Why QEMU does not emulate it.
    pub why: WhyNot,
}

/// Why QEMU does not emulate a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// Its number is above what its controller has places for, as is usual for PV disks (`xvde`).
    NoPlace,
    /// Another disk has the place; its name asks for it more plainly.
    PlaceTaken,
    /// It is a partition.
    Partition,
    /// It is read-only, and its number would put it on IDE or AHCI.
    ReadOnly,
    /// It is the 27th disk or a later one.
    NoLetter,
}

/// Finds a place for every disk that can have one.
pub(crate) fn assign(config: &GuestConfig) -> Result<(Vec<StubDisk>, Vec<Unemulated>), PlanError> {
    let mut places: Vec<Result<Place, WhyNot>> = Vec::new();
    for disk in &config.disks {
        places.push(place(disk, config.disk_controller)?);
    }
    // Disks that are named after their place come first, whatever their order in the file.
    let mut taken = BTreeSet::new();
    for named in [true, false] {
        for (disk, place) in config.disks.iter().zip(&mut places) {
            let (Ok(wanted), true) = (*place, (disk.vdev.bus() != VdevBus::Xvd) == named) else { continue };
            if !taken.insert(wanted) {
                *place = Err(WhyNot::PlaceTaken);
            }
        }
    }
    let (mut disks, mut unemulated) = (Vec::new(), Vec::new());
    for (index, (disk, place)) in config.disks.iter().zip(places).enumerate() {
        match place.and_then(|place| stub_disk(index, disk, place)) {
            Ok(stub) => disks.push(stub),
            Err(why) => unemulated.push(Unemulated { index, vdev: disk.vdev, why }),
        }
    }
    Ok((disks, unemulated))
}

fn place(disk: &Disk, controller: DiskController) -> Result<Result<Place, WhyNot>, PlanError> {
    let vdev = disk.vdev;
    let number = vdev.disk();
    if vdev.partition() != 0 {
        return Ok(Err(WhyNot::Partition));
    }
    let (place, places) = match (vdev.bus(), controller) {
        // CD drives are on IDE, also beside an AHCI controller.
        _ if disk.is_cdrom() => (Place::Ide(number), IDE_PLACES),
        (VdevBus::Sd, _) => (Place::Scsi(number), SCSI_PLACES),
        (VdevBus::Hd | VdevBus::Xvd, DiskController::Ide) => (Place::Ide(number), IDE_PLACES),
        (VdevBus::Hd | VdevBus::Xvd, DiskController::Ahci) => (Place::Ahci(number), AHCI_PLACES),
    };
    if number >= places {
        return Ok(Err(WhyNot::NoPlace));
    }
    let can_be_read_only = disk.is_cdrom() || matches!(place, Place::Scsi(_));
    if !disk.is_writable() && !can_be_read_only {
        return match vdev.bus() {
            VdevBus::Xvd => Ok(Err(WhyNot::ReadOnly)),
            VdevBus::Hd | VdevBus::Sd => Err(PlanError::ReadOnlyHardDisk(vdev)),
        };
    }
    Ok(Ok(place))
}

fn stub_disk(index: usize, disk: &Disk, place: Place) -> Result<StubDisk, WhyNot> {
    let number = u32::try_from(index).ok().filter(|_| index < LETTERS).ok_or(WhyNot::NoLetter)?;
    let stub_vdev = Vdev::new(VdevBus::Xvd, number, 0).ok_or(WhyNot::NoLetter)?;
    Ok(StubDisk {
        index,
        guest_vdev: disk.vdev,
        stub_vdev,
        device: format!("/dev/{stub_vdev}"),
        place,
        cdrom: disk.is_cdrom(),
        writable: disk.is_writable(),
        medium: disk.source != DiskSource::Empty,
    })
}

/// The id of a CD drive's device in QEMU, by which its medium is changed.
#[must_use]
pub fn cd_device(guest_vdev: Vdev) -> String {
    format!("ide-{}", guest_vdev.devid())
}

/// The SCSI target of a disk, which can be plugged into a QEMU that runs: IDE and AHCI disks cannot.
///
/// # Errors
/// Why it is no SCSI disk: [`WhyNot::NoPlace`] also where it would be one of IDE or AHCI.
pub fn scsi_target(guest_vdev: Vdev) -> Result<u32, WhyNot> {
    let target = guest_vdev.disk();
    match guest_vdev.partition() {
        0 if guest_vdev.bus() == VdevBus::Sd && target < SCSI_PLACES => Ok(target),
        0 => Err(WhyNot::NoPlace),
        _ => Err(WhyNot::Partition),
    }
}

/// QEMU's name for what is behind the disk of a SCSI target.
#[must_use]
pub fn scsi_drive(target: u32) -> String {
    format!("scsi0-hd{target}")
}

impl StubDisk {
    /// QEMU's arguments for it.
    pub(crate) fn args(&self) -> Vec<String> {
        let device = &self.device;
        let (drive, front) = match self.place {
            Place::Ide(number) if self.cdrom => {
                let id = cd_device(self.guest_vdev);
                let file =
                    if self.medium { format!(",file={device},format=host_device") } else { String::new() };
                let (bus, unit) = (number / 2, number % 2);
                let front = format!("ide-cd,id={id},drive={id},bus=ide.{bus},unit={unit}");
                (format!("if=none,readonly=on,id={id}{file}"), Some(front))
            }
            Place::Ide(number) => {
                let drive = format!(
                    "file={device},if=ide,index={number},media=disk,format=host_device,cache=writeback"
                );
                (drive, None)
            }
            Place::Ahci(number) => {
                let id = format!("ahcidisk-{number}");
                let front = format!("ide-hd,bus=ahci0.{number},unit=0,drive={id}");
                (format!("file={device},if=none,id={id},format=host_device,cache=writeback"), Some(front))
            }
            Place::Scsi(number) => {
                let id = scsi_drive(number);
                let read_only = if self.writable { "off" } else { "on" };
                let drive = format!(
                    "file={device},id={id},format=host_device,if=none,readonly={read_only},cache=writeback"
                );
                (drive, Some(format!("scsi-hd,drive={id},scsi-id={number}")))
            }
        };
        let mut args = vec!["-drive".to_owned(), drive];
        args.extend(front.into_iter().flat_map(|front| ["-device".to_owned(), front]));
        args
    }
}
