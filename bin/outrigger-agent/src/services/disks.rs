//! The stubdomain's PV disks: waits for those that QEMU's arguments name, and notices later ones.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xenbus::{DeviceKind, XenbusState};
use xenstore::{Connection, RelPath, Store};

use crate::error::AgentError;
use crate::machines::media::{Change, PvDisk};
use crate::system::{XEN_DEVICES, xen_devices};

/// How long a disk may take to appear, from the moment when the agent begins to wait.
const APPEAR: Duration = Duration::from_secs(10);

/// How long a device may refuse to be opened after it has appeared. It is a moment, unless the disk is going.
const GO_LIVE: Duration = Duration::from_secs(1);
/// The interval between attempts; no event that the agent may watch reports this.
const TRY_EVERY: Duration = Duration::from_millis(1);

/// The most PV disks that are looked at.
const DISKS_MAX: usize = 256;

/// Opens the medium of a CD drive, read-only: the device of a PV disk that may just have come.
pub(crate) fn open_medium(path: &str) -> Result<File, AgentError> {
    open_live(Instant::now() + GO_LIVE, || File::open(path))
        .map_err(|error| AgentError::Medium(path.to_owned(), error))
}

/// Whether the toolstack says that a PV disk is a CD drive's.
pub(crate) fn is_cdrom(disk: &PvDisk, store: &Connection) -> bool {
    let kind = store.read_string(&vbd(&format!("/{}/device-type", disk.devid)), 16);
    matches!(kind.ok().flatten().as_deref(), Some("cdrom"))
}

/// Opens a disk that has just come: Linux makes its node in /dev a moment before it can be opened, and returns ENXIO
/// until then (`device_add_disk` in `block/genhd.c`).
fn open_live(deadline: Instant, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    loop {
        match open() {
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) && Instant::now() < deadline => {
                std::thread::sleep(TRY_EVERY);
            }
            done => return done,
        }
    }
}

/// Notices PV disks that come and go.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    news: Inotify,
    known: Vec<PvDisk>,
}

impl DiskWatch {
    /// Watches from now on; nothing is known yet, so that the first look finds all that exist.
    pub(crate) fn open() -> Result<Self, AgentError> {
        let news = watch_dev(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE)?;
        Ok(Self { news, known: Vec::new() })
    }

    /// What changed since the last look, with what went first.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        while self.news.read_events().is_ok_and(|events| !events.is_empty()) {}
        let now = present();
        let changes = difference(&self.known, &now);
        self.known = now;
        changes
    }
}

impl AsFd for DiskWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

fn difference(before: &[PvDisk], now: &[PvDisk]) -> Vec<Change> {
    let went = before.iter().filter(|disk| !now.contains(disk)).cloned().map(Change::Went);
    let came = now.iter().filter(|disk| !before.contains(disk)).cloned().map(Change::Came);
    went.chain(came).collect()
}

/// The PV disks that have a device now.
fn present() -> Vec<PvDisk> {
    xen_devices().iter().filter_map(|name| connected(name)).take(DISKS_MAX).collect()
}

/// The disk of the xenbus device `vbd-<devid>`, if it has one. Its device is gone a moment before the rest of it.
fn connected(device: &str) -> Option<PvDisk> {
    let devid = device.strip_prefix("vbd-")?.parse().ok()?;
    let folder = Path::new(XEN_DEVICES).join(device).join("block");
    let name = fs::read_dir(folder).ok()?.next()?.ok()?.file_name().into_string().ok()?;
    let sequence = fs::read_to_string(format!("/sys/block/{name}/diskseq")).ok();
    let sequence = sequence.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let disk = PvDisk { devid, name, sequence };
    Path::new(&disk.path()).exists().then_some(disk)
}

fn watch_dev(events: AddWatchFlags) -> Result<Inotify, AgentError> {
    let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(AgentError::system("watch /dev"))?;
    news.add_watch("/dev", events).map_err(AgentError::system("watch /dev"))?;
    Ok(news)
}

/// Waits until every device exists; calls `waits` when it has to.
pub(crate) fn wait_for(disks: &[String], store: &Connection, waits: impl FnOnce()) -> Result<(), AgentError> {
    if first_missing(disks).is_some() {
        waits();
        wait_for_nodes(disks, store)?;
    }
    // QEMU opens them next, and reports best what is wrong with one that cannot be opened even so.
    let deadline = Instant::now() + GO_LIVE;
    disks.iter().for_each(|disk| drop(open_live(deadline, || File::open(disk))));
    Ok(())
}

