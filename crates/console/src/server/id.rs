use core::fmt;

use xen_types::DomId;

/// Names one console of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsoleId {
    /// The domain that it belongs to.
    pub domid: DomId,
    /// 0 is the primary console, others are secondary ones.
    pub number: u32,
}

impl fmt::Display for ConsoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.domid, self.number)
    }
}
