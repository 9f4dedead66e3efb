//! Restarting a guest that has ended. Its state file says so, see `toolstack::operation`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use toolstack::{Guest, GuestId, Toolstack, Turn};

use super::job::Ended;
use crate::refusal::{JobError, chain};

/// A write of a guest's state file on a thread that may wait for the disk: no job of the guest begins before its end.
/// Cheap to clone; all clones are the same write.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingWrite(Option<Arc<Progress>>);

/// Whether a write has ended.
#[derive(Debug, Default)]
struct Progress {
    is_done: Mutex<bool>,
    done: Condvar,
}

impl PendingWrite {
    /// Records a delayed restart, so that the next daemon waits only for the rest. To be called in the event loop.
    pub(super) fn delay(self, toolstack: &Toolstack, guest: &Guest, turn: Turn) -> Self {
        self.then(toolstack, guest, move |toolstack, guest| toolstack.delay_restart(guest.id(), turn))
    }

    /// Records that a delayed restart will not be. To be called in the event loop.
    pub(super) fn cancel(self, toolstack: &Toolstack, guest: &Guest) -> Self {
        self.then(toolstack, guest, |toolstack, guest| toolstack.cancel_restart(guest.id()))
    }

    fn then(
        self,
        toolstack: &Toolstack,
        guest: &Guest,
        write: impl FnOnce(&Toolstack, &Guest) -> Result<(), toolstack::Error> + Send + 'static,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        let (toolstack, guest, own) = (toolstack.clone(), guest.clone(), Ending(Arc::clone(&progress)));
        tokio::task::spawn_blocking(move || {
            // As long as the kernel needs for the write before; a job's wait has a deadline.
            self.until_done();
            if let Err(error) = write(&toolstack, &guest) {
                tracing::error!(
                    guest = guest.name,
                    error = chain(&error),
                    "cannot record a restart; if outriggerd is killed meanwhile, the guest is not restarted as planned"
                );
            }
            drop(own);
        });
        Self(Some(progress))
    }

    /// Waits until it is written. To be called on a job's thread.
    ///
    /// # Errors
    /// [`JobError::DiskHangs`] when it is not written by then. Another job can wait for it again.
    pub(super) fn wait(&self, patience: Duration) -> Result<(), JobError> {
        let Some(Progress { is_done, done }) = self.0.as_deref() else { return Ok(()) };
        let lock = is_done.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = done.wait_timeout_while(lock, patience, |is_done| !*is_done);
        let (is_done, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *is_done { Ok(()) } else { Err(JobError::DiskHangs { after: patience }) }
    }

    fn until_done(&self) {
        let Some(Progress { is_done, done }) = self.0.as_deref() else { return };
        let lock = is_done.lock().unwrap_or_else(PoisonError::into_inner);
        drop(done.wait_while(lock, |is_done| !*is_done));
    }
}

/// Ends a write when it is dropped, also by a panic.
struct Ending(Arc<Progress>);

impl Drop for Ending {
    fn drop(&mut self) {
        *self.0.is_done.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.done.notify_all();
    }
}

/// Preserves the ended guest under another name; a new one of its configuration follows, whose identity goes to `next`.
pub(super) fn preserve_as(
    toolstack: &Toolstack,
    old: &Guest,
    turn: Turn,
    next: impl FnOnce(GuestId),
) -> Ended {
    // As xl names what it preserves, but with the domid, which no other guest has.
    let name = format!("{}-{}", old.name, old.domid);
    let (preserved, successor) = toolstack.preserve_and_restart(old.id(), &name, turn)?;
    next(successor);
    Ok(Some(preserved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_does_not_wait_for_ever_for_a_disk_that_hangs() {
        let progress = Arc::new(Progress::default());
        let write = PendingWrite(Some(Arc::clone(&progress)));
        for _ in 0..2 {
            let error = write.clone().wait(Duration::from_millis(20)).unwrap_err();
            assert!(matches!(error, JobError::DiskHangs { .. }), "{error}");
            assert!(error.to_string().contains("state file"), "{error}");
        }
        drop(Ending(progress));
        write.wait(Duration::from_secs(20)).unwrap();
        PendingWrite::default().wait(Duration::ZERO).unwrap();
    }
}
