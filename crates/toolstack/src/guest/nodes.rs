//! What xenstore has of a guest's domain besides what every domain has (`libxl__build_post`).

use config::{GuestConfig, SmbiosField, SmbiosString};
use xen::{HvmBuilt, HvmParam, Placed};
use xen_types::{DomId, KiB};
use xenstore::XsPath;

use crate::Toolstack;
use crate::batch::Batch;
use crate::domain::Domain;
use crate::nodes::{below, libxl_dir, memory, start_time, vm_dir};
use crate::operation::StepResult;

/// What `dm-version` and `platform/device-model` say: QEMU of Xen's kind, wherever it runs.
const DEVICE_MODEL: &str = "qemu_xen";

/// What a guest's balloon driver is told to aim at, when the guest is to have `memory` in all.
pub(crate) fn memory_target(config: &GuestConfig, memory: KiB) -> KiB {
    // A guest that may have more than it has is given a little slack by libxl.
    let slack = if config.max_memory > memory { 1024 } else { 0 };
    KiB(memory.get().saturating_sub(config.display.video_memory.get() + slack))
}

/// What hvmloader, the guest's drivers and other tools read of an HVM guest's platform.
pub(crate) fn details(
    batch: &mut Batch,
    domain: Domain,
    config: &GuestConfig,
    built: &HvmBuilt,
    stub: DomId,
) {
    let (dir, vm) = (XsPath::domain(domain.domid()), vm_dir(domain.uuid()));
    let video = config.display.video_memory;
    memory(batch, &dir, config.max_memory, memory_target(config, config.memory), video);
    let platform = &config.platform;
    let flag = |set: bool| if set { "1" } else { "0" };
    batch.write(&below(&dir, "platform/acpi"), flag(platform.acpi));
    batch.write(&below(&dir, "platform/acpi_s3"), flag(platform.acpi_s3));
    batch.write(&below(&dir, "platform/acpi_s4"), flag(platform.acpi_s4));
    batch.write(&below(&dir, "platform/acpi_laptop_slate"), flag(platform.acpi_laptop_slate));
    batch.write(&below(&dir, "platform/device-model"), DEVICE_MODEL);
    if let Some(hole) = platform.mmio_hole {
        batch.write(&below(&dir, "platform/mmio_hole_size"), (hole.get() * 1024).to_string());
    }
    batch.write(&below(&dir, "hvmloader/bios"), config.firmware.kind.xenstore_name());
    // QEMU cannot follow when hvmloader moves memory to make the hole for devices larger.
    batch.write(&below(&dir, "hvmloader/allow-memory-relocate"), "0");
    smbios_strings(batch, &dir, config);
    placed(batch, &dir, "hvmloader/smbios", built.smbios);
    placed(batch, &dir, "hvmloader/acpi", built.acpi);
    batch.write(&below(&dir, "image/device-model-domid"), stub.to_string());
    batch.write(&below(&vm, "rtc/timeoffset"), "");
    batch.write(&below(&vm, "image/ostype"), "hvm");
    batch.write(&below(&vm, "start_time"), start_time());
    batch.write(&below(&libxl_dir(domain.domid()), "dm-version"), DEVICE_MODEL);
}

/// Tells hvmloader of strings for its SMBIOS tables (`xen/include/public/hvm/hvm_xs_strings.h`).
fn smbios_strings(batch: &mut Batch, dir: &XsPath, config: &GuestConfig) {
    let mut oem = 0;
    for SmbiosString { field, value } in &config.firmware.smbios_strings {
        let key = match field {
            SmbiosField::Oem => {
                oem += 1;
                format!("bios-strings/oem-{oem}")
            }
            field => format!("bios-strings/{}", field.name().replace('_', "-")),
        };
        batch.write(&below(dir, &key), value);
    }
}

/// Tells hvmloader where extra tables are (`xen/include/public/hvm/hvm_xs_strings.h`).
fn placed(batch: &mut Batch, dir: &XsPath, name: &str, place: Option<Placed>) {
    if let Some(place) = place {
        batch.write(&below(dir, &format!("{name}/address")), format!("{:#x}", place.address));
        batch.write(&below(dir, &format!("{name}/length")), format!("{:#x}", place.length));
    }
}

/// What becomes of the VM generation ID of a guest that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// The guest starts: hvmloader puts the new one into its memory.
    Begins,
    /// The guest goes on from a file, perhaps not for the first time: it gets a new one, where hvmloader has told Xen that
    /// it is. By that it knows that what it took for unique may not be.
    Branches,
    /// The guest goes on elsewhere, and only there.
    GoesOn,
}

/// Writes a new VM generation ID, unless the guest keeps its own. It does not run yet, so that nobody has to tell it.
pub(crate) fn write_generation_id(
    ts: &Toolstack,
    batch: &mut Batch,
    domain: Domain,
    generation: Generation,
) -> StepResult {
    if generation == Generation::GoesOn {
        return Ok(());
    }
    let mut bytes = [0; 16];
    ts.host.random(&mut bytes)?;
    let path = below(&XsPath::domain(domain.domid()), "platform/generation-id");
    batch.write(&path, in_halves(bytes));
    let address = ts.hypervisor.hvm_param(domain.domid(), HvmParam::VmGenerationIdAddr)?;
    // hvmloader puts it below 4 GiB; a guest can say anything.
    if generation == Generation::Branches && address != 0 && u32::try_from(address).is_ok() {
        ts.hypervisor.write_memory(domain.domid(), address, &bytes)?;
    }
    Ok(())
}

/// The form that hvmloader reads: the two halves in decimal.
fn in_halves(bytes: [u8; 16]) -> String {
    let (low, high) = bytes.split_at(8);
    let half = |half: &[u8]| half.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    format!("{}:{}", half(low), half(high))
}