/// Waits until every device has its node.
fn wait_for_nodes(disks: &[String], store: &Connection) -> Result<(), AgentError> {
    let news = watch_dev(AddWatchFlags::IN_CREATE)?;
    let deadline = Instant::now() + APPEAR;
    // Looked at again after the watch is set: what came before it causes no event.
    while let Some(disk) = first_missing(disks) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let device = disk.clone();
            return Err(AgentError::NoDisk { device, seconds: APPEAR.as_secs(), backend: states(store) });
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(news.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(AgentError::system("wait for a disk")(errno)),
        }
        while news.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
    Ok(())
}

fn first_missing(disks: &[String]) -> Option<&String> {
    disks.iter().find(|disk| !Path::new(disk).exists())
}

/// Which PV disks there are and how far each has come, for people.
fn states(store: &Connection) -> String {
    const SHOWN: usize = 8;
    let Ok(Some(devids)) = store.list(&vbd("")) else { return "the stubdomain has no PV disks".to_owned() };
    let of = |devid: &String| {
        let state = store.read(&vbd(&format!("/{devid}/state"))).ok().flatten();
        let state = state.and_then(|value| XenbusState::parse(&value));
        format!("{devid} is {}", state.map_or("without a state", XenbusState::word))
    };
    let known: Vec<String> = devids.iter().take(SHOWN).map(of).collect();
    format!("of the stubdomain's PV disks, {}", known.join(", "))
}

fn vbd(below: &str) -> RelPath {
    RelPath::new(format!("device/{}{below}", DeviceKind::Vbd.name()))
        .expect("xenstore lists only names that make a path")
}

#[cfg(test)]
mod tests {
    use xen_types::DomId;
    use xenstore::server::Server;
    use xenstore::{Access, Permissions, XsPath};

    use super::*;

    fn disk(devid: u32, sequence: u64) -> PvDisk {
        PvDisk { devid, name: "xvdb".to_owned(), sequence }
    }

    #[test]
    fn disk_that_is_not_live_yet_is_opened_when_it_is() {
        let tries = std::cell::Cell::new(0);
        let late = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(Errno::ENXIO.into()) } else { File::open("/dev/null") }
        };
        assert!(open_live(Instant::now() + GO_LIVE, late).is_ok());
        assert_eq!(tries.get(), 3);
    }

    #[test]
    fn disk_that_is_gone_is_not_waited_for() {
        let tries = std::cell::Cell::new(0);
        let gone = || {
            tries.set(tries.get() + 1);
            Err(Errno::ENOENT.into())
        };
        assert!(open_live(Instant::now() + GO_LIVE, gone).is_err());
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn disks_that_do_not_come_are_described_by_their_states() {
        let stub = DomId::new(7).unwrap();
        let server = Server::start();
        let (dom0, own) = (server.connection(DomId::DOM0), server.connection(stub));
        assert_eq!(states(&own), "the stubdomain has no PV disks");
        for (devid, state) in [("51712", "4"), ("51728", "1"), ("51744", "what")] {
            let path = XsPath::domain(stub).join(format!("device/vbd/{devid}/state")).unwrap();
            dom0.write(&path, state.as_bytes()).unwrap();
        }
        let readable = Permissions::owned_by(DomId::DOM0).allow(stub, Access::Read);
        for path in server.dump().into_keys() {
            dom0.set_perms(&XsPath::new(path).unwrap(), &readable).unwrap();
        }
        let said = "of the stubdomain's PV disks, 51712 is connected, 51728 is initialising, 51744 is without a state";
        assert_eq!(states(&own), said);
    }

    #[test]
    fn a_medium_that_cannot_be_opened_is_named() {
        let error = open_medium("/nonexistent/xvdb").unwrap_err();
        assert!(
            crate::error::chain(&error).starts_with("Cannot open the medium /nonexistent/xvdb: "),
            "{error}"
        );
    }

    #[test]
    fn another_disk_in_the_same_place_goes_and_comes() {
        let changes = difference(&[disk(51712, 1), disk(51728, 2)], &[disk(51712, 1), disk(51728, 5)]);
        assert_eq!(changes, [Change::Went(disk(51728, 2)), Change::Came(disk(51728, 5))]);
    }
}
