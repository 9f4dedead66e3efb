//! Building domains with libxenguest's `xc_dom_*`.

mod acpi;
mod pvh;

use core::ffi::{CStr, c_int};
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use std::ffi::CString;
use std::sync::Once;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use xen_sys::{e820entry, hvm_info_table, xc_dom_image, xc_hvm_firmware_module, xc_interface};
use xen_types::{DomId, Gfn, KiB};

use super::handle::Handle;
use crate::build::{Blob, Channel, HvmBuild, HvmBuilt, KernelBuild, KernelBuilt, Placed};
use crate::error::{Result, XenError};
use crate::foreign::ForeignMemory;
use crate::page::{Access, SharedPages};

pub(super) use self::pvh::build_pvh;

const GIB_4: u64 = 1 << 32;
/// The hole for devices' memory when nothing else is asked for: `HVM_BELOW_4G_MMIO_LENGTH` in
/// `xen/include/public/hvm/e820.h`.
const MMIO_HOLE: u64 = GIB_4 - 0xf000_0000;
/// Pages of the hole for the graphics adapter's memory below 1 MiB.
const VGA_HOLE_PAGES: u64 = 0x20;
/// Where the RAM begins that the memory map tells hvmloader of. It knows the first MiB of a PC by itself.
const LOW_RAM_START: u64 = 0x10_0000;
const E820_RAM: u32 = 1;

/// Fills an HVM domain. The order is that of `libxl__build_hvm` and `libxl__build_dom`, and each step needs the one
/// before:
/// the image is parsed before memory is sized, because the kind of kernel chooses the architecture's hooks; memory is
/// there before the memory map is set, because the map tells of what was allocated; the map is in place before
/// `xc_dom_build_image`, which reserves room for a copy of it; the grant table is seeded when the frames of the rings
/// are known; and hvm_info is completed last, because `xc_dom_boot_image` writes its first version.
pub(crate) fn build_hvm(handle: &Handle, domid: DomId, build: &HvmBuild) -> Result<HvmBuilt> {
    let layout = Layout::of(build)?;
    let mut image = DomImage::new(handle, domid, None)?;
    image.load_kernel("hvmloader", &build.hvmloader)?;
    let firmware = image.keep("system firmware", &build.firmware)?;
    let smbios = build.smbios.as_ref().map(|blob| image.keep("SMBIOS tables", blob)).transpose()?;
    let acpi = build.acpi.as_ref().map(|blob| image.keep("ACPI tables", blob)).transpose()?;
    let dom = image.dom();
    dom.container_type = xen_sys::XC_DOM_HVM_CONTAINER;
    dom.target_pages = (build.memory.target.get() - build.memory.video.get()) / 4;
    dom.claim_enabled = build.claim.into();
    dom.system_firmware_module = firmware;
    if let Some(module) = smbios {
        dom.smbios_module = module;
    }
    if let Some(module) = acpi {
        dom.acpi_modules[0] = module;
    }
    dom.mmio_size = layout.mmio_size;
    dom.mmio_start = GIB_4 - layout.mmio_size;
    dom.lowmem_end = layout.lowmem_end;
    dom.highmem_end = layout.highmem_end;
    dom.vga_hole_size = VGA_HOLE_PAGES;
    dom.device_model = true;
    image.set_common(build.max_vcpus, build.store, build.console);

    image.prepare(layout.memory)?;
    image.set_memory_map(layout.memory_map())?;
    image.finish()?;
    complete_hvm_info(domid, build)?;
    let dom = image.dom();
    Ok(HvmBuilt {
        store_gfn: Gfn(dom.xenstore_pfn),
        console_gfn: Gfn(dom.console_pfn),
        smbios: placed(&dom.smbios_module),
        acpi: placed(&dom.acpi_modules[0]),
    })
}

/// Fills a PV domain, in the order of `libxl__build_pv`.
pub(crate) fn build_pv(handle: &Handle, domid: DomId, build: &KernelBuild) -> Result<KernelBuilt> {
    let cmdline = c_string("build a PV domain", "The kernel's command line", &build.cmdline)?;
    let mut image = DomImage::new(handle, domid, Some(&cmdline))?;
    image.dom().container_type = xen_sys::XC_DOM_PV_CONTAINER;
    image.load_kernel("kernel", &build.kernel)?;
    if let Some(ramdisk) = &build.ramdisk {
        image.load_ramdisk(ramdisk)?;
    }
    image.dom().claim_enabled = build.claim.into();
    image.set_common(build.max_vcpus, build.store, build.console);
    image.prepare(build.memory)?;
    image.finish()?;
    let dom = image.dom();
    let (store, console) = (dom.xenstore_pfn, dom.console_pfn);
    Ok(KernelBuilt { store_frame: image.machine_frame(store)?, console_frame: image.machine_frame(console)? })
}

