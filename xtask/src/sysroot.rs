//! Xen's libraries of another Debian release, for programs that are to run there.
//!
//! Daemons are linked with the very release of Xen that they run on. The libraries come out of that Debian's packages
//! and lie beside each other in a folder that pkg-config and the linker are pointed at; nothing is installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use image::packages::{Store, Take};
use image::root::{Kind, Root};
use xen_types::Release;

use crate::workspace;

/// Where Debian has libraries and what pkg-config reads.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// The target that programs are compiled for, which keeps the linker's options from build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where programs for one release of Xen are built, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Sysroot {
    folder: PathBuf,
}

impl Sysroot {
    /// The one for a release of Xen that is not the one installed here, made of the packages of a Debian that has it.
    pub(crate) fn of(store: &Store, xen: Release) -> Result<Self> {
        let folder = workspace::target().join(format!("xen-{xen}"));
        let sysroot = Self { folder };
        let root = store
            .root(&["libxen-dev"], Take::Everything, &mut |_| {})
            .with_context(|| format!("The libraries of Xen {xen} cannot be had"))?;
        sysroot.lay_out(&root)?;
        Ok(sysroot)
    }

    fn libraries(&self) -> PathBuf {
        self.folder.join("sysroot").join(LIBRARIES.trim_start_matches('/'))
    }

    /// The folder with what is built of a profile's folder `profile`.
    pub(crate) fn programs(&self, profile: &str) -> PathBuf {
        self.folder.join(TARGET).join(profile)
    }

    /// Lays the libraries and their descriptions out as links.
    fn lay_out(&self, root: &Root) -> Result<()> {
        let libraries = self.libraries();
        if libraries.exists() {
            fs::remove_dir_all(&libraries)?;
        }
        fs::create_dir_all(libraries.join("pkgconfig"))?;
        for path in root.walk(LIBRARIES)? {
            let name = path.strip_prefix(LIBRARIES).unwrap_or(&path).trim_start_matches('/');
            let is_ours =
                name.starts_with("libxen") && name.contains(".so") || name.starts_with("pkgconfig/xen");
            let found = root.find(&path)?;
            if is_ours && matches!(found.kind, Kind::File { .. }) {
                let place = libraries.join(name);
                symlink(&found.host, &place).with_context(|| format!("Cannot make {}", place.display()))?;
            }
        }
        Ok(())
    }

    /// Points a cargo command at it.
    pub(crate) fn apply(&self, command: &mut Command) {
        let libraries = self.libraries();
        // What the libraries need of a newer C library is there where the programs run.
        let flags = format!(
            "target.{TARGET}.rustflags=[\"-C\", \"link-arg=-Wl,--allow-shlib-undefined,-rpath-link={}\"]",
            libraries.display()
        );
        command
            .args(["--target", TARGET, "--config", &flags, "--target-dir"])
            .arg(&self.folder)
            .env("PKG_CONFIG_ALLOW_CROSS", "1")
            .env("PKG_CONFIG_LIBDIR", libraries.join("pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", self.folder.join("sysroot"));
    }
}

/// Whether programs for this release of Xen can be linked with what is installed.
pub(crate) fn is_installed(xen: Release) -> bool {
    let output = Command::new("pkg-config").args(["--modversion", "xencontrol"]).output();
    output.is_ok_and(|output| Release::parse(String::from_utf8_lossy(&output.stdout).trim()) == Some(xen))
}
