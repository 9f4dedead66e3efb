//! The grammar of `outrigger image`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use image::Debian;

/// What to do with the stubdomain's image.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Build the image from Debian packages, without root
    Build {
        /// The directory for vmlinuz, initramfs.img and manifest.json.
        #[arg(short, long, value_name = "DIR", default_value = "/usr/lib/outrigger/stubdom")]
        output: PathBuf,
        /// The static outrigger-agent binary, which becomes the image's init process.
        #[arg(long, value_name = "FILE", default_value = "/usr/lib/outrigger/outrigger-agent")]
        agent: PathBuf,
        /// The Debian release that everything is taken from: bookworm, trixie or sid; by default the machine's own.
        #[arg(long, value_name = "RELEASE")]
        debian: Option<Debian>,
        /// A mirror of Debian's archive; by default the one that the machine's sources name, or deb.debian.org.
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
        /// A mirror of Debian's archive of security updates; the default is found in the same way.
        #[arg(long, value_name = "URL")]
        security_mirror: Option<String>,
        /// The stubdomain's kernel; by default the minimal one if it has been compiled, otherwise Debian's.
        #[arg(long, value_enum)]
        kernel: Option<ImagePart>,
        /// The stubdomain's QEMU; by default the minimal one if it has been compiled, otherwise Debian's.
        #[arg(long, value_enum)]
        qemu: Option<ImagePart>,
        /// How many compilers run at once; by default one per CPU.
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
    },
    /// Show what an image contains
    Info {
        /// Print the manifest as JSON.
        #[arg(long)]
        json: bool,
        /// The image's directory.
        #[arg(value_name = "DIR", default_value = "/usr/lib/outrigger/stubdom")]
        dir: PathBuf,
    },
}

/// Where a part of an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImagePart {
    /// Debian's own package; ready in a minute.
    Debian,
    /// Compiled for stubdomains from Debian's sources: smaller, faster and sandboxed; takes several minutes, once.
    Minimal,
}
