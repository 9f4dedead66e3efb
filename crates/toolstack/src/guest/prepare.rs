//! What a guest's domain is made of, found and checked before anything is changed.

use std::path::PathBuf;

use config::{FirmwareKind, GuestConfig};
use xen_types::KiB;

use crate::Toolstack;
use crate::dom0::FileKind;
use crate::error::Cause;
use crate::operation::StepResult;

/// Memory that Xen needs for a domain beyond what is given to it, as libxl reckons (`LIBXL_HVM_EXTRA_MEMORY`).
const HVM_EXTRA: KiB = KiB(2048);
/// The largest OVMF image that is read, in bytes: they are 2 and 4 MiB large.
const OVMF_MAX: u64 = 64 << 20;

/// What a guest's domain is made of, besides its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) hvmloader: PathBuf,
    pub(crate) firmware: PathBuf,
    /// The number of its XSM label, 0 without one.
    pub(crate) label: u32,
    /// The processor translates its addresses, rather than Xen with shadow pages.
    pub(crate) hap: bool,
}

impl Prepared {
    /// Finds the parts of a guest; refuses what Xen cannot give it.
    pub(crate) fn find(ts: &Toolstack, config: &GuestConfig) -> Result<Self, Cause> {
        let host = ts.hypervisor.host_info()?.capabilities;
        check_supported(config, host)?;
        let label = label(ts, config)?;
        let firmware = &config.firmware;
        let (what, candidates) = match firmware.kind {
            FirmwareKind::SeaBios => ("SeaBIOS image", &ts.paths.seabios),
            FirmwareKind::Ovmf => ("OVMF image", &ts.paths.ovmf),
        };
        let named = firmware.hvmloader.as_deref();
        let hvmloader = one_of(ts, "hvmloader", named, &ts.paths.hvmloader, "install Xen's tools")?;
        let hint = "install it (seabios, ovmf) or set bios_path_override";
        let firmware = one_of(ts, what, firmware.bios_path.as_deref(), candidates, hint)?;
        Ok(Self { hvmloader, firmware, label, hap: config.platform.hap.unwrap_or(host.hap) })
    }

    /// What may surprise: since 2021 edk2's general OVMF has no part for Xen any more, and Debian 12's is such a one.
    /// OvmfXen has, and unlike the other begins as an ELF file (`OvmfPkg/OvmfXen.fdf`).
    pub(crate) fn warning(&self, ts: &Toolstack, config: &GuestConfig) -> Result<Option<String>, Cause> {
        let path = &self.firmware;
        if config.firmware.kind != FirmwareKind::Ovmf
            || ts.host.read_file(path, OVMF_MAX)?.starts_with(b"\x7fELF")
        {
            return Ok(None);
        }
        Ok(Some(format!(
            "{} does not look like an OVMF for Xen; the guest may never boot. \
             Set bios_path_override to edk2's OvmfXen",
            path.display()
        )))
    }

    /// What Xen gets to translate the guest's addresses: as libxl reckons, 1 MiB for each vCPU and a page for each
    /// MiB, twice with shadow paging (`libxl__get_required_paging_memory`).
    pub(crate) fn paging_memory(&self, config: &GuestConfig) -> KiB {
        let per_mib = if self.hap { 1 } else { 2 };
        let pages = 256 * u64::from(config.max_vcpus) + per_mib * config.max_memory.mib();
        config.shadow_memory.unwrap_or(KiB(4 * pages))
    }

    /// All memory that the domain takes from the host.
    pub(crate) fn memory_needed(&self, config: &GuestConfig) -> KiB {
        config.max_memory + self.paging_memory(config) + HVM_EXTRA
    }
}

/// Refuses what would otherwise be ignored silently.
fn check_supported(config: &GuestConfig, host: xen::HostCapabilities) -> StepResult {
    let no = |what: &str, why: &str| Err(Cause::Unsupported { what: what.to_owned(), why: why.to_owned() });
    if config.platform.vpmu && !host.vpmu {
        return no(
            "vpmu=1",
            "this Xen offers no performance counters; start Xen with vpmu=1, or omit the key",
        );
    }
    if config.vmtrace_buffer.get() > 0 && !host.vmtrace {
        return no("vmtrace_buf_kb", "this processor or this Xen cannot trace vCPUs; omit the key");
    }
    Ok(())
}

fn label(ts: &Toolstack, config: &GuestConfig) -> Result<u32, Cause> {
    let labels = &config.labels;
    if labels.guest.is_some() && labels.guest_init.is_some() && labels.guest != labels.guest_init {
        return Err(Cause::Unsupported {
            what: "init_seclabel".to_owned(),
            why: "a guest keeps the label that it is built with; specify only seclabel".to_owned(),
        });
    }
    ts.security_label(labels.guest.as_ref().or(labels.guest_init.as_ref()))
}

fn one_of(
    ts: &Toolstack,
    what: &'static str,
    named: Option<&str>,
    candidates: &[PathBuf],
    hint: &'static str,
) -> Result<PathBuf, Cause> {
    let named = named.map(|path| vec![PathBuf::from(path)]);
    let candidates = named.as_deref().unwrap_or(candidates);
    for path in candidates {
        if matches!(ts.host.file_kind(path)?, FileKind::Regular { .. }) {
            return Ok(path.clone());
        }
    }
    let all: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
    Err(Cause::Missing { what, path: all.join(" or "), hint })
}
