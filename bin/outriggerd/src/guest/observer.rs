//! Observers, which are notified when guests appear, change and end.

use toolstack::Guest;

/// An observer that is notified when guests appear, change and disappear.
pub(crate) trait Observer: Send + Sync {
    /// The guest is new, or its name or its stubdomain has changed.
    fn has(&self, guest: &Guest);
    /// It is gone.
    fn gone(&self, guest: &Guest);
}
