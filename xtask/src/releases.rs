//! Which Debian the embedded host and the stubdomain's image are made of.

use anyhow::Result;
use clap::Args;
use image::Debian;
use image::packages::{Mirrors, Store};

/// Which Debian the host is made of, and which one the stubdomain's image.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct DebianOptions {
    /// The Debian release that the host's Xen, kernel and tools are from: bookworm or trixie; by default this machine's.
    #[arg(long, value_name = "RELEASE", env = "OUTRIGGER_DEBIAN", value_parser = parse_debian)]
    debian: Option<Debian>,
    /// The Debian release that the stubdomain's image is made of; by default the host's.
    #[arg(long, value_name = "RELEASE", env = "OUTRIGGER_IMAGE_DEBIAN")]
    image_debian: Option<Debian>,
}

impl DebianOptions {
    /// The host's, which is this machine's if none is asked for; Debian 12 on another system.
    pub(crate) fn host(self) -> Debian {
        let known = |debian: &Debian| parse_debian(debian.name()).is_ok();
        self.debian.or_else(|| Debian::of_machine().filter(known)).unwrap_or(Debian::Bookworm)
    }

    /// The packages that the host is made of.
    pub(crate) fn store(self) -> Result<Store> {
        Ok(Store::from_environment()?.of(self.host(), &Mirrors::default()))
    }

    /// The packages that the stubdomain's image is made of.
    pub(crate) fn image_store(self) -> Result<Store> {
        Ok(Store::from_environment()?.of(self.image_debian.unwrap_or(self.host()), &Mirrors::default()))
    }
}

/// A host is made of stable releases.
fn parse_debian(text: &str) -> Result<Debian, String> {
    match text.parse()? {
        Debian::Sid => Err("a host is made of bookworm or trixie".to_owned()),
        debian => Ok(debian),
    }
}
