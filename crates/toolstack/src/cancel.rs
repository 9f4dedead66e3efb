//! Giving up operations that take long and can be given up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xen::Cancel;

use crate::domain::GuestId;

/// The operations in progress that can be given up, one a guest at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancels(Arc<Mutex<BTreeMap<GuestId, Cancel>>>);

/// An operation that can be given up, until it is dropped.
pub(crate) struct Cancellable {
    cancels: Cancels,
    guest: GuestId,
    pub(crate) cancel: Cancel,
}

impl Cancels {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GuestId, Cancel>> {
        // The map is whole between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation of this guest begins.
    pub(crate) fn begin(&self, guest: GuestId) -> Cancellable {
        let cancel = Cancel::new();
        self.lock().insert(guest, cancel.clone());
        Cancellable { cancels: self.clone(), guest, cancel }
    }

    /// Gives up the operation of this guest; returns whether there is one.
    pub(crate) fn cancel(&self, guest: GuestId) -> bool {
        self.lock().get(&guest).inspect(|cancel| cancel.cancel()).is_some()
    }
}

impl Cancellable {
    /// From now on it cannot be given up; returns whether it has been.
    pub(crate) fn ends(&self) -> bool {
        // Whoever wants to give it up holds the lock until it is cancelled.
        self.cancels.lock().remove(&self.guest);
        self.cancel.is_cancelled()
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        self.cancels.lock().remove(&self.guest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_can_be_given_up_while_it_is_in_progress() {
        let (cancels, guest) = (Cancels::default(), GuestId(config::Uuid::from_u128(1)));
        assert!(!cancels.cancel(guest));
        let operation = cancels.begin(guest);
        assert!(!operation.cancel.is_cancelled() && cancels.cancel(guest) && operation.cancel.is_cancelled());
        drop(operation);
        assert!(!cancels.cancel(guest));
    }

    #[test]
    fn operation_that_ends_cannot_be_given_up_any_more() {
        let (cancels, guest) = (Cancels::default(), GuestId(config::Uuid::from_u128(1)));
        let operation = cancels.begin(guest);
        assert!(!operation.ends() && !cancels.cancel(guest) && !operation.cancel.is_cancelled());
        let operation = cancels.begin(guest);
        assert!(cancels.cancel(guest) && operation.ends() && !cancels.cancel(guest));
    }
}
