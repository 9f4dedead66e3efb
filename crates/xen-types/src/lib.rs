//! Xen's own words as types: domids, grant references, event ports, frame numbers, sizes, releases,
//! and domains' names as names of files.
//!
//! This crate has no opinion, and no I/O but to ask Linux which release of Xen runs. Everything that crosses a function's edge in this workspace and is a
//! number to Xen has its type here, so that a port cannot be taken for a grant reference nor KiB for pages.
#![forbid(unsafe_code)]

mod domid;
mod file_name;
mod numbers;
mod release;
mod size;

pub use domid::{DomId, DomIdError};
pub use file_name::{MAX_FILE_NAME, file_name};
pub use numbers::{EventPort, Gfn, GrantRef};
pub use release::Release;
pub use size::{KiB, PAGE_SIZE};
