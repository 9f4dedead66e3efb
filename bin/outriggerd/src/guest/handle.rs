//! What others have of a guest's driver: its queue of requests.

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::request::{Asked, Request};
use crate::reply::Replies;

/// Requests that may wait for a driver.
const QUEUE: usize = 64;

/// A driver's handle.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    requests: mpsc::Sender<Asked>,
    look: Arc<Notify>,
}

/// The driver's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Requests of clients.
    pub(crate) requests: mpsc::Receiver<Asked>,
    /// Some domain has changed in Xen.
    pub(crate) look: Arc<Notify>,
}

/// Why a request was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotQueued {
    /// Too many requests wait already.
    Full,
    /// The driver has ended: there is no guest any more.
    Ended,
}

impl Handle {
    /// A handle and the driver's end of it.
    pub(crate) fn new() -> (Self, Inbox) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let look = Arc::new(Notify::new());
        (Self { requests: sender, look: Arc::clone(&look) }, Inbox { requests, look })
    }

    /// Queues a request; its answers come through `replies`.
    pub(crate) fn ask(&self, request: Request, replies: &Replies) -> Result<(), NotQueued> {
        let asked = Asked { request, replies: replies.clone() };
        self.requests.try_send(asked).map_err(|error| match error {
            TrySendError::Full(_) => NotQueued::Full,
            TrySendError::Closed(_) => NotQueued::Ended,
        })
    }

    /// Makes the driver look at its guest.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Quick;
    use super::*;

    #[test]
    fn queue_is_bounded() {
        let (handle, inbox) = Handle::new();
        let (replies, _answers) = mpsc::channel(1);
        let ask = || handle.ask(Request::Quick(Quick::Pause), &replies);
        for _ in 0..QUEUE {
            ask().unwrap();
        }
        assert_eq!(ask(), Err(NotQueued::Full));
        drop(inbox);
        assert_eq!(ask(), Err(NotQueued::Ended));
    }
}
