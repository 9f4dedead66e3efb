//! The QEMU that is the machine: Debian's own, or the one that was compiled with its faults removed.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use image::compiled::{Compiled, EMULATOR, Program, newest};
use image::packages::Store;

use crate::HostError;

/// Debian's program, on the path.
const DEBIAN: &str = "qemu-system-x86_64";

/// Which QEMU emulates the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emulator(Option<Patched>);

/// A QEMU compiled from Debian's sources and our patches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Patched {
    program: PathBuf,
    key: String,
}

impl Emulator {
    /// Debian's own, whose faults break a guest on the first processor now and then.
    #[must_use]
    pub fn debian() -> Self {
        Self(None)
    }

    /// One that was compiled, as [`Program::Emulator`].
    #[must_use]
    pub fn patched(compiled: &Compiled) -> Self {
        let program = compiled.layer.folder.join(EMULATOR.trim_start_matches('/'));
        Self(Some(Patched { program, key: compiled.key.clone() }))
    }

    /// The newest one that was compiled with today's patches, if there is one.
    #[must_use]
    pub fn newest(store: &Store) -> Option<Self> {
        newest(store, Program::Emulator).map(|compiled| Self::patched(&compiled))
    }

    /// Whether its faults are removed, so that guests may run on any processor.
    #[must_use]
    pub fn is_patched(&self) -> bool {
        self.0.is_some()
    }

    /// The program to start; a path or a name to look for on the path.
    pub(crate) fn program(&self) -> &OsStr {
        self.0.as_ref().map_or(OsStr::new(DEBIAN), |patched| patched.program.as_os_str())
    }

    /// What to do when there is no such program.
    pub(crate) fn remedy(&self) -> String {
        match &self.0 {
            None => format!("{DEBIAN} is missing: install the Debian package qemu-system-x86"),
            Some(Patched { program, .. }) => {
                format!("{} no longer exists; run this again to compile it", program.display())
            }
        }
    }

    /// What tells it from others, wherever it lies: a snapshot of one is not for another.
    pub(crate) fn identity(&self) -> Result<String, HostError> {
        if let Some(patched) = &self.0 {
            return Ok(patched.key.clone());
        }
        let output = Command::new(DEBIAN).arg("--version").output().map_err(|source| HostError::Program {
            program: DEBIAN,
            package: "qemu-system-x86",
            source,
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::root::Layer;
    use std::path::Path;

    fn patched(folder: &str) -> Emulator {
        let layer = Layer { package: None, folder: Path::new(folder).to_owned() };
        Emulator::patched(&Compiled { layer, key: "k".to_owned() })
    }

    #[test]
    fn identity_is_what_it_is_made_of_not_where_it_lies() {
        assert_eq!(patched("/a").identity().unwrap(), patched("/b").identity().unwrap());
        assert_eq!(patched("/a").program(), "/a/usr/bin/qemu-system-x86_64");
    }

    #[test]
    fn debians_is_the_usual_one_and_has_its_faults() {
        assert_eq!(Emulator::default(), Emulator::debian());
        assert!(!Emulator::debian().is_patched() && patched("/a").is_patched());
        assert!(Emulator::debian().remedy().contains("install") && patched("/a").remedy().contains("/a/usr"));
    }
}
