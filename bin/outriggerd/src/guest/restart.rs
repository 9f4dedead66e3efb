//! Restarting a guest that has ended. Its state file says so, see `toolstack::operation`.

use std::sync::mpsc;

use toolstack::{Guest, GuestId, Toolstack, Turn};

use super::job::Ended;
use crate::refusal::chain;

/// A write of a guest's state file on a thread that may wait for the disk: no job of the guest begins before its end.
#[derive(Debug, Default)]
pub(super) struct PendingWrite(Option<mpsc::Receiver<()>>);

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
        let (done, written) = mpsc::channel();
        let (toolstack, guest) = (toolstack.clone(), guest.clone());
        tokio::task::spawn_blocking(move || {
            self.wait();
            if let Err(error) = write(&toolstack, &guest) {
                tracing::error!(
                    guest = guest.name,
                    error = chain(&error),
                    "cannot record a restart; if outriggerd is killed meanwhile, the guest is not restarted as planned"
                );
            }
            // The driver may have ended.
            let _ = done.send(());
        });
        Self(Some(written))
    }

    /// Waits for its end; also when the daemon ends before it has begun.
    pub(super) fn wait(self) {
        if let Some(written) = self.0 {
            let _ = written.recv();
        }
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
