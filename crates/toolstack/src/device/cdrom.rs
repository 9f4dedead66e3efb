//! Changing the disc in a CD drive.
//!
//! QEMU releases the disc, the stubdomain's PV disk is replaced by one with another image, and QEMU opens the fd set
//! that the stubdomain's agent has created for it (`docs/stubdom-api.md`). The format is always specified: QEMU never
//! probes a disc (XSA-258). A guest that has locked its tray is asked, not overridden.

use std::sync::Arc;
use std::time::Instant;

use config::{Disk, DiskSource, Vdev};
use qmp::Monitor;
use qmp::commands::{
    BlockdevChangeMedium, BlockdevCloseTray, BlockdevOpenTray, BlockdevRemoveMedium, Drive, QueryBlock,
    QueryFdsets,
};
use stubdom_abi::StubDevid;
use xenbus::{DeviceId, DeviceKind};

use super::disk::attach::{detach_strays, forget_other_discs, known_backing};
use super::{Detach, disk, release};
use crate::batch::Batch;
use crate::device::backend::wait_for;
use crate::device::claims::{OpenDisks, claim};
use crate::device::describe;
use crate::device::disk::attach_image;
use crate::device::nodes::{DiskBacking, add_device, disk_node};
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::{GuestRecord, LoopRecord};
use crate::wait::Watcher;
use crate::{Guest, Toolstack, UndoFailure};

/// A change of a disc.
struct Changing<'a> {
    live: Live<'a>,
    vdev: Vdev,
    /// What will be in the drive.
    source: DiskSource,
    how: Detach,
    /// QEMU's drive, if it emulates one.
    drive: Option<EmulatedDrive>,
    /// The claimed disc, held open until the backends have it.
    open: OpenDisks,
    backing: DiskBacking,
    fresh: Option<LoopRecord>,
    /// The record with the old disc, once the new one is in it.
    before: Option<GuestRecord>,
    /// The tray was opened here.
    opened: bool,
    /// The old disc is out, or may be.
    out: bool,
}

/// QEMU's drive and the stubdomain's PV disk behind it.
#[derive(Clone)]
struct EmulatedDrive {
    monitor: Arc<dyn Monitor>,
    id: String,
    /// The stubdomain's PV disk.
    vdev: Vdev,
}

