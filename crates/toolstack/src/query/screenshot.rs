//! Screenshots of a guest.
//!
//! QEMU can only write a screenshot to a file, and its files are in the stubdomain. So the stubdomain temporarily gets
//! a disk, a file in dom0, to which QEMU writes. QEMU may be hostile: the file is read within bounds and encoded again.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::{Access, Disk, DiskFormat, DiskKind, DiskSource, Vdev, VdevBus};
use qmp::commands::{BlockdevAdd, BlockdevDel, Screendump};
use qmp::{ErrorClass, QmpError};
use serde_json::json;
use xenbus::{DeviceId, DeviceKind};

use super::picture::{self, ROOM};
use crate::batch::Batch;
use crate::device::backend::wait_for;
use crate::device::disk::attach::detach_strays;
use crate::device::disk::attach_image;
use crate::device::nodes::{DiskBacking, add_device, disk_node};
use crate::device::release;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::wait::Watcher;
use crate::{Toolstack, UndoFailure};

/// QEMU's name for the disk while it is looked whether it is there.
const PROBE: &str = "outrigger-screen";
/// Where the letters of the stubdomain's disks end.
const LETTERS: u32 = 26;

/// A screenshot. No other is taken before it is dropped.
#[derive(Debug)]
pub struct Screenshot {
    /// It as a PNG, RGB of 8 bits.
    pub png: Vec<u8>,
    _turn: Turn,
}

/// Lets one screenshot into memory at a time.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<bool>,
    free: Condvar,
}

/// The right to have a screenshot in memory.
#[derive(Debug)]
struct Turn(Arc<Turns>);

