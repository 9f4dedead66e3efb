//! The stubdomain's image for dom0, built when something that goes into it has changed.

use std::fs::{self, File};
use std::path::Path;

use image::packages::Store;
use image::stubdom::{Manifest, Step, StubdomSpec};
use sha2::{Digest as _, Sha256};

use crate::build::{gather, show};
use crate::error::AtPath as _;
use crate::hash::hex;
use crate::{HostError, Observer, Put};

/// Where the image lies in dom0.
const PLACE: &str = "/usr/lib/outrigger/stubdom";

/// Builds the image with this agent in a folder of `images`, or finds it there; says where its files go in dom0.
///
/// Kernel and QEMU are those that were compiled for stubdomains, as far as the cache has them, and Debian's otherwise.
///
/// # Errors
/// [`HostError::Packages`] when it cannot be built, [`HostError::File`] when the agent cannot be read.
pub fn stubdom(
    agent: &Path,
    images: &Path,
    store: &Store,
    observer: &mut dyn Observer,
) -> Result<Vec<Put>, HostError> {
    fs::create_dir_all(images).at("make the folder", images)?;
    let lock_path = images.join("lock");
    let lock = File::create(&lock_path).at("open", &lock_path)?;
    lock.lock().at("lock", &lock_path)?;
    let folder = images.join("current");
    let spec = StubdomSpec::usual(store, &folder, agent, env!("CARGO_PKG_VERSION"));
    let key = key(&spec, store)?;
    let key_path = images.join("current.key");
    if fs::read_to_string(&key_path).ok().as_deref() != Some(&key) {
        observer.progress("Building the stubdomain's image");
        image::stubdom::build_in(store, &spec, &mut |step| {
            if let Step::Packages(step) = step {
                show(&step, observer);
            }
        })
        .map_err(gather("the stubdomain's image"))?;
        fs::write(&key_path, &key).at("write", &key_path)?;
    }
    let files = [Manifest::KERNEL, Manifest::INITRAMFS, Manifest::FILE];
    Ok(files
        .iter()
        .map(|name| Put { source: folder.join(name), target: Path::new(PLACE).join(name) })
        .collect())
}

/// A hash of the agent, of the packages, and of this very program, which holds the image builder.
fn key(spec: &StubdomSpec, store: &Store) -> Result<String, HostError> {
    let mut hash = Sha256::new();
    // Not its path: a program that was built again while it runs has none.
    let own = Path::new("/proc/self/exe");
    for path in [spec.agent.as_path(), own] {
        hash.update(Sha256::digest(fs::read(path).at("read", path)?));
    }
    for package in spec.resolve(store).map_err(gather("the stubdomain's packages"))? {
        hash.update(package.sha256);
    }
    let compiled =
        spec.compiled(store, &mut |_| {}).map_err(gather("what was compiled for the stubdomain"))?;
    for one in compiled {
        hash.update(one.key);
    }
    Ok(hex(&hash.finalize()))
}
