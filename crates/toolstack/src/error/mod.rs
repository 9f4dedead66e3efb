mod chain;
mod disk_user;
mod failure;
mod memory;
mod operation;

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::Duration;

use config::Uuid;
use qemu_args::PlanError;
use stubdom_abi::{AgentExit, ArgvError};
use thiserror::Error;
use xen_types::{DomId, KiB};
use xenstore::{PathError, StoreError};

use crate::dom0::HostError;
use crate::handover::HandoverError;
use chain::{because, ended, said};
pub use disk_user::DiskUser;
pub use failure::{Failure, UndoFailure};
pub use operation::ToolstackError;

/// Why a step failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] xen::XenError),
    /// xenstore.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A path in xenstore that cannot be built.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Files, loop devices, network interfaces, scripts.
    #[error(transparent)]
    Host(#[from] HostError),
    /// QEMU's arguments cannot be handed to the stubdomain.
    #[error(transparent)]
    Argv(#[from] ArgvError),
    /// The device model does not support the configuration.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The device model could not be asked, or refused.
    #[error(transparent)]
    Qmp(#[from] qmp::QmpError),
    /// The stream of a saved guest.
    #[error(transparent)]
    Stream(#[from] migration_stream::StreamError),
    /// The configuration in the file of a saved guest.
    #[error(transparent)]
    SavedConfig(#[from] migration_stream::libxl_json::JsonError),
    /// Another host, or what is known here of a migration.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The console of a stubdomain that its device model's state goes through.
    #[error("Cannot transfer the state of QEMU's devices through the stubdomain's console")]
    DeviceState(#[source] Box<dyn StdError + Send + Sync>),
    /// Something about one of the configuration's devices.
    #[error("{device}")]
    Device {
        /// Which device, as the configuration names it: `Disk hda (/srv/a.img)`.
        device: String,
        /// What about it.
        source: Box<Cause>,
    },
    /// The guest's name, or that of its stubdomain, is taken.
    #[error("The name {name} is taken by domain {domid}; destroy that domain or choose another name")]
    NameTaken {
        /// The name.
        name: String,
        /// The domain that has it.
        domid: DomId,
    },
    /// Another guest has this UUID.
    #[error(
        "The UUID {0} is already used by another guest: destroy that one first, or omit the key uuid to get a new one"
    )]
    UuidTaken(Uuid),
    /// A file that the guest needs is missing.
    #[error("The {what} {path} is missing; {hint}")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: String,
        /// What a person can do.
        hint: &'static str,
    },
    /// A file is not of the kind that is needed.
    #[error(
        "{path} is neither a block device nor a file of at least 512 bytes, so it cannot be used as a disk"
    )]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// The disk is in use, and one of the two would write.
    #[error("{path} is in use by {by}. Sharing a writable disk corrupts it; {}", by.hint())]
    DiskInUse {
        /// The file or block device.
        path: String,
        /// Its user.
        by: DiskUser,
    },
    /// The host has too little free memory.
    #[error("Too little memory: {what} {need}, and {free} is free. {}", memory::advice(*need, *free, *dom0))]
    Memory {
        /// What needs it, such as `guest and stubdomain need`.
        what: &'static str,
        /// What is needed.
        need: KiB,
        /// What is free.
        free: KiB,
        /// What dom0 has, if that is known.
        dom0: Option<KiB>,
    },
    /// The request is not supported.
    #[error("{what} is not possible: {why}")]
    Unsupported {
        /// The configuration's key or value.
        what: String,
        /// Why not, and what to do.
        why: String,
    },
    /// None of the CPUs that a vCPU may run on exists.
    #[error(
        "None of the CPUs in cpus = \"{cpus}\" exists (vCPU {vcpu}); `outrigger info` shows how many there are"
    )]
    NoSuchCpu {
        /// Which one.
        vcpu: u32,
        /// What the configuration names.
        cpus: config::CpuSet,
    },
    /// The stubdomain ended before its QEMU was ready.
    #[error("The stubdomain ended before its QEMU was ready{}", because(exit.as_ref()))]
    StubdomainDied {
        /// The reason that its agent reported, if any.
        exit: Option<AgentExit>,
    },
    /// QEMU did not become ready in time.
    #[error(
        "QEMU in the stubdomain was not ready within {after:?}; OUTRIGGER_TIME_SCALE extends the deadline on a \
         slow machine"
    )]
    DeviceModelTimeout {
        /// The deadline.
        after: Duration,
    },
    /// A backend did not take its device in time.
    #[error("The backend {path} was not ready within {after:?} (state {state}){}", said(error.as_deref()))]
    Backend {
        /// The backend's directory.
        path: String,
        /// The deadline.
        after: Duration,
        /// Its last state.
        state: String,
        /// What the driver wrote as its error.
        error: Option<String>,
    },
    /// A destroyed domain still exists.
    #[error("Domain {domid} still exists {after:?} after it was destroyed; something holds its memory")]
    DomainStays {
        /// The domain.
        domid: DomId,
        /// The deadline.
        after: Duration,
    },
    /// QEMU does not have a drive that it was started with.
    #[error("QEMU has no drive {id}; see `outrigger dm-log`")]
    NoDrive {
        /// The drive's device.
        id: String,
    },
    /// The stubdomain's agent did not update QEMU's fd sets.
    #[error("The agent did not {what} the fd set for PV disk {devid}; see `outrigger dm-log`")]
    NoFdset {
        /// The PV disk.
        devid: u32,
        /// `create` or `remove`.
        what: &'static str,
    },
    /// QEMU's screenshot is not a valid picture.
    #[error("QEMU's screenshot is not a valid picture: {why}")]
    Picture {
        /// Why not.
        why: String,
    },
    /// There is no such guest.
    #[error("There is no guest {0}")]
    NoGuest(String),
    /// The guest's state does not allow it.
    #[error("Guest {name} {why}")]
    NotNow {
        /// The guest.
        name: String,
        /// Why it cannot be done now.
        why: String,
    },
    /// The guest has ended, or its domain is gone.
    #[error("Guest {name} {}", ended(*reason))]
    NotRunning {
        /// The guest.
        name: String,
        /// Why it ended; absent when its domain is gone.
        reason: Option<xen::ShutdownReason>,
    },
    /// The guest is paused.
    #[error("Guest {name} is paused")]
    Paused {
        /// The guest.
        name: String,
    },
    /// The guest's stubdomain, or QEMU in it, has ended.
    #[error("Guest {name} has lost its device model")]
    DeviceModelDead {
        /// The guest.
        name: String,
    },
    /// The guest has no PV drivers, which would receive the request.
    #[error("Guest {name} has no PV drivers, so it cannot {what}")]
    NoPvDrivers {
        /// The guest.
        name: String,
        /// What it cannot, such as `be asked to reboot`.
        what: &'static str,
    },
    /// The guest's PV drivers did not acknowledge a request in time; it was withdrawn.
    #[error("Guest {name} did not acknowledge the {what} within {after:?}")]
    NotAcknowledged {
        /// The guest.
        name: String,
        /// The request, such as `shutdown request`.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The guest acknowledged the request to suspend, and did not.
    #[error(
        "Guest {name} did not suspend within {after:?}; a device or program in the guest may be refusing: see its \
         kernel's log"
    )]
    NotSuspended {
        /// The guest.
        name: String,
        /// The deadline.
        after: Duration,
    },
    /// QEMU's devices are not where those of a restored guest would be.
    #[error(
        "Guest {name} cannot be saved: the device in PCI slot {slot:#x} was plugged in, or another was unplugged, while the \
         guest ran; a restored guest would have it in another slot. Shut the guest down and create it again first"
    )]
    Replugged {
        /// The guest.
        name: String,
        /// The slot.
        slot: u32,
    },
    /// The guest has a device whose state QEMU cannot save.
    #[error("Guest {name} cannot be saved: {device}")]
    Unsavable {
        /// The guest.
        name: String,
        /// The device, and why.
        device: qemu_args::Unsavable,
    },
    /// QEMU did not take the state of its devices.
    #[error("QEMU could not load the saved state of its devices: {why}; see `outrigger dm-log`")]
    StateRefused {
        /// What it says.
        why: String,
    },
    /// The saved guest's QEMU had another machine than ours would have.
    #[error(
        "The guest in {path} was saved with the machine type {saved}, and this image's QEMU would give it {ours}; install \
         an image whose QEMU has {saved}"
    )]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// Its machine type.
        saved: String,
        /// What it would get.
        ours: String,
    },
    /// A guest cannot be saved there.
    #[error("Cannot save the guest to {path}: {why}")]
    NotASaveFile {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// A core file cannot be written there.
    #[error("Cannot write the core file {path}: {why}")]
    NotACoreFile {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// The client that asked for a dump has cancelled it.
    #[error("Cancelled; guest {name} was not dumped")]
    DumpCancelled {
        /// The guest.
        name: String,
    },
    /// The client that asked for it has cancelled it.
    #[error("Cancelled; guest {name} runs on")]
    Cancelled {
        /// The guest.
        name: String,
    },
    /// A disk was written to after the guest was saved.
    #[error(
        "The disk {disk} was changed after the guest was saved to {path}: the guest would go on with its old memory, and \
         damage its file systems. Put back a copy of the disk from that moment, with its modification time (cp -p); or use --force if you are \
         sure that the disk has that content"
    )]
    DiskChanged {
        /// The disk's file.
        disk: String,
        /// The saved guest's.
        path: PathBuf,
    },
    /// The file system has too little room for a guest's memory.
    #[error(
        "Not enough space to write the guest's memory to {path}: {need} needed, {free} free; free some space, or name a \
         file on another file system"
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// What is needed.
        need: KiB,
        /// What is free.
        free: KiB,
    },
    /// The guest did not release a device in time.
    #[error("Guest {name} did not release {device} within {after:?}")]
    NotReleased {
        /// The guest.
        name: String,
        /// The device, such as `disk xvdb`.
        device: String,
        /// The deadline.
        after: Duration,
    },
    /// The guest cannot be asked to release a device.
    #[error("Guest {name} {why}")]
    NeedsForce {
        /// The guest.
        name: String,
        /// The device, such as `disk hdb`.
        device: String,
        /// Why not.
        why: String,
    },
    /// The guest has locked a drive's tray, and was asked to open it, as by the drive's button.
    #[error("Guest {name} has locked the tray of {vdev}")]
    TrayLocked {
        /// The guest.
        name: String,
        /// The drive.
        vdev: config::Vdev,
    },
    /// The guest has no such device.
    #[error("Guest {name} has no {device}")]
    NoDevice {
        /// The guest.
        name: String,
        /// The device, such as `CD drive hdc`.
        device: String,
    },
    /// The guest has such a device already.
    #[error("Guest {name} already has {device}")]
    DeviceExists {
        /// The guest.
        name: String,
        /// The device, such as `network interface 0`.
        device: String,
    },
    /// A state file cannot be used.
    #[error(
        "The state file {path} cannot be read ({why}); its guest is left alone. Restore the file, or move it away once \
         the guest's domains are gone"
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file beside the state files is a copy of one.
    #[error(
        "{path} is a copy of the state file of the guest {uuid} and is not used; remove it or move it out of the \
         directory"
    )]
    RecordCopy {
        /// The copy.
        path: PathBuf,
        /// The guest's UUID.
        uuid: Uuid,
    },
    /// A later release wrote the state file.
    #[error(
        "The state file {path} was written by a later release (format {form}), and this release cannot read it; \
         its guest is left alone. Install the later release again"
    )]
    RecordTooNew {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        form: u64,
    },
    /// An earlier release wrote the state file, possibly in an earlier boot of the host.
    #[error(
        "The state file {path} does not record in which boot of the host it was written, and its stubdomain no longer \
         exists. A domain with the UUID {uuid} exists, but it may not be this guest, so it is left alone. If it is \
         this guest, destroy it with xl; if not, move the file away"
    )]
    RecordUncertain {
        /// The file.
        path: PathBuf,
        /// The UUID.
        uuid: Uuid,
    },
    /// The guest of an unreadable state file may have the name or the UUID.
    #[error("This name or UUID may be taken by the guest of the state file {path}: {why}")]
    UnreadableInTheWay {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read, and what to do.
        why: String,
    },
    /// What an earlier daemon had begun is still half done.
    #[error(
        "An earlier change of its devices was interrupted and could not be undone or completed, so no other begins. \
         Remove the cause that follows and repeat the command; or destroy the guest, which ends the change too"
    )]
    EarlierChange(#[source] Box<Cause>),
    /// A peer has to decide about an operation of the guest.
    #[error("Guest {name} is locked: another host has to decide about an operation that is in progress")]
    Held {
        /// The guest's name.
        name: String,
    },
    /// A step needs what an earlier one makes, and that one has not run.
    #[error("The {what} does not exist yet; this is an error in Outrigger")]
    TooEarly {
        /// What is missing.
        what: &'static str,
    },
    /// A test's fault.
    #[error("Injected failure of the step {step}")]
    Injected {
        /// The step.
        step: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_step_device_cause_and_log() {
        let cause = Cause::NotADisk { path: "/a".into() }.about("Disk hda");
        let error = ToolstackError::from(Failure {
            id: "check",
            label: "check the configuration",
            cause,
            undo: Vec::new(),
            stubdomain_log: vec!["panic".to_owned()],
        });
        assert_eq!(
            error.report(),
            "The step \"check the configuration\" failed: Disk hda: /a is neither a block device nor a file of at least 512 bytes, \
             so it cannot be used as a disk\nLast log lines of the stubdomain:\n  | panic"
        );
    }
}
