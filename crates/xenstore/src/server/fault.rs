//! Faults that tests ask the server for.

use xen_types::DomId;

use crate::wire::ErrorCode;

/// A fault that was asked for.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) domid: DomId,
    /// The number of the request among all of this domain's.
    pub(super) at: u64,
    /// What it is answered with; nothing: the connection is dropped.
    pub(super) code: Option<ErrorCode>,
}
