//! `cargo xtask bench qmp`.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use image::initramfs::{Compression, Initramfs};
use image::stubdom::Manifest;
use testhost::{Observer as _, Put};

use super::results::Goal;
use super::{Needs, Options};
use crate::binaries::{self, Profile};
use crate::view::View;
use crate::{debian, guest, stubdom, workspace};

/// What has to be reached. The stock proxy has a single client, so its rate is that of one.
const GOALS: [Goal; 2] = [
    Goal::ratio("qmp.latency.ours_1", "qmp.latency.stock_1", 0.7),
    Goal::ratio("qmp.rate.stock_1", "qmp.rate.ours_8", 0.2),
];

/// Measures, prints the table, and succeeds when every goal is met.
pub(super) fn main(options: &Options) -> Result<ExitCode> {
    let load = Put {
        source: binaries::example("qmp", "qmp_load", Profile::Release, &options.xen()?)?,
        target: "/usr/bin/qmp-load".into(),
    };
    let needs = Needs { programs: vec![load], files: images(options)?, ..Needs::default() };
    super::measure("qmp", needs, &GOALS, options)
}

/// Makes the two images of stubdomains: ours with something in it that measures, and the one made by hand.
fn images(options: &Options) -> Result<Vec<Put>> {
    debian::ensure(&debian::BUILD, options.yes)?;
    let mut view = View::new(false, false);
    let store = options.debian.image_store()?;
    stubdom::compile_missing(&store, options.yes, &mut view)?;
    let ours = guest::stubdom(&store, !options.no_build, &mut view)?;
    let ours = ours.first().and_then(|put| put.source.parent()).context("The image has no files")?.to_owned();
    let folder = workspace::kept("bench");
    let probed = folder.join("probed");
    fs::create_dir_all(&probed)?;
    view.progress("Building the reference image");
    let reference = folder.join("reference");
    testguest::reference_stubdom(&store, &reference, &mut |_| {})?;
    let put = |source: PathBuf, target: &str| Put { source, target: Path::new("/images").join(target) };
    Ok(vec![
        put(with_probe(&ours, &probed)?, "probed.img"),
        put(reference.join(Manifest::KERNEL), "stock-vmlinuz"),
        put(reference.join(Manifest::INITRAMFS), "stock.img"),
    ])
}

/// Our RAM disk, behind which Linux unpacks another one.
fn with_probe(ours: &Path, folder: &Path) -> Result<PathBuf> {
    let (probe, load) = binaries::qmp_probe()?;
    let mut more = Initramfs::new();
    more.copy("/agent", 0o755, binaries::agent(false)?)?;
    more.copy("/init", 0o755, probe)?;
    more.copy("/qmp-load", 0o755, load)?;
    let path = folder.join(Manifest::INITRAMFS);
    fs::copy(ours.join(Manifest::INITRAMFS), &path)
        .with_context(|| format!("Cannot make {}", path.display()))?;
    let file = File::options().append(true).open(&path)?;
    more.write(BufWriter::new(file), Compression::Lz4, "what measures QEMU's monitor")?;
    Ok(path)
}
