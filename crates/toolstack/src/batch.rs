//! Groups of writes to xenstore that become visible at once.

use xenstore::{NodePath, Permissions, Request, Store, StoreError, Xenstore, XsPath};

use crate::error::Cause;

/// Writes that go into one transaction: removals first, then the rest in order.
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

    /// Commits all of it.
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
