//! Builds the stubdomain image from packages, reproducibly and without root.
//!
//! The steps, each usable on its own (the embedded test host is built from the same ones):
//!
//! 1. [`packages`]: fetches Debian packages through `apt-get` into a content-addressed cache and unpacks each
//!    into its own folder there. They may be of another Debian ([`Debian`]) than the machine.
//! 2. [`root`]: looks at several unpacked packages as at one file tree. Nothing is merged or copied, every file
//!    still knows its package, and no symbolic link leads out.
//! 3. [`closure`]: which shared libraries a program needs, found in that tree and nowhere else.
//!    [`stand_in`]: a library in place of one that a program is linked with but never calls.
//! 4. [`modules`]: which kernel modules are needed, in load order.
//! 5. [`kernel`]: the ELF kernel inside a bzImage.
//! 6. [`initramfs`]: a cpio archive that is the same to the byte for the same contents.
//! 7. [`compiled`]: a kernel and a QEMU for stubdomains alone, compiled from Debian's sources.
//! 8. [`stubdom`]: all of it together: `vmlinuz`, `initramfs.img`, `manifest.json`, `sbom.cdx.json`.
//!
//! Invariants: no step needs root, runs a package's scripts, changes the machine's apt, or reads the build machine's own
//! libraries; an output folder holds either the whole earlier image or the whole new one.
#![forbid(unsafe_code)]

mod abilities;
mod apt;
pub mod closure;
pub mod compiled;
mod debian;
mod elf_kernel;
mod error;
mod files;
pub mod initramfs;
pub mod kernel;
pub mod listing;
pub mod manifest;
pub mod modules;
mod package;
pub mod packages;
mod resolved;
pub mod root;
mod sbom;
mod sources;
pub mod stand_in;
pub mod stubdom;
#[cfg(test)]
mod testing;
mod tools;

pub use debian::Debian;
pub use error::ImageError;

/// What this crate's functions give back.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
