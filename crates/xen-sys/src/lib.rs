//! Committed bindings to libxenctrl, libxenguest and their helpers, one module per Xen version.
//!
//! The build script asks pkg-config which version of `xencontrol` is installed and chooses the module; an unknown
//! version ends the build. Building needs the libraries and their pkg-config files (Debian: `libxen-dev`), but no
//! libclang. The modules are bindgen's output for `wrapper.h` with the arguments in `bindgen.args`, and nothing is
//! changed by hand. There is no logic here: the `xen` crate makes these calls safe.

/// Bindings to the libraries of Xen 4.17.
// The names are those of Xen's headers, and their documentation is there. The unsafe blocks are bindgen's own, which
// fill plain structures with zeroes.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
#[cfg(xen = "4.17")]
mod v4_17;

#[cfg(xen = "4.17")]
pub use v4_17::*;

/// The version of Xen that these bindings are for.
#[cfg(xen = "4.17")]
pub const VERSION: &str = "4.17";