fn steps<'b>() -> Vec<Step<Changing<'b>>> {
    vec![
        Step::new("check", "check the disc", Changing::check),
        Step::new(ENTRY, "record the change", Changing::note).undo(Changing::forget).entry(),
        Step::new("attach-image", "attach the new image", Changing::attach_image)
            .undo(Changing::detach_image),
        Step::new("open-tray", "open the tray", Changing::open_tray).undo(Changing::close_tray),
        Step::new("remove-disc", "remove the old disc", Changing::take_out).undo(Changing::put_back),
        Step::new("detach-stubdomain", "remove it from the stubdomain", Changing::unplug),
        Step::new("attach-guest", "attach the new disc to the guest", Changing::plug_guest),
        Step::new("attach-stubdomain", "attach it to the stubdomain", Changing::plug_stub),
        Step::new("insert-disc", "insert the disc into the drive", Changing::put_in),
        Step::new("record-disc", "record the disc", Changing::record).undo(Changing::unrecord),
        Step::new("detach-image", "detach the old image", |c: &mut Changing<'_>| detach_strays(&c.live))
            .point_of_no_return(),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::change_medium`], in order.
    #[must_use]
    pub fn change_medium_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Puts another disc into a CD drive of a running guest, or takes it out ([`DiskSource::Empty`]).
    ///
    /// # Errors
    /// [`Error::Step`], and the old disc is in the drive again: among others when the guest has locked the tray and is
    /// only asked.
    pub fn change_medium(
        &self,
        id: GuestId,
        vdev: Vdev,
        source: &DiskSource,
        how: Detach,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let old = drive_of(&live, vdev)?;
        if old.source == *source {
            events(Event::Warning { text: format!("{} is already in the drive", describe(&old)) });
            return Ok(live.guest()?);
        }
        let mut changing = Changing::new(live, vdev, source.clone(), how);
        let left = run(&steps(), &mut changing, &self.faults, events)?;
        changing.live.concluded(left)
    }
}

/// The CD drive of this name.
fn drive_of(live: &Live<'_>, vdev: Vdev) -> Result<Disk, Cause> {
    let not_now = |why: String| Cause::NotNow { name: live.record.name.clone(), why };
    let Some(disk) = live.record.config.disks.iter().find(|disk| disk.vdev == vdev) else {
        let (name, device) = (live.record.name.clone(), format!("CD drive {vdev}"));
        return Err(Cause::NoDevice { name, device });
    };
    if disk.is_cdrom() {
        Ok(disk.clone())
    } else {
        Err(not_now(format!("has a disk {vdev}, not a CD drive")))
    }
}

impl<'a> Changing<'a> {
    fn new(live: Live<'a>, vdev: Vdev, source: DiskSource, how: Detach) -> Self {
        Self {
            live,
            vdev,
            source,
            how,
            drive: None,
            open: OpenDisks::new(),
            backing: DiskBacking::Empty,
            fresh: None,
            before: None,
            opened: false,
            out: false,
        }
    }
}

impl Changing<'_> {
    fn present(&self) -> Result<Disk, Cause> {
        drive_of(&self.live, self.vdev)
    }

    fn wanted(&self) -> Result<Disk, Cause> {
        Ok(Disk { source: self.source.clone(), ..self.present()? })
    }

    fn check(&mut self) -> StepResult {
        let (ts, new) = (self.live.ts, self.wanted()?);
        let about = |cause: Cause| cause.about(describe(&new));
        if matches!(new.source, DiskSource::Script { .. })
            || matches!(self.present()?.source, DiskSource::Script { .. })
        {
            return Err(about(Cause::Unsupported {
                what: "script=".to_owned(),
                why: "a disc must be a file or a block device".to_owned(),
            }));
        }
        disk::check(&new.source, &*ts.host).map_err(about)?;
        self.drive = EmulatedDrive::find(&self.live, self.vdev)?;
        Ok(())
    }

    fn note(&mut self) -> StepResult {
        let (ts, new) = (self.live.ts, self.wanted()?);
        let lock = ts.lock_disks();
        self.open = claim(ts, &lock, &mut self.live.record, &[new])?;
        self.enter(Cursor::back(ENTRY))
    }

    fn forget(&mut self) -> StepResult {
        forget_other_discs(&mut self.live.record, self.vdev);
        Ok(())
    }

    /// The new image gets its loop device beside the old one's, which is detached last.
    fn attach_image(&mut self) -> StepResult {
        let new = self.wanted()?;
        let known = self.live.record.loops.len();
        self.backing = attach_image(self.live.ts, &mut self.live.record, &new, self.open.get(&self.vdev))
            .map_err(|cause| cause.about(describe(&new)))?;
        // The record has it only when it is in the drive; until then its tag tells whose it is.
        self.fresh = self.live.record.loops.split_off(known).pop();
        Ok(())
    }

    fn detach_image(&mut self) -> StepResult {
        detach_strays(&self.live)
    }

    fn open_tray(&mut self) -> StepResult {
        let Some(drive) = &self.drive else { return Ok(()) };
        let force = self.how == Detach::Force;
        let state = drive.state(self.live.ts)?;
        if state.tray_open == Some(true) {
            return Ok(());
        }
        if state.locked && !force {
            // Like pressing the drive's button: the guest may unlock and open it.
            drive.ask(self.live.ts, &BlockdevOpenTray { id: drive.id.clone(), force })?;
            return Err(Cause::TrayLocked { name: self.live.record.name.clone(), vdev: self.vdev });
        }
        self.opened = true;
        drive.ask(self.live.ts, &BlockdevOpenTray { id: drive.id.clone(), force })
    }

    fn close_tray(&mut self) -> StepResult {
        let Some(drive) = self.drive.clone().filter(|_| self.opened) else { return Ok(()) };
        // With the old disc in again it is closed already.
        if drive.state(self.live.ts)?.tray_open == Some(true) {
            drive.ask(self.live.ts, &BlockdevCloseTray { id: drive.id.clone() })?;
        }
        self.opened = false;
        Ok(())
    }

    fn take_out(&mut self) -> StepResult {
        self.out = true;
        match &self.drive {
            Some(drive) => drive.take_out(self.live.ts),
            None => Ok(()),
        }
    }

    /// The old disc, wherever the change had come.
    fn put_back(&mut self) -> StepResult {
        if self.out {
            restore(&mut self.live, self.vdev, self.drive.as_ref())?;
            self.out = false;
        }
        Ok(())
    }

    fn unplug(&mut self) -> StepResult {
        match &self.drive {
            Some(drive) => drive.unplug(&self.live),
            None => Ok(()),
        }
    }

    fn plug_guest(&mut self) -> StepResult {
        let new = self.wanted()?;
        plug_guest(&self.live, &new, &self.backing)
    }

    fn plug_stub(&mut self) -> StepResult {
        let new = self.wanted()?;
        if let Some(drive) = &self.drive {
            drive.plug(&self.live, &new, &self.backing)?;
        }
        self.open.clear();
        Ok(())
    }

    fn put_in(&mut self) -> StepResult {
        match &self.drive {
            Some(drive) if self.source != DiskSource::Empty => drive.put_in(self.live.ts),
            _ => Ok(()),
        }
    }

    fn record(&mut self) -> StepResult {
        let (vdev, source) = (self.vdev, self.source.clone());
        self.before = Some(self.live.record.clone());
        let record = &mut self.live.record;
        record.loops.retain(|entry| entry.vdev != vdev.to_string());
        record.loops.extend(self.fresh.clone());
        for disk in record.config.disks.iter_mut().filter(|disk| disk.vdev == vdev) {
            disk.source.clone_from(&source);
        }
        forget_other_discs(record, vdev);
        Ok(())
    }

    /// The record names the old disc again, which the undo of the others puts back.
    fn unrecord(&mut self) -> StepResult {
        if let Some(before) = self.before.take() {
            self.live.record = before;
        }
        Ok(())
    }
}

impl EmulatedDrive {
    /// QEMU's drive for a CD drive of the guest, with the session to ask for it.
    fn find(live: &Live<'_>, vdev: Vdev) -> Result<Option<Self>, Cause> {
        let Some(stub_vdev) = live.stub_vdev(vdev) else { return Ok(None) };
        let monitor = live.ts.monitors.monitor(live.id())?;
        Ok(Some(Self { monitor, id: qemu_args::cd_device(vdev), vdev: stub_vdev }))
    }

    fn device(&self, live: &Live<'_>) -> Result<DeviceId, Cause> {
        Ok(DeviceId::of_dom0(DeviceKind::Vbd, live.stub()?, self.vdev.devid()))
    }

    fn ask<C: qmp::Command>(&self, ts: &Toolstack, command: &C) -> Result<(), Cause> {
        qmp::run(&*self.monitor, command, Instant::now() + ts.deadlines.qmp)?;
        Ok(())
    }

    /// What QEMU says of the drive.
    fn state(&self, ts: &Toolstack) -> Result<Drive, Cause> {
        let drives = qmp::run(&*self.monitor, &QueryBlock {}, Instant::now() + ts.deadlines.qmp)?;
        drives
            .into_iter()
            .find(|drive| drive.qdev.as_deref() == Some(&*self.id))
            .ok_or_else(|| Cause::NoDrive { id: self.id.clone() })
    }

    /// Takes the disc out of the open tray, if there is one.
    fn take_out(&self, ts: &Toolstack) -> StepResult {
        match self.state(ts)?.inserted {
            Some(_) => self.ask(ts, &BlockdevRemoveMedium { id: self.id.clone() }),
            None => Ok(()),
        }
    }

    /// Takes the stubdomain's PV disk away, and waits until its agent has seen that.
    fn unplug(&self, live: &Live<'_>) -> StepResult {
        release::remove(live.ts, &[self.device(live)?])?;
        // Only then a new disk of the same number is another one to its kernel.
        match self.wait_for_set(live.ts, |found| found.is_none().then_some(()))? {
            Some(()) => Ok(()),
            None => Err(self.no_set("remove")),
        }
    }

    /// Gives the stubdomain a PV disk for the disc, if there is one.
    fn plug(&self, live: &Live<'_>, disk: &Disk, backing: &DiskBacking) -> StepResult {
        if *backing == DiskBacking::Empty {
            return Ok(());
        }
        let mut batch = Batch::new();
        let device = self.device(live)?;
        add_device(&mut batch, &disk_node(device, disk, backing, self.vdev, true));
        batch.commit(&live.ts.xenstore)?;
        wait_for(live.ts, vec![device])
    }

    /// Has QEMU take the descriptors that the agent has made of the stubdomain's PV disk.
    fn put_in(&self, ts: &Toolstack) -> StepResult {
        let set = self.wait_for_set(ts, |found| found)?.ok_or_else(|| self.no_set("create"))?;
        self.ask(
            ts,
            &BlockdevChangeMedium {
                id: self.id.clone(),
                filename: format!("/dev/fdset/{set}"),
                // Raw, and of a device rather than of a file.
                format: "host_device".to_owned(),
                read_only_mode: "read-only".to_owned(),
            },
        )
    }

    /// Waits until QEMU's set of descriptors for the PV disk, or that there is none, is what is wanted. Nothing tells
    /// of sets: they are looked at now and then.
    fn wait_for_set<T>(
        &self,
        ts: &Toolstack,
        wanted: impl Fn(Option<u32>) -> Option<T>,
    ) -> Result<Option<T>, Cause> {
        let deadline = Instant::now() + ts.deadlines.backends;
        let opaque = StubDevid(self.vdev.devid()).to_string();
        Watcher::new().until(deadline, || {
            let sets = qmp::run(&*self.monitor, &QueryFdsets {}, Instant::now() + ts.deadlines.qmp)?;
            let ours =
                sets.iter().find(|set| set.fds.iter().any(|fd| fd.opaque.as_deref() == Some(&*opaque)));
            Ok(wanted(ours.map(|set| set.fdset_id)))
        })
    }

    fn no_set(&self, what: &'static str) -> Cause {
        Cause::NoFdset { devid: self.vdev.devid(), what }
    }
}

/// Replaces the guest's own PV device of the drive. Most guests have no use for it.
fn plug_guest(live: &Live<'_>, disk: &Disk, backing: &DiskBacking) -> StepResult {
    let id = DeviceId::of_dom0(DeviceKind::Vbd, live.domid()?, disk.vdev.devid());
    release::remove(live.ts, &[id])?;
    let mut batch = Batch::new();
    add_device(&mut batch, &disk_node(id, disk, backing, disk.vdev, false));
    batch.commit(&live.ts.xenstore)?;
    wait_for(live.ts, vec![id])
}

/// Puts the disc that the record names into the drive, whatever is there now.
fn restore(live: &mut Live<'_>, vdev: Vdev, drive: Option<&EmulatedDrive>) -> StepResult {
    let disk = drive_of(live, vdev)?;
    let backing = known_backing(live, &disk)?;
    if let Some(drive) = drive {
        if drive.state(live.ts)?.tray_open == Some(false) {
            drive.ask(live.ts, &BlockdevOpenTray { id: drive.id.clone(), force: true })?;
        }
        drive.take_out(live.ts)?;
        drive.unplug(live)?;
        drive.plug(live, &disk, &backing)?;
        if backing == DiskBacking::Empty {
            drive.ask(live.ts, &BlockdevCloseTray { id: drive.id.clone() })?;
        } else {
            drive.put_in(live.ts)?;
        }
    }
    plug_guest(live, &disk, &backing)
}

impl OnGuest for Changing<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::ChangeMedium { vdev: self.vdev }
    }
}

/// Undoes a change that an earlier process began, or completes it with the new disc in the drive.
pub(crate) fn resume_change<'a>(
    live: Live<'a>,
    vdev: Vdev,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> Result<(Live<'a>, Result<Resumed, Vec<UndoFailure>>), Cause> {
    let drive = EmulatedDrive::find(&live, vdev)?;
    // It is not known whether the tray was open before.
    let mut changing = Changing {
        drive,
        opened: true,
        out: true,
        ..Changing::new(live, vdev, DiskSource::Empty, Detach::Force)
    };
    let resumed = resume(&steps(), &mut changing, cursor, events);
    Ok((changing.live, resumed))
}
