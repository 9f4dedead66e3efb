//! `cargo xtask bench image`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use image::stubdom::Manifest;
use testhost::{Observer as _, Put};
use vm_report::Figure;

use super::results::Goal;
use super::{Needs, Options, measure};
use crate::view::View;
use crate::{debian, guest, stubdom, workspace};

/// What has to be reached.
const GOALS: [Goal; 6] = [
    Goal::ratio("start.ours", "start.reference", 0.35),
    // With a screen of 16 MiB, which comes on top, and two disks.
    Goal::at_most("smallest_memory.ours", 64.0),
    Goal::at_most("packed.ours", 20.0),
    Goal::at_most("setuid.ours", 0.0),
    Goal::at_most("interpreters.ours", 0.0),
    Goal::at_most("agent_ready.ours", 0.05),
];

/// An image, and where it is.
struct Image {
    name: &'static str,
    folder: PathBuf,
}

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    debian::ensure(&debian::BUILD, options.yes)?;
    let images = images(options)?;
    let mut needs = Needs::default();
    for image in &images {
        needs.figures.extend(sizes(image)?);
        for file in [Manifest::KERNEL, Manifest::INITRAMFS] {
            let target = Path::new("/images").join(image.name).join(file);
            needs.files.push(Put { source: image.folder.join(file), target });
        }
    }
    measure("image", needs, &GOALS, options)
}

/// Makes the three images, as far as they are not there.
fn images(options: &Options) -> Result<Vec<Image>> {
    let mut view = View::new(false, false);
    let store = options.debian.image_store()?;
    stubdom::compile_missing(&store, options.yes, &mut view)?;
    let ours = guest::stubdom(&store, !options.no_build, &mut view)?;
    let ours = ours.first().and_then(|put| put.source.parent()).context("The image has no files")?.to_owned();

    let debian = guest::debian_stubdom(&store, &mut view)?;
    let folder = workspace::kept("bench");
    fs::create_dir_all(&folder)?;
    view.progress("Building the reference image");
    let reference = folder.join("reference");
    testguest::reference_stubdom(&store, &reference, &mut |_| {})?;
    Ok(vec![
        Image { name: "ours", folder: ours },
        Image { name: "debian", folder: debian },
        Image { name: "reference", folder: reference },
    ])
}

/// What the files themselves tell.
fn sizes(image: &Image) -> Result<Vec<Figure>> {
    let read = |name: &str| {
        let path = image.folder.join(name);
        fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))
    };
    let (kernel, initramfs) = (read(Manifest::KERNEL)?, read(Manifest::INITRAMFS)?);
    let listing = image::listing::list(&initramfs)?;
    let figure =
        |what: &str, value: f64, unit: &str| Figure::new(&format!("{what}.{}", image.name), value, unit);
    let packed = [&kernel, &initramfs].into_iter().map(|bytes| packed(bytes)).sum::<Result<f64>>()?;
    Ok(vec![
        figure("kernel_size", megabytes(kernel.len()), "MB"),
        figure("image_size", megabytes(initramfs.len()), "MB"),
        figure("unpacked", megabytes(usize::try_from(listing.bytes)?), "MB"),
        figure("packed", packed, "MB"),
        figure("files", count(listing.files)?, "count"),
        figure("setuid", count(listing.setuid.len() as u64)?, "count"),
        figure("interpreters", count(listing.interpreters.len() as u64)?, "count"),
    ])
}

/// A file's size as a package would have it.
fn packed(bytes: &[u8]) -> Result<f64> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(megabytes(encoder.finish()?.len().min(bytes.len())))
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn count(number: u64) -> Result<f64> {
    Ok(u32::try_from(number)?.into())
}
