//! Attaching and detaching disks.

use config::{Disk, DiskSource, Vdev};
use xenbus::{DeviceId, DeviceKind};

use crate::batch::Batch;
use crate::device::backend::wait_for;
use crate::device::claims::{OpenDisks, claim};
use crate::device::disk::{self, attach_image};
use crate::device::nodes::{DiskBacking, add_device, disk_node};
use crate::device::scsi::{Emulation, ScsiDisk};
use crate::device::{Detach, check_backend, describe, release, script};
use crate::dom0::{BlockDevice, BlockNumber};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::{EmulatedDisk, GuestRecord};
use crate::{Guest, Toolstack, UndoFailure};

/// How many disks a guest may have, as in its configuration.
const MAX_DISKS: usize = 256;

/// The id of the step that QEMU may fail without preventing the detachment.
const UNPLUG: &str = "unplug-emulated";

/// A disk being attached.
struct Attachment<'a> {
    live: Live<'a>,
    disk: Disk,
    /// QEMU's side of it.
    emulated: Option<EmulatedDisk>,
    /// The claimed disk, held open until the backends have it.
    open: OpenDisks,
    backing: DiskBacking,
}

fn attach_steps<'b>() -> Vec<Step<Attachment<'b>>> {
    vec![
        Step::new("check", "check the disk", Attachment::check),
        Step::new(ENTRY, "record the attachment", Attachment::note).undo(Attachment::forget).entry(),
        Step::new("attach-image", "attach its image", Attachment::attach_image)
            .undo(|a: &mut Attachment<'_>| detach_image(&mut a.live, a.disk.vdev)),
        Step::new("write-nodes", "write its xenstore nodes", Attachment::write_nodes)
            .undo(|a: &mut Attachment<'_>| release::remove(a.live.ts, &a.users()?)),
        Step::new("run-script", "run its script", Attachment::run_script).undo(Attachment::undo_script),
        Step::new("await-backend", "wait for its backend", |a: &mut Attachment<'_>| {
            wait_for(a.live.ts, a.users()?)?;
            a.open.clear();
            Ok(())
        }),
        Step::new("plug-emulated", "plug in its emulated disk", Attachment::plug).undo(Attachment::unplug),
        Step::new("record-device", "record the disk", Attachment::record).undo(Attachment::unrecord),
    ]
}

/// A disk being detached.
struct Detachment<'a> {
    live: Live<'a>,
    vdev: Vdev,
    how: Detach,
    /// QEMU's disk, which can be unplugged.
    emulated: Option<ScsiDisk>,
}

