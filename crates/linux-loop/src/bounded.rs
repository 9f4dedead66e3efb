//! A look at a file or loop device that ends, whatever its file system does.
//!
//! To return a loop device's state, the kernel asks the file system of the file behind it (`loop_get_status` in
//! `drivers/block/loop.c`). One that is remote, or in user space, may never answer, and no signal ends the wait. So
//! each look has a thread, which is left behind if it has to be.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{AttachedLoop, LoopError};

/// How long a file system may take. One on a local disk takes microseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// The most threads that are left behind.
const MAX_STUCK: usize = 256;

/// Paths for which a thread waits that was left behind. Others may look at the same path meanwhile.
static STUCK: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn stuck() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is whole between any two statements that hold the lock.
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is attached to a device; nothing when it is free, gone, or does not answer.
pub(crate) fn look_at(path: &Path) -> Result<Option<AttachedLoop>, LoopError> {
    let failed = |source| LoopError::Read { device: path.to_owned(), source };
    look_within(LIMIT, path, crate::look_at).map_err(failed)?.transpose().map(Option::flatten)
}

/// What `look` returns; `None` when that takes longer than the limit, since the file system does not answer.
///
/// A path is not looked at again while an earlier look at it has not ended.
///
/// # Errors
/// When no thread can be started, 256 looks have not ended, or `look` panics.
pub fn look_within<T: Send + 'static>(
    limit: Duration,
    path: &Path,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let known = stuck();
    let (is_stuck, count) = (known.contains(path), known.len());
    drop(known);
    if is_stuck {
        return Ok(None);
    }
    if count >= MAX_STUCK {
        // Not the same as no answer: this path was never looked at.
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let (sender, answer) = sync_channel(1);
    let (device, ended) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
    let end = Arc::clone(&ended);
    let work = move || {
        let found = look(&device);
        let mut devices = stuck();
        end.store(true, Ordering::Relaxed);
        devices.remove(&device);
        drop(devices);
        let _ = sender.send(found);
    };
    std::thread::Builder::new().name("look at a file".to_owned()).spawn(work)?;
    match answer.recv_timeout(limit) {
        Ok(found) => Ok(Some(found)),
        Err(RecvTimeoutError::Timeout) => {
            let mut devices = stuck();
            // The lock orders this and the end of the thread.
            if !ended.load(Ordering::Relaxed) {
                devices.insert(path.to_owned());
            }
            Ok(None)
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::Interrupted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_does_not_answer_delays_one_look() {
        let path = Path::new("/dev/loop-stuck");
        let (release, wait) = sync_channel::<()>(0);
        let hang = move |_: &Path| {
            let _ = wait.recv();
            1
        };
        assert_eq!(look_within(Duration::from_millis(20), path, hang).unwrap(), None);
        // Not asked again while the first thread waits.
        let never = |_: &Path| -> i32 { panic!("it is asked again") };
        assert_eq!(look_within(Duration::from_secs(60), path, never).unwrap(), None);
        release.send(()).unwrap();
        while stuck().contains(path) {
            std::thread::yield_now();
        }
        assert_eq!(look_within(Duration::from_secs(60), path, |_| 2).unwrap(), Some(2));
    }
}