/// Where an HVM guest's memory goes, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    memory: KiB,
    mmio_size: u64,
    lowmem_end: u64,
    highmem_end: u64,
}

impl Layout {
    fn of(build: &HvmBuild) -> Result<Self> {
        let wrong = |reason: String| XenError::Invalid { operation: "build an HVM domain", reason };
        let memory = build.memory;
        if memory.video >= memory.target || memory.target > memory.max {
            return Err(wrong(format!(
                "video memory {} must be below the memory {}, and that not above the maximum {}",
                memory.video, memory.target, memory.max
            )));
        }
        if !(1..=xen_sys::HVM_MAX_VCPUS).contains(&build.max_vcpus) || build.online_vcpus > build.max_vcpus {
            return Err(wrong(format!(
                "{} of {} virtual CPUs online: there can be 1 to {}",
                build.online_vcpus,
                build.max_vcpus,
                xen_sys::HVM_MAX_VCPUS
            )));
        }
        let hole = build.mmio_hole.map_or(0, |hole| hole.get().saturating_mul(1024));
        // hvmloader and the first MiB of a PC need some room below the hole.
        if hole > GIB_4 - (16 << 20) {
            return Err(wrong("the MMIO hole leaves no memory below 4 GiB".to_owned()));
        }
        let mmio_size = hole.max(MMIO_HOLE);
        let memory = KiB(memory.max.get() - memory.video.get());
        let size = memory.get().checked_mul(1024).ok_or_else(|| wrong(format!("{memory} is too much")))?;
        let mmio_start = GIB_4 - mmio_size;
        let lowmem_end = size.min(mmio_start);
        let highmem_end = if size > mmio_start { GIB_4 + (size - mmio_start) } else { 0 };
        Ok(Self { memory, mmio_size, lowmem_end, highmem_end })
    }

    /// What hvmloader is told of the memory. Additional ACPI tables have no entry: hvmloader copies them.
    fn memory_map(&self) -> Vec<e820entry> {
        let size = self.lowmem_end.saturating_sub(LOW_RAM_START);
        let mut map = vec![e820entry { addr: LOW_RAM_START, size, type_: E820_RAM }];
        if self.highmem_end > GIB_4 {
            map.push(e820entry { addr: GIB_4, size: self.highmem_end - GIB_4, type_: E820_RAM });
        }
        map
    }
}

/// libxenguest's description of a domain that is being built, and all that it points to.
struct DomImage<'a> {
    dom: NonNull<xc_dom_image>,
    handle: &'a Handle,
    domid: DomId,
    // The library reads these until the image is released.
    blobs: Vec<Vec<u8>>,
    memory_map: Vec<e820entry>,
}

impl<'a> DomImage<'a> {
    fn new(handle: &'a Handle, domid: DomId, cmdline: Option<&CStr>) -> Result<Self> {
        handle.forget();
        keep_large_blocks_off_the_heaps();
        let cmdline = cmdline.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: the handle is open; the library copies the command line, and null stands for none.
        let dom = unsafe { xen_sys::xc_dom_allocate(handle.xc(), cmdline, ptr::null()) };
        let errno = Errno::last();
        let dom =
            NonNull::new(dom).ok_or_else(|| handle.refusal("xc_dom_allocate", Some(domid), -1, errno))?;
        Ok(Self { dom, handle, domid, blobs: Vec::new(), memory_map: Vec::new() })
    }

    fn dom(&mut self) -> &mut xc_dom_image {
        // SAFETY: the image lives as long as this value, and the library does not touch it between calls.
        unsafe { self.dom.as_mut() }
    }

    /// Keeps a blob's bytes until the image is released and describes them as a firmware module.
    fn keep(&mut self, what: &'static str, blob: &Blob) -> Result<xc_hvm_firmware_module> {
        let mut bytes = blob.read(what)?;
        let length = u32::try_from(bytes.len()).map_err(|_| XenError::Invalid {
            operation: "build an HVM domain",
            reason: format!("{what} of {} bytes cannot be described to it", bytes.len()),
        })?;
        // The heap block stays where it is when the vector is moved.
        let module = xc_hvm_firmware_module { data: bytes.as_mut_ptr(), length, guest_addr_out: 0 };
        self.blobs.push(bytes);
        Ok(module)
    }

