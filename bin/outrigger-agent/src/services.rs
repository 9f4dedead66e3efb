//! What the agent serves and watches: each is one kind of device, socket or protocol with its I/O.

pub(crate) mod bridge;
pub(crate) mod consoles;
pub(crate) mod disks;
pub(crate) mod log;
pub(crate) mod net;
pub(crate) mod pipe;
pub(crate) mod relay;
pub(crate) mod rtnl;
pub(crate) mod store;
