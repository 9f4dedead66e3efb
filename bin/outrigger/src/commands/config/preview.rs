//! What a guest's device model will be like, as far as this host can tell without making it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::image_format;
use config::{Diagnostic, DiskSource, GuestConfig, Loaded, Uuid, Vdev, VdevBus};
use image::manifest::Manifest;
use qemu_args::{Facts, Part, Plan, PlanError, QemuFeatures, Unemulated, WhyNot};

/// Adds what would only be noticed when the guest is made or runs.
pub(super) fn add(loaded: &mut Loaded, image: &Path) {
    let Some(config) = &loaded.config else { return };
    let mut diagnostics = shared_disks(loaded, config);
    let formats = image_format::warnings(config);
    diagnostics.extend(formats.into_iter().map(|(disk, warning)| at(warning, loaded, "disk", Some(disk))));
    match qemu_args::plan(config, &facts(config, image)) {
        Ok(plan) => diagnostics.extend(disks(loaded, config, &plan)),
        Err(error) => diagnostics.push(no_plan(loaded, config, &error)),
    }
    loaded.add(diagnostics);
}

/// What is known of the guest's QEMU: that of the image, unless the configuration names another image.
fn facts(config: &GuestConfig, image: &Path) -> Facts {
    let dm = &config.device_model;
    let own = dm.kernel.is_none() && dm.ramdisk.is_none();
    // Without a manifest nothing is known, and nothing is said.
    let manifest = own.then(|| Manifest::read(image).ok()).flatten();
    let qemu = manifest.map_or_else(QemuFeatures::default, |manifest| QemuFeatures {
        sandbox: manifest.qemu.sandbox,
        abilities: manifest.qemu.abilities,
    });
    Facts { uuid: config.uuid.unwrap_or_else(Uuid::nil), qemu, incoming: false }
}

fn at(diagnostic: Diagnostic, loaded: &Loaded, key: &str, item: Option<usize>) -> Diagnostic {
    match loaded.place(key, item) {
        Some(span) => diagnostic.at(span),
        None => diagnostic,
    }
}

fn no_plan(loaded: &Loaded, config: &GuestConfig, error: &PlanError) -> Diagnostic {
    let diagnostic = Diagnostic::error("config::device-model", error.to_string());
    match error {
        PlanError::NotInQemu { kind: Part::Device, name } => {
            match config.nics.iter().position(|nic| nic.model == *name) {
                Some(nic) => at(diagnostic, loaded, "vif", Some(nic)),
                None => at(diagnostic, loaded, "soundhw", None),
            }
        }
        PlanError::NotInQemu { .. } => diagnostic,
        PlanError::ReadOnlyHardDisk(_) => at(diagnostic, loaded, "disk", None),
        PlanError::Serial(_) => at(diagnostic, loaded, "serial", None),
        PlanError::Argv(_) => at(diagnostic, loaded, "device_model_args", None),
        PlanError::NoMemory { .. } => at(diagnostic, loaded, "memory", None),
        PlanError::NoPciSlot { .. } => at(diagnostic, loaded, "vif", None),
    }
}

fn disks(loaded: &Loaded, config: &GuestConfig, plan: &Plan) -> Vec<Diagnostic> {
    let mut diagnostics: Vec<Diagnostic> =
        plan.unemulated.iter().map(|disk| at(unemulated(disk), loaded, "disk", Some(disk.index))).collect();
    if plan.disks.is_empty() && !config.disks.is_empty() {
        let nothing = Diagnostic::warning("config::nothing-to-boot", "None of the disks is emulated")
            .help("the guest's firmware finds no disk to boot from; name the first one `hda` or `xvda`");
        diagnostics.push(at(nothing, loaded, "disk", None));
    }
    diagnostics
}

/// Says why a disk is not emulated: a note where its name asks for no more.
fn unemulated(disk: &Unemulated) -> Diagnostic {
    const ID: &str = "config::not-emulated";
    let Unemulated { vdev, why, .. } = disk;
    let message = format!("{vdev} is not emulated: {}", reason(*why, *vdev));
    let usual = vdev.bus() == VdevBus::Xvd && matches!(why, WhyNot::NoPlace | WhyNot::ReadOnly);
    let diagnostic = if usual { Diagnostic::note(ID, message) } else { Diagnostic::warning(ID, message) };
    diagnostic.help("firmware and boot loader do not see it; the guest does, with its PV drivers")
}

fn reason(why: WhyNot, vdev: Vdev) -> &'static str {
    match why {
        WhyNot::NoPlace if vdev.bus() == VdevBus::Sd => "firmware looks at `sda` to `sdg` only",
        WhyNot::NoPlace => "its number is above the last place of its controller",
        WhyNot::PlaceTaken => "another disk has its place on the controller",
        WhyNot::Partition => "it is a partition, and only whole disks are emulated",
        WhyNot::ReadOnly => "IDE and AHCI disks are always writable, and it is read-only",
        WhyNot::NoLetter => "it is the 27th disk or a later one",
    }
}

/// Finds images that two disks have by different names and one of them may write.
fn shared_disks(loaded: &Loaded, config: &GuestConfig) -> Vec<Diagnostic> {
    let mut seen: HashMap<(bool, u64, u64), (usize, bool)> = HashMap::new();
    let mut diagnostics = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        let (DiskSource::Path(path), None) = (&disk.source, &disk.backend) else { continue };
        let Some(identity) = identity(path) else { continue };
        let Some(&(first, writes)) = seen.get(&identity) else {
            seen.insert(identity, (index, disk.is_writable()));
            continue;
        };
        seen.insert(identity, (first, writes || disk.is_writable()));
        let Some(other) = config.disks.get(first).filter(|_| writes || disk.is_writable()) else { continue };
        let message =
            format!("{} and {} are the same disk, and one of them may write to it", other.vdev, disk.vdev);
        let mut problem =
            Diagnostic::error("config::conflict", message).help("sharing a writable disk corrupts it");
        if let Some(span) = loaded.place("disk", Some(first)) {
            problem = problem.also(span, "the other one");
        }
        diagnostics.push(at(problem, loaded, "disk", Some(index)));
    }
    diagnostics
}

/// What a path leads to, if it is there: a block device by its number, a file by device and inode.
fn identity(path: &str) -> Option<(bool, u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        return Some((true, metadata.rdev(), 0));
    }
    kind.is_file().then(|| (false, metadata.dev(), metadata.ino()))
}
