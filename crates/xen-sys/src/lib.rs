//! Committed bindings to libxenctrl, libxenguest and their helpers, one module per release of Xen.
//!
//! The build script asks pkg-config which version of `xencontrol` is installed and chooses the module; an unknown
//! version ends the build. Building needs the libraries and their pkg-config files (Debian: `libxen-dev`), but no
//! libclang. `XEN_SYS_CHECK=4.20 cargo check` checks what is built on the bindings of a release that is not installed.
//! The modules are bindgen's output for `wrapper.h` with the arguments in `bindgen.args` (`cargo xtask bindings`), and
//! nothing is changed by hand. There is no logic here: the `xen` crate makes these calls safe.

/// Bindings to the libraries of one release of Xen.
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
#[cfg_attr(xen = "4.17", path = "v4_17.rs")]
#[cfg_attr(xen = "4.18", path = "v4_18.rs")]
#[cfg_attr(xen = "4.19", path = "v4_19.rs")]
#[cfg_attr(xen = "4.20", path = "v4_20.rs")]
#[cfg_attr(xen = "4.21", path = "v4_21.rs")]
#[cfg_attr(xen = "4.22", path = "v4_22.rs")]
mod bindings;

pub use bindings::*;

/// The release of Xen that these bindings are for, such as `4.17`.
pub const VERSION: &str = env!("XEN_RELEASE");
