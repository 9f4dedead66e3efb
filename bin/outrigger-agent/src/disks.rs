//! Waits for the PV disks that QEMU's arguments name.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use xenstore::{Connection, RelPath, Store};

use crate::error::AgentError;

/// How long a disk may take to appear, from the moment when the agent begins to wait.
const APPEAR: Duration = Duration::from_secs(10);

/// Waits until every device is there.
pub(crate) fn wait_for(disks: &[String], store: &Connection) -> Result<(), AgentError> {
    if first_missing(disks).is_none() {
        return Ok(());
    }
    let news = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(AgentError::system("watch /dev"))?;
    news.add_watch("/dev", AddWatchFlags::IN_CREATE).map_err(AgentError::system("watch /dev"))?;
    let deadline = Instant::now() + APPEAR;
    // Looked at again after the watch is set: what came before it tells nothing.
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

/// Which PV disks there are and how far each has come (`XenbusState`), for people.
fn states(store: &Connection) -> String {
    const SHOWN: usize = 8;
    let Ok(Some(devids)) = store.list(&vbd("")) else { return "the stubdomain has no PV disks".to_owned() };
    let of = |devid: &String| {
        let state = store.read_string(&vbd(&format!("/{devid}/state")), 4).ok().flatten();
        format!("{devid} {}", state.as_deref().unwrap_or("?"))
    };
    let known: Vec<String> = devids.iter().take(SHOWN).map(of).collect();
    format!("its PV disks and their states (4 is connected): {}", known.join(", "))
}

fn vbd(below: &str) -> RelPath {
    RelPath::new(format!("device/vbd{below}")).expect("xenstore lists only names that make a path")
}