    fn load_kernel(&mut self, what: &'static str, blob: &Blob) -> Result<()> {
        let bytes = blob.read(what)?;
        let (start, size) = (bytes.as_ptr().cast(), bytes.len());
        self.blobs.push(bytes);
        // SAFETY: the bytes are kept until the image is released, and the library only reads them.
        self.step("xc_dom_kernel_mem", |dom, _| unsafe { xen_sys::xc_dom_kernel_mem(dom, start, size) })
    }

    fn load_ramdisk(&mut self, blob: &Blob) -> Result<()> {
        let bytes = blob.read("RAM disk")?;
        let (start, size) = (bytes.as_ptr().cast(), bytes.len());
        self.blobs.push(bytes);
        // SAFETY: as for the kernel; null stands for no command line.
        self.step("xc_dom_module_mem", |dom, _| unsafe {
            xen_sys::xc_dom_module_mem(dom, start, size, ptr::null())
        })
    }

    fn set_common(&mut self, max_vcpus: u32, store: Channel, console: Channel) {
        let dom = self.dom();
        dom.max_vcpus = max_vcpus;
        dom.xenstore_evtchn = store.port.get();
        dom.xenstore_domid = store.peer.get().into();
        dom.console_evtchn = console.port.get();
        dom.console_domid = console.peer.get().into();
    }

    /// Finds out what the kernel is and gives the domain its memory.
    fn prepare(&mut self, memory: KiB) -> Result<()> {
        // The library counts in MiB.
        let mib =
            u32::try_from(memory.mib()).ok().filter(|mib| *mib > 0 && memory.get().is_multiple_of(1024));
        let Some(mib) = mib else {
            return Err(XenError::Invalid {
                operation: "build a domain",
                reason: format!("its memory must be whole MiB and not {memory}"),
            });
        };
        let domid = u32::from(self.domid.get());
        // SAFETY: for this and the following steps: the image is this value's own and complete up to the step.
        self.step("xc_dom_boot_xen_init", |dom, xc| unsafe {
            xen_sys::xc_dom_boot_xen_init(dom, xc, domid)
        })?;
        // SAFETY: see the first step.
        self.step("xc_dom_parse_image", |dom, _| unsafe { xen_sys::xc_dom_parse_image(dom) })?;
        // SAFETY: see the first step.
        self.step("xc_dom_mem_init", |dom, _| unsafe { xen_sys::xc_dom_mem_init(dom, mib) })?;
        // SAFETY: see the first step.
        self.step("xc_dom_boot_mem_init", |dom, _| unsafe { xen_sys::xc_dom_boot_mem_init(dom) })
    }

    fn set_memory_map(&mut self, map: Vec<e820entry>) -> Result<()> {
        self.memory_map = map;
        let domid = u32::from(self.domid.get());
        let start = self.memory_map.as_mut_ptr();
        let entries = u32::try_from(self.memory_map.len()).expect("a memory map of three entries at most");
        // SAFETY: the map has as many entries as is said.
        self.step("xc_domain_set_memory_map", |_, xc| unsafe {
            xen_sys::xc_domain_set_memory_map(xc, domid, start, entries)
        })?;
        // `xc_dom_boot_image` copies it into the guest's start information.
        self.dom().e820 = start;
        self.dom().e820_entries = entries;
        Ok(())
    }

    /// Puts everything into the domain's memory and its first state into its CPUs.
    fn finish(&mut self) -> Result<()> {
        // SAFETY: the image is this value's own, and memory was given to the domain.
        self.step("xc_dom_build_image", |dom, _| unsafe { xen_sys::xc_dom_build_image(dom) })?;
        // SAFETY: as above, and the image was built.
        self.step("xc_dom_boot_image", |dom, _| unsafe { xen_sys::xc_dom_boot_image(dom) })?;
        // SAFETY: as above; the rings' frames are known.
        self.step("xc_dom_gnttab_init", |dom, _| unsafe { xen_sys::xc_dom_gnttab_init(dom) })
    }

    /// The machine frame behind a frame of a PV domain (the inline function `xc_dom_p2m` in `xenguest.h`).
    fn machine_frame(&mut self, pfn: u64) -> Result<Gfn> {
        let domid = self.domid;
        let dom = self.dom();
        if pfn >= dom.total_pages || dom.pv_p2m.is_null() {
            return Err(XenError::refused("find a ring's machine frame", Some(domid), Errno::EFAULT));
        }
        let index = usize::try_from(pfn).expect("a frame number fits this machine's addresses");
        // SAFETY: the library's table has an entry for each of the domain's `total_pages`.
        Ok(Gfn(unsafe { dom.pv_p2m.add(index).read() }))
    }

