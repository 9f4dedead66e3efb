//! Groups of writes to xenstore.

use xenstore::{NodePath, Permissions, Request, Store, StoreError, Xenstore, XsPath};

use crate::error::Cause;

/// Removals and writes that belong together: removals first, then the rest in order.
///
/// The requests are sent without waiting in between, so a whole subtree costs about one round trip.
#[derive(Default)]
pub(crate) struct Batch {
    removals: Vec<XsPath>,
    requests: Vec<Request>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Removes what an earlier domain of the same number may have left.
    pub(crate) fn remove(&mut self, path: XsPath) -> &mut Self {
        self.removals.push(path);
        self
    }

    /// Makes an empty node with permissions of its own; nodes made below it later have them too.
    pub(crate) fn make(&mut self, path: &XsPath, permissions: &Permissions) -> &mut Self {
        self.requests.push(Request::write(path, b""));
        self.requests.push(Request::set_perms(path, permissions));
        self
    }

    /// Writes a value.
    pub(crate) fn write(&mut self, path: &dyn NodePath, value: impl AsRef<[u8]>) -> &mut Self {
        self.requests.push(Request::write(path, value.as_ref()));
        self
    }

    /// Writes a value and sets its node's permissions.
    pub(crate) fn write_with(
        &mut self,
        path: &XsPath,
        value: impl AsRef<[u8]>,
        permissions: &Permissions,
    ) -> &mut Self {
        self.requests.push(Request::write(path, value.as_ref()));
        self.requests.push(Request::set_perms(path, permissions));
        self
    }

    /// Does all of it without a transaction, which costs xenstored a third of the time.
    ///
    /// For what nobody looks at before something else is written, and for removals. A failure leaves a part.
    pub(crate) fn apply(&self, xenstore: &Xenstore) -> Result<(), Cause> {
        for path in &self.removals {
            xenstore.rm(path)?;
        }
        Ok(xenstore.request_all(&self.requests)?)
    }

    /// Commits all of it: others see nothing of it or all.
    pub(crate) fn commit(&self, xenstore: &Xenstore) -> Result<(), Cause> {
        let result: Result<(), StoreError> = xenstore.transaction(|transaction| {
            for path in &self.removals {
                transaction.rm(path)?;
            }
            transaction.request_all(&self.requests)
        });
        Ok(result?)
    }
}