/// Once the guest has agreed, the detachment cannot be undone.
fn detach_steps<'b>() -> Vec<Step<Detachment<'b>>> {
    vec![
        Step::new("check", "check the disk", Detachment::check),
        Step::new(ENTRY, "record the detachment", |d: &mut Detachment<'_>| d.enter(Cursor::back(ENTRY)))
            .entry(),
        Step::new("ask-guest", "ask the guest to release the disk", Detachment::ask)
            .undo(Detachment::take_back),
        Step::new(UNPLUG, "unplug its emulated disk", |d: &mut Detachment<'_>| {
            d.emulated.as_ref().map_or(Ok(()), |disk| disk.unplug(d.live.ts))
        })
        .point_of_no_return()
        .may_fail(),
        Step::new("remove-device", "remove the disk", |d: &mut Detachment<'_>| {
            remove_disk(&mut d.live, d.vdev)?;
            forget_disk(&mut d.live, d.vdev);
            Ok(())
        }),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::attach_disk`], in order.
    #[must_use]
    pub fn attach_disk_steps() -> Vec<&'static str> {
        ids(&attach_steps())
    }

    /// The ids of the steps of [`Self::detach_disk`], in order.
    #[must_use]
    pub fn detach_disk_steps() -> Vec<&'static str> {
        ids(&detach_steps())
    }

    /// Attaches a disk to a running guest, which its PV driver sees at once, and as an emulated one where QEMU can plug
    /// it in and the guest has no PV driver. A disk that is already attached as described is left unchanged.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn attach_disk(
        &self,
        id: GuestId,
        disk: &Disk,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        if live.record.config.disks.contains(disk) {
            events(Event::Warning { text: format!("{} is already attached", describe(disk)) });
            return Ok(live.guest()?);
        }
        let (emulated, remark) = match Emulation::wanted(&live, disk)? {
            Emulation::Plugged(emulated) => (Some(emulated), None),
            Emulation::None(remark) => (None, remark),
        };
        let (open, backing) = (OpenDisks::new(), DiskBacking::Empty);
        let mut attachment = Attachment { live, disk: disk.clone(), emulated, open, backing };
        run(&attach_steps(), &mut attachment, &self.faults, events)?;
        if let Some(text) = remark {
            events(Event::Warning { text });
        }
        Ok(attachment.live.guest()?)
    }

    /// Detaches a disk from a running guest: its PV disk and, once the guest has unplugged emulated disks, QEMU's. A
    /// disk that is still emulated is detached only by force, because the guest cannot be asked.
    ///
    /// # Errors
    /// [`Error::Step`] when the guest does not release it, and everything was undone; [`Error::NotDetached`] when it
    /// was released but cleanup is incomplete: the same call continues it.
    pub fn detach_disk(
        &self,
        id: GuestId,
        vdev: Vdev,
        how: Detach,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let emulated = ScsiDisk::of(&live, vdev);
        let mut detachment = Detachment { live, vdev, how, emulated };
        let mut left = run(&detach_steps(), &mut detachment, &self.faults, events)?;
        // The disk is removed even if QEMU does not release it.
        for failure in left.extract_if(.., |failure| failure.id == UNPLUG) {
            let text = format!(
                "QEMU did not release {vdev}, which has no backend any more: {}",
                failure.cause.chain()
            );
            events(Event::Warning { text });
        }
        detachment.live.concluded(left)
    }
}

/// Undoes an attachment that an earlier process began.
pub(crate) fn resume_attach<'a>(
    live: Live<'a>,
    disk: Disk,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let emulated = live.record.emulated_disks.iter().find(|emulated| emulated.vdev == disk.vdev).copied();
    let (open, backing) = (OpenDisks::new(), DiskBacking::Empty);
    let mut attachment = Attachment { live, disk, emulated, open, backing };
    let resumed = resume(&attach_steps(), &mut attachment, cursor, events);
    (attachment.live, resumed)
}

/// Ends a detachment that an earlier process began: undoes it, or removes the disk if the guest has released it.
pub(crate) fn resume_detach<'a>(
    live: Live<'a>,
    vdev: Vdev,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let emulated = ScsiDisk::of(&live, vdev);
    let mut detachment = Detachment { live, vdev, how: Detach::Force, emulated };
    let resumed = resume(&detach_steps(), &mut detachment, cursor, events);
    (detachment.live, resumed)
}

impl OnGuest for Attachment<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::AttachDisk(self.disk.clone())
    }
}

impl OnGuest for Detachment<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::DetachDisk { vdev: self.vdev }
    }

    /// Unless the guest keeps it, which is no longer asked for it then.
    fn has_passed(&mut self) -> Result<bool, Cause> {
        let id = DeviceId::of_dom0(DeviceKind::Vbd, self.live.domid()?, self.vdev.devid());
        Ok(!release::withdraw(self.live.ts, id)?)
    }
}

impl Attachment<'_> {
    fn users(&self) -> Result<Vec<DeviceId>, Cause> {
        users(&self.live, self.disk.vdev)
    }

    fn check(&mut self) -> StepResult {
        let (ts, record) = (self.live.ts, &self.live.record);
        let about = |cause: Cause| cause.about(describe(&self.disk));
        if let Some(other) = record.config.disks.iter().find(|disk| disk.vdev == self.disk.vdev) {
            return Err(Cause::DeviceExists { name: record.name.clone(), device: describe(other) });
        }
        if record.config.disks.len() >= MAX_DISKS {
            let device = format!("{MAX_DISKS} disks");
            return Err(Cause::DeviceExists { name: record.name.clone(), device });
        }
        if self.disk.is_cdrom() {
            return Err(about(Cause::Unsupported {
                what: "devtype=cdrom".to_owned(),
                why:
                    "a CD drive cannot be added to a running guest; use cd-insert to change the disc in a drive"
                        .to_owned(),
            }));
        }
        check_backend(self.disk.backend.as_deref()).map_err(about)?;
        disk::check(&self.disk.source, &*ts.host).map_err(about)
    }

    fn note(&mut self) -> StepResult {
        let disk = self.disk.clone();
        let lock = self.live.ts.lock_disks();
        self.open = claim(self.live.ts, &lock, &mut self.live.record, std::slice::from_ref(&disk))?;
        self.live.record.emulated_disks.extend(self.emulated);
        self.enter(Cursor::back(ENTRY))
    }

    /// The check has found no other disk of this name.
    fn forget(&mut self) -> StepResult {
        let vdev = self.disk.vdev;
        self.live.record.emulated_disks.retain(|disk| disk.vdev != vdev);
        self.live.record.disks.retain(|disk| disk.vdev != vdev);
        Ok(())
    }

    fn attach_image(&mut self) -> StepResult {
        let open = self.open.get(&self.disk.vdev);
        self.backing = attach_image(self.live.ts, &mut self.live.record, &self.disk, open)
            .map_err(|cause| cause.about(describe(&self.disk)))?;
        self.live.save()
    }

    fn write_nodes(&mut self) -> StepResult {
        let mut batch = Batch::new();
        let mut add = |domid, vdev: Vdev, pv| {
            let id = DeviceId::of_dom0(DeviceKind::Vbd, domid, vdev.devid());
            add_device(&mut batch, &disk_node(id, &self.disk, &self.backing, vdev, pv));
        };
        add(self.live.domid()?, self.disk.vdev, false);
        if let Some(emulated) = self.emulated {
            add(self.live.stub()?, emulated.stub_vdev, true);
        }
        batch.commit(&self.live.ts.xenstore)
    }

    fn run_script(&mut self) -> StepResult {
        let DiskBacking::Script { script, .. } = self.backing.clone() else { return Ok(()) };
        for id in self.users()? {
            disk::run_script(self.live.ts, &mut self.live.record, &script, id)
                .map_err(|cause| cause.about(describe(&self.disk)))?;
        }
        Ok(())
    }

    fn undo_script(&mut self) -> StepResult {
        let users = self.users()?;
        script::undo_of(self.live.ts, &mut self.live.record, &users)
    }

    fn plug(&mut self) -> StepResult {
        match ScsiDisk::of(&self.live, self.disk.vdev) {
            Some(disk) => {
                let plugged = disk.plug(self.live.ts, self.disk.is_writable());
                plugged.map_err(|cause| cause.about(describe(&self.disk)))
            }
            None => Ok(()),
        }
    }

    fn unplug(&mut self) -> StepResult {
        unplug_disk(&self.live, self.disk.vdev)
    }

    fn record(&mut self) -> StepResult {
        self.live.record.config.disks.push(self.disk.clone());
        Ok(())
    }

    fn unrecord(&mut self) -> StepResult {
        let vdev = self.disk.vdev;
        self.live.record.config.disks.retain(|disk| disk.vdev != vdev);
        Ok(())
    }
}

impl Detachment<'_> {
    fn check(&mut self) -> StepResult {
        let record = &self.live.record;
        let not_now = |why: String| Err(Cause::NotNow { name: record.name.clone(), why });
        let Some(disk) = record.config.disks.iter().find(|disk| disk.vdev == self.vdev) else {
            let device = format!("disk {}", self.vdev);
            return Err(Cause::NoDevice { name: record.name.clone(), device });
        };
        if disk.is_cdrom() {
            return not_now(format!("has {} as a CD drive; cd-eject ejects the disc", self.vdev));
        }
        let emulated = self.live.stub_vdev(self.vdev).is_some();
        if self.how == Detach::Ask && emulated && !self.live.uses_pv_devices()? {
            let vdev = self.vdev;
            let why = match qemu_args::scsi_target(vdev) {
                Ok(_) => format!(
                    "has {vdev} as an emulated SCSI disk, which the guest cannot be asked to release; use --force once \
                     the guest no longer uses it"
                ),
                Err(_) => format!(
                    "has {vdev} as an emulated disk, which cannot be unplugged; --force detaches it anyway"
                ),
            };
            return Err(Cause::NeedsForce { name: record.name.clone(), device: format!("disk {vdev}"), why });
        }
        Ok(())
    }

    fn ask(&mut self) -> StepResult {
        match self.how {
            Detach::Force => Ok(()),
            Detach::Ask => release::ask(
                self.live.ts,
                &self.live.record.name,
                DeviceId::of_dom0(DeviceKind::Vbd, self.live.domid()?, self.vdev.devid()),
            ),
        }
    }

    fn take_back(&mut self) -> StepResult {
        restore_disk(&mut self.live, self.vdev)
    }
}

/// The disk's PV devices: the guest's, and its stubdomain's if QEMU has one.
fn users(live: &Live<'_>, vdev: Vdev) -> Result<Vec<DeviceId>, Cause> {
    let of = |domid, vdev: Vdev| DeviceId::of_dom0(DeviceKind::Vbd, domid, vdev.devid());
    let mut users = vec![of(live.domid()?, vdev)];
    if let Some(vdev) = live.stub_vdev(vdev) {
        users.push(of(live.stub()?, vdev));
    }
    Ok(users)
}

/// Unplugs QEMU's disk, if it can be unplugged.
fn unplug_disk(live: &Live<'_>, vdev: Vdev) -> StepResult {
    ScsiDisk::of(live, vdev).map_or(Ok(()), |disk| disk.unplug(live.ts))
}

/// Removes a disk of the guest wherever it is.
fn remove_disk(live: &mut Live<'_>, vdev: Vdev) -> StepResult {
    let users = users(live, vdev)?;
    release::remove(live.ts, &users)?;
    script::undo_of(live.ts, &mut live.record, &users)?;
    detach_image(live, vdev)
}

/// The record without a disk.
fn forget_disk(live: &mut Live<'_>, vdev: Vdev) {
    let record = &mut live.record;
    record.config.disks.retain(|disk| disk.vdev != vdev);
    record.emulated_disks.retain(|disk| disk.vdev != vdev);
    record.disks.retain(|disk| disk.vdev != vdev);
}

/// Detaches the loop device of a disk, also one that was attached and not yet recorded.
pub(crate) fn detach_image(live: &mut Live<'_>, vdev: Vdev) -> StepResult {
    let name = vdev.to_string();
    let before = live.record.loops.clone();
    live.record.loops.retain(|entry| entry.vdev != name);
    detach_strays(live).inspect_err(|_| live.record.loops = before)
}

/// Detaches the loop devices of the guest that its record does not have.
pub(crate) fn detach_strays(live: &Live<'_>) -> StepResult {
    let record = &live.record;
    for attachment in live.ts.host.find_loops(&record.loop_tag())? {
        if !record.loops.iter().any(|entry| entry.attachment.device.minor == attachment.device.minor) {
            live.ts.host.detach_loop(&attachment)?;
        }
    }
    Ok(())
}

/// Returns a disk to a guest that was asked to release it.
pub(crate) fn restore_disk(live: &mut Live<'_>, vdev: Vdev) -> StepResult {
    let domid = live.domid()?;
    let id = DeviceId::of_dom0(DeviceKind::Vbd, domid, vdev.devid());
    if release::withdraw(live.ts, id)? {
        return Ok(());
    }
    // It has released it, so it is attached again.
    let Some(disk) = live.record.config.disks.iter().find(|disk| disk.vdev == vdev).cloned() else {
        return Ok(());
    };
    release::remove(live.ts, &[id])?;
    let backing = known_backing(live, &disk)?;
    let mut batch = Batch::new();
    add_device(&mut batch, &disk_node(id, &disk, &backing, vdev, false));
    batch.commit(&live.ts.xenstore)?;
    if let DiskBacking::Script { script, .. } = &backing {
        script::undo_of(live.ts, &mut live.record, &[id])?;
        disk::run_script(live.ts, &mut live.record, script, id)?;
    }
    wait_for(live.ts, vec![id])
}

/// The backing of an attached disk, even if its name now leads to another file.
pub(crate) fn known_backing(live: &mut Live<'_>, disk: &Disk) -> Result<DiskBacking, Cause> {
    let DiskSource::Path(path) = &disk.source else {
        return attach_image(live.ts, &mut live.record, disk, None);
    };
    let name = disk.vdev.to_string();
    if let Some(entry) = live.record.loops.iter().find(|entry| entry.vdev == name) {
        return Ok(DiskBacking::Device { device: entry.attachment.device.clone() });
    }
    let known = live.record.disks.iter().find(|known| known.vdev == disk.vdev && known.path == *path);
    if let Some(BlockNumber { major, minor }) = known.and_then(|known| known.id.block) {
        return Ok(DiskBacking::Device { device: BlockDevice { path: path.into(), major, minor } });
    }
    attach_image(live.ts, &mut live.record, disk, None)
}

/// Forgets the discs that were claimed for this CD drive, except the one in its configuration: the others were not
/// inserted, or have been ejected.
pub(crate) fn forget_other_discs(record: &mut GuestRecord, vdev: Vdev) {
    let mut disks = record.config.disks.iter();
    let current = disks.find(|disk| disk.vdev == vdev).map(|disk| disk.source.clone());
    record.disks.retain(|disk| {
        disk.vdev != vdev
            || current.as_ref().is_some_and(|source| *source == DiskSource::Path(disk.path.clone()))
    });
}