    fn step(
        &mut self,
        operation: &'static str,
        call: impl FnOnce(*mut xc_dom_image, *mut xc_interface) -> c_int,
    ) -> Result<()> {
        let dom = self.dom.as_ptr();
        // Any number but zero is a failure here.
        self.handle
            .call(operation, Some(self.domid), |xc| match call(dom, xc) {
                positive @ 1.. => -positive,
                other => other,
            })
            .map(drop)
    }
}

impl Drop for DomImage<'_> {
    fn drop(&mut self) {
        // SAFETY: the image was allocated by `new` and this is its last use.
        unsafe { xen_sys::xc_dom_release(self.dom.as_ptr()) };
        self.blobs.clear();
        // SAFETY: it looks only at memory that is free.
        unsafe { malloc_trim(0) };
    }
}

unsafe extern "C" {
    /// Gives free memory of all heaps back to the kernel (glibc's `malloc_trim(3)`).
    fn malloc_trim(pad: usize) -> c_int;
    /// Sets a parameter of the heaps (glibc's `mallopt(3)`); not 0 when it was taken.
    fn mallopt(parameter: c_int, value: c_int) -> c_int;
}

/// Lets kernels and RAM disks never be parts of a heap.
///
/// glibc raises its threshold for that to the size of the largest block that was freed, unless it was set. The 20 MiB of
/// a second domain would come from a thread's heap then, whose end stays with the process whatever `malloc_trim` does.
fn keep_large_blocks_off_the_heaps() {
    /// `M_MMAP_THRESHOLD` of `malloc.h`.
    const M_MMAP_THRESHOLD: c_int = -3;
    /// glibc's own first value, in bytes.
    const THRESHOLD: c_int = 128 * 1024;
    static ONCE: Once = Once::new();
    // SAFETY: it takes two numbers and changes only where later blocks come from.
    ONCE.call_once(|| unsafe {
        mallopt(M_MMAP_THRESHOLD, THRESHOLD);
    });
}

fn placed(module: &xc_hvm_firmware_module) -> Option<Placed> {
    (module.guest_addr_out != 0).then_some(Placed { address: module.guest_addr_out, length: module.length })
}

/// Tells hvmloader of the virtual CPUs, of which libxenguest says that there is one
/// (`xen/include/public/hvm/hvm_info_table.h`).
fn complete_hvm_info(domid: DomId, build: &HvmBuild) -> Result<()> {
    let frame = Gfn(xen_sys::HVM_INFO_PFN.into());
    let page = ForeignMemory::open()?.map(domid, &[frame], Access::ReadWrite)?;
    let table = xen_sys::HVM_INFO_OFFSET as usize;
    let length = page.load_u32(table + offset_of!(hvm_info_table, length), Ordering::Relaxed);
    if length as usize != size_of::<hvm_info_table>() {
        return Err(XenError::Invalid {
            operation: "complete hvm_info",
            reason: format!("the table has {length} bytes, {} were expected", size_of::<hvm_info_table>()),
        });
    }
    write_hvm_info(&page, table, build);
    Ok(())
}

fn write_hvm_info(page: &SharedPages, table: usize, build: &HvmBuild) {
    let mut bytes = [0; size_of::<hvm_info_table>()];
    page.read(table, &mut bytes);
    bytes[offset_of!(hvm_info_table, apic_mode)] = build.apic.into();
    let vcpus = offset_of!(hvm_info_table, nr_vcpus);
    bytes[vcpus..vcpus + 4].copy_from_slice(&build.max_vcpus.to_le_bytes());
    let online = &mut bytes[offset_of!(hvm_info_table, vcpu_online)..];
    for (cpu, slot) in (0..xen_sys::HVM_MAX_VCPUS).step_by(8).zip(online) {
        // The lowest bits of what is left to set, all of them from eight on.
        let left = build.online_vcpus.saturating_sub(cpu).min(8);
        *slot = u8::try_from((1_u32 << left) - 1).expect("eight bits at most are set");
    }
    // All bytes of the table add up to zero.
    let checksum = offset_of!(hvm_info_table, checksum);
    bytes[checksum] = 0;
    bytes[checksum] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
    page.write(table, &bytes);
}

pub(crate) fn c_string(operation: &'static str, what: &str, text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| XenError::Invalid { operation, reason: format!("{what} contains a NUL byte") })
}

#[cfg(test)]
mod tests;
