//! xl's file header, libxl's records, libxc's for checking: codecs.
//!
//! A file of a saved guest, and the stream of a migration, consist of these parts in this order:
//!
//! | part | module |
//! |---|---|
//! | xl's header, with the guest's configuration as libxl's JSON and, behind it, our own [`metadata`] | [`header`], [`libxl_json`] |
//! | the beginning of libxl's stream | [`libxl`] |
//! | libxc's stream, which libxenguest writes and reads: memory, CPUs, Xen's own devices | [`libxc`], which only checks it |
//! | the rest of libxl's stream, with the state of QEMU | [`libxl`], [`qemu`] |
//!
//! Stock xl of Xen 4.17 to 4.22 reads what this crate writes, and the other way round. Every length is bounded before
//! anything is stored, and a reader takes not one byte beyond its part, because libxc reads on from the same
//! descriptor. The crate does no I/O of its own.
#![forbid(unsafe_code)]

mod error;
pub mod header;
pub mod libxc;
pub mod libxl;
pub mod libxl_json;
pub mod metadata;
pub mod qemu;
mod source;

pub use error::StreamError;
pub use header::Header;
pub use metadata::Metadata;
