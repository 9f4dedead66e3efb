//! Names that guests are about to get.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The reserved names. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    reserved: Arc<Mutex<BTreeSet<String>>>,
}

/// A reserved name, until it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    names: Names,
    name: String,
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // The set is whole between any two statements that hold the lock.
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a name; nothing when it is reserved already.
    pub(crate) fn reserve(&self, name: &str) -> Option<Reservation> {
        let reserved = self.lock().insert(name.to_owned());
        reserved.then(|| Reservation { names: self.clone(), name: name.to_owned() })
    }

    /// Whether a name is reserved.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().contains(name)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.names.lock().remove(&self.name);
    }
}
