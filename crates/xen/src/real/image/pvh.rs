//! Building a PVH domain.

use xen_sys::{e820entry, xc_hvm_firmware_module};
use xen_types::{DomId, Gfn, KiB};

use super::{Blob, DomImage, E820_RAM, GIB_4, Handle, acpi, c_string};
use crate::build::{KernelBuild, KernelBuilt};
use crate::error::{Result, XenError};

const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
const PAGE: u64 = 4096;

/// Fills a PVH domain, in the order of `libxl__build_hvm`: as for an HVM domain, but the kernel is the domain's own, there
/// is neither firmware nor a device model, and the library writes the start information instead of hvm_info.
pub(crate) fn build_pvh(handle: &Handle, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
    check(build)?;
    let cmdline = c_string("build a PVH domain", "The kernel's command line", &build.cmdline)?;
    let mut image = DomImage::new(handle, domid, Some(&cmdline))?;
    image.dom().container_type = xen_sys::XC_DOM_HVM_CONTAINER;
    image.load_kernel("kernel", &build.kernel)?;
    if let Some(ramdisk) = &build.ramdisk {
        image.load_ramdisk(ramdisk)?;
    }
    let modules = acpi_modules(&mut image)?;
    let dom = image.dom();
    for (place, module) in dom.acpi_modules.iter_mut().zip(modules) {
        *place = module;
    }
    dom.target_pages = build.memory.get() / 4;
    dom.claim_enabled = build.claim.into();
    dom.mmio_start = acpi::TABLES;
    dom.mmio_size = GIB_4 - acpi::TABLES;
    dom.lowmem_end = bytes(build.memory);
    dom.device_model = false;
    image.set_common(build.max_vcpus, build.store, build.console);
    image.prepare(build.memory)?;
    image.set_memory_map(memory_map(build.memory))?;
    image.finish()?;
    let dom = image.dom();
    Ok(KernelBuilt { store_frame: Gfn(dom.xenstore_pfn), console_frame: Gfn(dom.console_pfn) })
}

/// What this builds: the tables name one CPU, and all memory is below the tables.
fn check(build: &KernelBuild) -> Result<()> {
    let reason = if build.max_vcpus != 1 {
        format!("it has one virtual CPU and not {}", build.max_vcpus)
    } else if bytes(build.memory) > acpi::TABLES {
        format!("{} do not fit below its tables", build.memory)
    } else {
        return Ok(());
    };
    Err(XenError::Invalid { operation: "build a PVH domain", reason })
}

fn bytes(memory: KiB) -> u64 {
    memory.get().saturating_mul(1024)
}

/// The ACPI tables as the library takes them: the first is the one that the start information points to.
fn acpi_modules(image: &mut DomImage<'_>) -> Result<[xc_hvm_firmware_module; 2]> {
    let acpi::Acpi { root, tables } = acpi::tables();
    let mut root = image.keep("ACPI root pointer", &Blob::Bytes(root))?;
    let mut tables = image.keep("ACPI tables", &Blob::Bytes(tables))?;
    root.guest_addr_out = acpi::ROOT;
    tables.guest_addr_out = acpi::TABLES;
    Ok([root, tables])
}

/// The memory that the kernel is told of. Its own mappings of other domains' pages go where this names nothing, so
/// everything that is in use must be named.
fn memory_map(memory: KiB) -> Vec<e820entry> {
    let entry = |addr, size, type_| e820entry { addr, size, type_ };
    let special = u64::from(xen_sys::X86_HVM_NR_SPECIAL_PAGES);
    let first = u64::from(xen_sys::X86_HVM_END_SPECIAL_REGION) - special;
    vec![
        entry(0, bytes(memory), E820_RAM),
        entry(acpi::TABLES, acpi::SIZE, E820_ACPI),
        entry(first * PAGE, special * PAGE, E820_RESERVED),
    ]
}

#[cfg(test)]
mod tests {
    use xen_types::EventPort;

    use super::*;
    use crate::build::Channel;

    fn build(memory: KiB, max_vcpus: u32) -> KernelBuild {
        let channel = Channel { port: EventPort(1), peer: DomId::DOM0 };
        KernelBuild {
            kernel: Blob::Bytes(vec![0x7f]),
            ramdisk: None,
            cmdline: String::new(),
            memory,
            max_vcpus,
            claim: false,
            store: channel,
            console: channel,
        }
    }

    #[test]
    fn everything_in_use_is_in_the_memory_map() {
        let map = memory_map(KiB::from_mib(64));
        let fields: Vec<_> = map.iter().map(|entry| (entry.addr, entry.size, entry.type_)).collect();
        let expected = [(0, 64 << 20, 1), (0xfc00_0000, 0x2000, 3), (0xfeff_8000, 0x8000, 2)];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_the_tables_do_not_describe_is_refused() {
        assert!(check(&build(KiB::from_mib(64), 1)).is_ok());
        assert!(check(&build(KiB::from_mib(64), 2)).is_err());
        assert!(check(&build(KiB::from_mib(4096), 1)).is_err());
    }
}
