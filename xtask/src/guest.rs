//! What guests need in dom0: the stubdomain's image and the example guests.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image::packages::Store;
use image::stubdom::{StubdomSpec, build_in, is_current};
use testhost::{Observer as _, Put};

use crate::view::View;
use crate::{binaries, workspace};

/// Builds the stubdomain's image, or finds it built, and says where its files go.
pub(crate) fn stubdom(store: &Store, build: bool, view: &mut View) -> Result<Vec<Put>> {
    Ok(testhost::stubdom(&binaries::agent(build)?, &images(store), store, view)?)
}

/// The folder of the stubdomain's image that was built last of a Debian's packages.
pub(crate) fn image_folder(store: &Store) -> PathBuf {
    images(store).join("current")
}

/// Each Debian has its own, so that none takes the place of another.
fn images(store: &Store) -> PathBuf {
    workspace::kept("stubdom").join(store.debian().name())
}

/// Builds the quick start's image, of Debian's kernel and QEMU, or finds it built, and gives its folder.
pub(crate) fn debian_stubdom(store: &Store, view: &mut View) -> Result<PathBuf> {
    let kept = workspace::kept("debian-stubdom").join(store.debian().name());
    std::fs::create_dir_all(&kept)?;
    let folder = kept.join("image");
    let version = env!("CARGO_PKG_VERSION");
    let spec = StubdomSpec::debian(store.debian(), &folder, binaries::agent(false)?, version);
    if !is_current(store, &spec)? {
        view.progress("Building the image of Debian's kernel and QEMU");
        build_in(store, &spec, &mut |_| {})?;
    }
    Ok(folder)
}

/// Builds the example guests and says where their files go.
pub(crate) fn examples() -> Result<Vec<Put>> {
    Ok(testhost::hello(&workspace::root().join("examples"), &workspace::kept("examples"))?)
}

/// Builds the PV guest that only uses its console, and says where it goes.
pub(crate) fn console() -> Result<Put> {
    let folder = workspace::kept("guests");
    std::fs::create_dir_all(&folder)?;
    let source = folder.join("console-guest");
    testguest::console_guest(&source)?;
    Ok(Put { source, target: "/root/console-guest".into() })
}

/// The Linux guest's disk, made once.
pub(crate) fn linux_disk(view: &mut View) -> Result<PathBuf> {
    let folder = workspace::kept("guests");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("linux.img");
    // Not its path: a program that was built again while it runs has none.
    let own = Path::new("/proc/self/exe");
    // The maker is part of this program: when that is newer than the disk, the disk may be out of date.
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if changed(&path) < changed(own) {
        view.progress("Making the Linux guest's disk");
        testguest::linux_disk(&Store::from_environment()?, &path, &mut |_| {})?;
    }
    Ok(path)
}
