//! The releases of Debian that images are made of, and what differs between them.

use std::{fmt, fs, str::FromStr};

use serde::{Deserialize, Serialize};
use xen_types::Release;

/// A release of Debian that packages can come from. An image need not be of the release that builds or runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Debian {
    /// Debian 12: Linux 6.1, QEMU 7.2, Xen 4.17.
    Bookworm,
    /// Debian 13: Linux 6.12, QEMU 10.0, Xen 4.20.
    Trixie,
    /// The unstable one, whose versions change from week to week.
    Sid,
}

/// The first two numbers of a version, such as 6.12.
pub(crate) type Version = (u32, u32);

impl Debian {
    /// All, the oldest first.
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// Its name in Debian's archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }

    /// The release of this machine; `None` on another system, or on a release that is not among these.
    pub fn of_machine() -> Option<Self> {
        of_os_release(&fs::read_to_string("/etc/os-release").ok()?)
    }

    /// The suites of the archive, and that of the security archive where there is one.
    pub(crate) fn suites(self) -> (Vec<String>, Option<String>) {
        match self {
            Self::Bookworm | Self::Trixie => {
                let name = self.name();
                (vec![name.to_owned(), format!("{name}-updates")], Some(format!("{name}-security")))
            }
            Self::Sid => (vec![self.name().to_owned()], None),
        }
    }

    /// The release of Xen that it has, which its QEMU is linked with.
    pub fn xen(self) -> Release {
        match self {
            Self::Bookworm => Release::DEBIAN_12,
            Self::Trixie | Self::Sid => Release::new(4, 20),
        }
    }

    /// What a kernel and a QEMU for stubdomains are compiled from; `None` where that is not known.
    pub(crate) fn recipe(self) -> Option<Recipe> {
        match self {
            Self::Bookworm => Some(Recipe {
                debian: self,
                linux: (6, 1),
                qemu: (7, 2),
                compiler: "gcc-12",
                glib: "libglib2.0-0",
            }),
            Self::Trixie => Some(Recipe {
                debian: self,
                linux: (6, 12),
                qemu: (10, 0),
                compiler: "gcc-14",
                glib: "libglib2.0-0t64",
            }),
            Self::Sid => None,
        }
    }
}

/// A release whose sources can be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) debian: Debian,
    /// The version of its package of Linux's sources.
    pub(crate) linux: Version,
    /// The version of its QEMU.
    pub(crate) qemu: Version,
    /// The package of the compiler that `gcc` depends on.
    pub(crate) compiler: &'static str,
    /// The package of GLib's library.
    pub(crate) glib: &'static str,
}

impl Recipe {
    /// The package of Linux's sources with Debian's changes.
    pub(crate) fn linux_source(&self) -> String {
        format!("linux-source-{}.{}", self.linux.0, self.linux.1)
    }
}

/// Reads the release from the text of `/etc/os-release`. The unstable one has no number.
fn of_os_release(text: &str) -> Option<Debian> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim().trim_matches('"'))
    };
    if field("ID") != Some("debian") {
        return None;
    }
    match field("VERSION_ID") {
        Some("12") => Some(Debian::Bookworm),
        Some("13") => Some(Debian::Trixie),
        Some(_) => None,
        None => Some(Debian::Sid),
    }
}

impl fmt::Display for Debian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Debian {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|debian| debian.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("known releases of Debian are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_of_os_release_knows_debians_only() {
        let text = |id: &str, version: &str| format!("NAME=\"x\"\nID={id}\n{version}\nVERSION_CODENAME=y\n");
        for (id, version, debian) in [
            ("debian", "VERSION_ID=\"12\"", Some(Debian::Bookworm)),
            ("debian", "VERSION_ID=13", Some(Debian::Trixie)),
            ("debian", "", Some(Debian::Sid)),
            ("debian", "VERSION_ID=\"11\"", None),
            ("ubuntu", "VERSION_ID=\"12\"", None),
        ] {
            assert_eq!(of_os_release(&text(id, version)), debian, "{id} {version}");
        }
        assert_eq!(of_os_release(""), None);
    }

    #[test]
    fn test_names_are_read_back() {
        for debian in Debian::ALL {
            assert_eq!(debian.name().parse(), Ok(debian));
            assert_eq!(serde_json::to_string(&debian).unwrap(), format!("\"{debian}\""));
        }
        assert!("buster".parse::<Debian>().unwrap_err().ends_with("bookworm, trixie, sid"));
    }

    #[test]
    fn test_sources_have_their_version_in_the_name() {
        let sources = Debian::ALL.map(|debian| debian.recipe().map(|recipe| recipe.linux_source()));
        assert_eq!(sources, [Some("linux-source-6.1".into()), Some("linux-source-6.12".into()), None]);
    }
}
