//! What can be asked of guests and domains without changing them.
//!
//! A screenshot needs a disk of the stubdomain for a moment, and so is an operation with steps like any change.

mod devices;
mod info;
mod list;
mod listing;
mod picture;
pub(crate) mod screenshot;
mod vcpus;

pub use devices::{ChannelEntry, DiskEntry, Link, NicEntry};
pub use info::GuestInfo;
pub use list::DomainEntry;
pub use listing::Listing;
pub(crate) use picture::redraw;
pub use screenshot::Screenshot;
pub(crate) use screenshot::Turns;
pub use vcpus::DomainVcpus;
