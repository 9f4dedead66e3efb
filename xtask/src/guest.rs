//! What guests need in dom0: the stubdomain's image and the example guests.

use anyhow::Result;
use image::packages::Store;
use testhost::Put;

use crate::view::View;
use crate::{binaries, workspace};

/// Builds the stubdomain's image, or finds it built, and says where its files go.
pub(crate) fn stubdom(store: &Store, build: bool, view: &mut View) -> Result<Vec<Put>> {
    Ok(testhost::stubdom(&binaries::agent(build)?, &workspace::kept("stubdom"), store, view)?)
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
