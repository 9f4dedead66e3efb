//! Which Debian the embedded host and the stubdomain's image are made of.

use anyhow::Result;
use clap::Args;
use image::Debian;
use image::packages::{Mirrors, Store};
use testhost::Xenstored;

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

    /// The image's: the host's if none is asked for.
    fn image(self) -> Debian {
        self.image_debian.unwrap_or(self.host())
    }

    /// The other release that hosts are made of, with an image of the same release as the host.
    pub(crate) fn other(self) -> Self {
        Self { debian: Some(other(self.host())), image_debian: None }
    }

    /// The other release that hosts are made of, with the same image.
    pub(crate) fn with_other_host(self) -> Self {
        Self { image_debian: Some(self.image()), ..self.other() }
    }

    /// The packages that the host is made of.
    pub(crate) fn store(self) -> Result<Store> {
        Ok(Store::from_environment()?.of(self.host(), &Mirrors::default()))
    }

    /// The packages that the stubdomain's image is made of.
    pub(crate) fn image_store(self) -> Result<Store> {
        Ok(Store::from_environment()?.of(self.image(), &Mirrors::default()))
    }
}

/// What a run of all tests is made on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct On {
    /// What the hosts and the image are made of.
    pub(crate) debian: DebianOptions,
    /// What keeps xenstore in the hosts' dom0.
    pub(crate) xenstored: Xenstored,
}

impl On {
    /// Both releases, this one first, each with both xenstoreds.
    pub(crate) fn all(debian: DebianOptions) -> Vec<Self> {
        let of = |debian| [Xenstored::OCaml, Xenstored::C].map(|xenstored| Self { debian, xenstored });
        [debian, debian.other()].map(of).concat()
    }
}

/// A host is made of stable releases.
fn parse_debian(text: &str) -> Result<Debian, String> {
    match text.parse()? {
        Debian::Sid => Err("a host is made of bookworm or trixie".to_owned()),
        debian => Ok(debian),
    }
}

/// Of the two releases that hosts are made of, the one that this is not.
fn other(debian: Debian) -> Debian {
    match debian {
        Debian::Bookworm => Debian::Trixie,
        Debian::Trixie | Debian::Sid => Debian::Bookworm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_host_keeps_the_image() {
        let options = DebianOptions { debian: Some(Debian::Bookworm), image_debian: None };
        let other = options.with_other_host();
        assert_eq!((other.host(), other.image()), (Debian::Trixie, Debian::Bookworm));
        assert_eq!((options.other().host(), options.other().image()), (Debian::Trixie, Debian::Trixie));
        assert_eq!(other.with_other_host().host(), Debian::Bookworm);
    }
}