impl Turns {
    /// Waits for the turn, at most this long.
    fn take(self: &Arc<Self>, patience: Duration) -> Option<Turn> {
        // A flag is right whatever its holder did.
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.free.wait_timeout_while(taken, patience, |taken| *taken);
        let (mut taken, result) = waited.unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() {
            return None;
        }
        *taken = true;
        Some(Turn(Arc::clone(self)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

/// A screenshot in progress.
struct Shot<'a> {
    live: Live<'a>,
    vdev: Vdev,
    backing: DiskBacking,
    png: Vec<u8>,
}

fn steps<'b>() -> Vec<Step<Shot<'b>>> {
    vec![
        Step::new(ENTRY, "record the screenshot", |s: &mut Shot<'_>| s.enter(Cursor::back(ENTRY)))
            .undo(Shot::clear)
            .entry(),
        Step::new("make-file", "create a file for it", Shot::make_room),
        Step::new("attach-stubdomain", "attach a disk to the stubdomain", Shot::plug),
        Step::new("draw", "have QEMU write it", Shot::draw),
        // What QEMU wrote is in the file when its disk is gone.
        Step::new("detach-stubdomain", "detach the disk", Shot::unplug),
        Step::new("read", "read the screenshot", Shot::read),
        Step::new("clear", "clean up", Shot::clear).point_of_no_return(),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::screenshot`], in order.
    #[must_use]
    pub fn screenshot_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Takes a screenshot of a running guest. There is one at a time, until it is dropped: a hostile stubdomain decides
    /// how much of dom0's memory a picture takes, up to its limit.
    ///
    /// # Errors
    /// [`Cause::NotNow`] while another screenshot is in memory for long, [`Error::Step`], and nothing is left: among others when the guest has no screen.
    pub fn screenshot(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Screenshot, Error> {
        let live = Live::settled(self, id, events)?;
        let turn = self.screens.take(self.deadlines.backends).ok_or_else(|| Cause::NotNow {
            name: live.record.name.clone(),
            why: "has to wait, because another guest's screenshot takes long: try again".to_owned(),
        })?;
        let vdev = free_disk(&live.record)?;
        let mut shot = Shot { live, vdev, backing: DiskBacking::Empty, png: Vec::new() };
        let left = run(&steps(), &mut shot, &self.faults, events)?;
        if left.is_empty() {
            Ok(Screenshot { png: shot.png, _turn: turn })
        } else {
            Err(Error::NotDetached { name: shot.live.record.name, left })
        }
    }
}

/// The last letter of the stubdomain's disks that has none.
fn free_disk(record: &GuestRecord) -> Result<Vdev, Cause> {
    let taken = |vdev: &Vdev| record.emulated_disks.iter().any(|disk| disk.stub_vdev == *vdev);
    let letters = (0..LETTERS).rev().filter_map(|letter| Vdev::new(VdevBus::Xvd, letter, 0));
    letters.into_iter().find(|vdev| !taken(vdev)).ok_or_else(|| Cause::NotNow {
        name: record.name.clone(),
        why: "has too many emulated disks: its stubdomain has no free drive letter".to_owned(),
    })
}

/// The file that QEMU draws onto.
fn file(live: &Live<'_>) -> PathBuf {
    live.ts.paths.state.join("screens").join(live.record.uuid.to_string())
}

fn id(live: &Live<'_>, vdev: Vdev) -> Result<DeviceId, Cause> {
    Ok(DeviceId::of_dom0(DeviceKind::Vbd, live.stub()?, vdev.devid()))
}

/// Undoes a screenshot that an earlier process began.
pub(crate) fn resume_shot<'a>(
    live: Live<'a>,
    vdev: Vdev,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut shot = Shot { live, vdev, backing: DiskBacking::Empty, png: Vec::new() };
    let resumed = resume(&steps(), &mut shot, cursor, events);
    (shot.live, resumed)
}

impl OnGuest for Shot<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::Screenshot { vdev: self.vdev }
    }
}

impl Shot<'_> {
    fn disk(&self) -> Disk {
        Disk {
            vdev: self.vdev,
            source: DiskSource::Path(file(&self.live).display().to_string()),
            format: DiskFormat::Raw,
            access: Access::ReadWrite,
            kind: DiskKind::Disk,
            backend: None,
            discard: None,
            direct_io_safe: false,
            trusted: true,
        }
    }

    fn device(&self) -> String {
        format!("/dev/{}", self.vdev)
    }

    fn make_room(&mut self) -> StepResult {
        let (ts, disk) = (self.live.ts, self.disk());
        ts.host.make_sparse(&file(&self.live), ROOM)?;
        let known = self.live.record.loops.len();
        self.backing = attach_image(ts, &mut self.live.record, &disk, None)?;
        // It is none of the guest's disks; its tag tells whose it is.
        self.live.record.loops.truncate(known);
        Ok(())
    }

    fn plug(&mut self) -> StepResult {
        let mut batch = Batch::new();
        let id = id(&self.live, self.vdev)?;
        add_device(&mut batch, &disk_node(id, &self.disk(), &self.backing, self.vdev, true));
        batch.commit(&self.live.ts.xenstore)?;
        wait_for(self.live.ts, vec![id])
    }

    /// QEMU makes a file that is not there, so it is asked first whether the disk is.
    fn draw(&mut self) -> StepResult {
        let ts = self.live.ts;
        let monitor = ts.monitors.monitor(self.live.id())?;
        let deadline = || Instant::now() + ts.deadlines.qmp;
        let node = json!({"driver": "host_device", "node-name": PROBE, "filename": self.device(), "read-only": true});
        let probe = BlockdevAdd(node.as_object().cloned().unwrap_or_default());
        let there = Watcher::new().until(Instant::now() + ts.deadlines.backends, || {
            match qmp::run(&*monitor, &probe, deadline()) {
                Ok(_) => Ok(Some(())),
                Err(QmpError::Refused { class: ErrorClass::Generic, .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        if there.is_none() {
            let (path, after) = (id(&self.live, self.vdev)?.back().to_string(), ts.deadlines.backends);
            return Err(Cause::Backend { path, after, state: "not seen by QEMU".to_owned(), error: None });
        }
        qmp::run(&*monitor, &BlockdevDel { node_name: PROBE.to_owned() }, deadline())?;
        let dump = Screendump { filename: self.device(), format: None };
        qmp::run(&*monitor, &dump, Instant::now() + ts.deadlines.screen)?;
        Ok(())
    }

    fn unplug(&mut self) -> StepResult {
        release::remove(self.live.ts, &[id(&self.live, self.vdev)?])?;
        detach_strays(&self.live)
    }

    /// Removes the disk and the file, as far as they exist.
    fn clear(&mut self) -> StepResult {
        let (ts, live) = (self.live.ts, &self.live);
        release::remove(ts, &[id(live, self.vdev)?])?;
        detach_strays(live)?;
        Ok(ts.host.remove_file(&file(live))?)
    }

    fn read(&mut self) -> StepResult {
        let drawn = self.live.ts.host.read_file(&file(&self.live), ROOM)?;
        self.png = picture::redraw(&drawn)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_screenshot_at_a_time() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(Duration::ZERO).unwrap();
        assert!(turns.take(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(Duration::from_secs(60)).is_some());
            drop(first);
            assert!(waits.join().unwrap());
        });
        assert!(turns.take(Duration::ZERO).is_some());
    }
}
