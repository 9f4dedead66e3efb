//! Checks before anything is changed.

use std::path::{Path, PathBuf};

use config::{DiskSource, FirmwareKind, GuestConfig, Nic};
use xen::DomainInfo;
use xen_types::{DomId, KiB};
use xenstore::{Store, XsPath};

use super::network::bridge;
use super::{Creation, Files, Labels, StubImage};
use crate::claims::claim;
use crate::error::Cause;
use crate::host::{FileKind, HostDevices, HostError};
use crate::operation::StepResult;
use crate::record::Records;
use crate::tree::below;

/// The longest name of a domain that is looked at, in bytes.
const NAME_LIMIT: usize = 4096;
/// The smallest file that can be a disk, in bytes.
const SECTOR: u64 = 512;
/// Memory that Xen needs for a domain beyond what is given to it, as libxl reckons (`LIBXL_HVM_EXTRA_MEMORY`).
const HVM_EXTRA: KiB = KiB(2048);
/// The same for a PV domain (`LIBXL_PV_EXTRA_MEMORY`).
const PV_EXTRA: KiB = KiB(1024);

impl Creation<'_> {
    /// Everything that can be known to fail before anything is changed.
    pub(super) fn check(&mut self) -> StepResult {
        let domains = self.ts.hypervisor.list_domains()?;
        self.check_identity(&domains, &self.ts.records()?)?;
        self.check_parts()?;
        self.check_memory()
    }

    /// The same for a guest that is to be restarted, as far as it can be known while it still has its name, its UUID and
    /// its memory: what would fail after it is destroyed would lose it.
    pub(super) fn check_restart(&mut self) -> StepResult {
        self.check_parts()?;
        let (uuid, names) = (self.record.uuid, [self.record.name.clone(), self.record.stub_name()]);
        if let Some(file) = self.ts.records()?.in_the_way(Some(uuid), &names) {
            return Err(Cause::UnreadableInTheWay { path: file.path.clone(), why: file.cause.chain() });
        }
        let lock = self.ts.lock_disks();
        // Released again: they are claimed when the guest is created.
        claim(self.ts, &lock, &mut self.record, &self.config.disks).map(drop)
    }

    /// What the guest is to be made of.
    fn check_parts(&mut self) -> StepResult {
        self.check_supported()?;
        self.labels = self.find_labels()?;
        self.files = find_files(self.config, self.ts)?;
        self.warn_of_silent_firmware()?;
        self.image = StubImage::find(self.config, &self.ts.paths, &*self.ts.host)?;
        // For its errors; it is made again when the guest's number is known.
        self.plan(DomId::DOM0)?;
        for disk in &self.config.disks {
            let about = |cause: Cause| cause.about(format!("Disk {}", disk.vdev));
            check_disk(&disk.source, &*self.ts.host).map_err(about)?;
        }
        for nic in &self.config.nics {
            check_bridge(nic, &*self.ts.host)
                .map_err(|cause| cause.about(format!("Network interface {}", nic.devid)))?;
        }
        Ok(())
    }

    /// The name, the stubdomain's name and the UUID must be free, in Xen and among guests that are being made.
    fn check_identity(&self, domains: &[DomainInfo], records: &Records) -> StepResult {
        let uuid = *self.record.uuid.as_bytes();
        if domains.iter().any(|domain| domain.uuid == uuid) {
            return Err(Cause::UuidTaken(self.record.uuid));
        }
        let wanted = [self.record.name.clone(), self.record.stub_name()];
        for domain in domains {
            let path = below(&XsPath::domain(domain.domid), "name");
            let Some(value) = self.ts.xenstore.read(&path)? else { continue };
            let name = String::from_utf8_lossy(value.get(..NAME_LIMIT).unwrap_or(&value)).into_owned();
            if wanted.contains(&name) {
                return Err(Cause::NameTaken { name, domid: domain.domid });
            }
        }
        self.check_records(records)
    }

    /// Checks the records, since guests that are being created may not be in Xen yet.
    pub(super) fn check_records(&self, records: &Records) -> StepResult {
        let wanted = [self.record.name.clone(), self.record.stub_name()];
        if let Some(file) = records.in_the_way(Some(self.record.uuid), &wanted) {
            return Err(Cause::UnreadableInTheWay { path: file.path.clone(), why: file.cause.chain() });
        }
        // A restarted guest's own record is among them.
        let others = records.guests.iter().filter(|record| record.stub_uuid != self.record.stub_uuid);
        for record in others {
            if record.uuid == self.record.uuid {
                return Err(Cause::UuidTaken(self.record.uuid));
            }
            if wanted.contains(&record.name) || wanted.contains(&record.stub_name()) {
                let domid = record.domid.unwrap_or(DomId::DOM0);
                return Err(Cause::NameTaken { name: record.name.clone(), domid });
            }
        }
        Ok(())
    }

    /// Refuses what would otherwise be ignored silently.
    fn check_supported(&self) -> StepResult {
        let no =
            |what: &str, why: &str| Err(Cause::Unsupported { what: what.to_owned(), why: why.to_owned() });
        let backends = self.config.disks.iter().map(|disk| &disk.backend);
        for backend in backends.chain(self.config.nics.iter().map(|nic| &nic.backend)) {
            check_backend(backend.as_deref())?;
        }
        let host = self.ts.hypervisor.host_info()?.capabilities;
        if self.config.platform.vpmu && !host.vpmu {
            return no(
                "vpmu=1",
                "this Xen offers no performance counters; start Xen with vpmu=1, or omit the key",
            );
        }
        if self.config.vmtrace_buffer.get() > 0 && !host.vmtrace {
            return no("vmtrace_buf_kb", "this processor or this Xen cannot trace vCPUs; omit the key");
        }
        Ok(())
    }

    fn find_labels(&self) -> Result<Labels, Cause> {
        let labels = &self.config.labels;
        if labels.guest.is_some() && labels.guest_init.is_some() && labels.guest != labels.guest_init {
            return Err(Cause::Unsupported {
                what: "init_seclabel".to_owned(),
                why: "a guest keeps the label that it is built with; specify only seclabel".to_owned(),
            });
        }
        let number = |label: Option<&String>| {
            label.map_or(Ok(0), |label| self.ts.hypervisor.security_id(label)).map_err(Cause::from)
        };
        Ok(Labels {
            guest: number(labels.guest.as_ref().or(labels.guest_init.as_ref()))?,
            stub: number(labels.device_model.as_ref())?,
        })
    }

    fn check_memory(&mut self) -> StepResult {
        let host = self.ts.hypervisor.host_info()?;
        self.hap = self.config.platform.hap.unwrap_or(host.capabilities.hap);
        let guest = self.config.max_memory + self.paging_memory() + HVM_EXTRA;
        let need = guest + self.stub_memory() + PV_EXTRA;
        // Memory that waits to be scrubbed is given out like free memory.
        let free = host.free_memory;
        if need > free { Err(Cause::Memory { need, free }) } else { Ok(()) }
    }

    /// What Xen gets to translate the guest's addresses: as libxl reckons, 1 MiB for each vCPU and a page for each
    /// MiB, twice with shadow paging (`libxl__get_required_paging_memory`).
    pub(super) fn paging_memory(&self) -> KiB {
        let per_mib = if self.hap { 1 } else { 2 };
        let pages = 256 * u64::from(self.config.max_vcpus) + per_mib * self.config.max_memory.mib();
        self.config.shadow_memory.unwrap_or(KiB(4 * pages))
    }

    /// What the stubdomain gets: its own and the guest's video memory, which its QEMU keeps a copy of.
    pub(super) fn stub_memory(&self) -> KiB {
        self.image.memory + self.config.display.video_memory
    }
}

/// Backends outside dom0 are refused.
pub(crate) fn check_backend(backend: Option<&str>) -> Result<(), Cause> {
    match backend {
        None | Some("0" | "Domain-0") => Ok(()),
        Some(other) => Err(Cause::Unsupported {
            what: format!("backend={other}"),
            why: "backends run only in dom0; omit the key".to_owned(),
        }),
    }
}

/// The bridge of a vif without a script must be there.
pub(crate) fn check_bridge(nic: &Nic, host: &dyn HostDevices) -> Result<(), Cause> {
    if nic.script.is_none() && !host.is_bridge(bridge(nic))? {
        return Err(HostError::NoBridge(bridge(nic).to_owned()).into());
    }
    Ok(())
}

/// Whether a disk can be made of what is behind it.
pub(crate) fn check_disk(source: &DiskSource, host: &dyn HostDevices) -> Result<(), Cause> {
    let DiskSource::Path(path) = source else { return Ok(()) };
    match host.file_kind(Path::new(path))? {
        FileKind::Block { .. } => Ok(()),
        FileKind::Regular { bytes } if bytes >= SECTOR => Ok(()),
        FileKind::Missing => Err(Cause::Missing {
            what: "disk image",
            path: path.clone(),
            hint: "check the path in the configuration",
        }),
        _ => Err(Cause::NotADisk { path: path.into() }),
    }
}

/// OVMF images are 2 and 4 MiB large.
const OVMF_MAX: u64 = 64 << 20;

impl Creation<'_> {
    /// Since 2021 edk2's general OVMF has no part for Xen any more, and Debian 12's is such a one; OvmfXen has, and
    /// unlike the other begins as an ELF file (`OvmfPkg/OvmfXen.fdf`).
    fn warn_of_silent_firmware(&mut self) -> Result<(), Cause> {
        let path = &self.files.firmware;
        if self.config.firmware.kind == FirmwareKind::Ovmf
            && !self.ts.host.read_file(path, OVMF_MAX)?.starts_with(b"\x7fELF")
        {
            self.warnings.push(format!(
                "{} does not look like an OVMF for Xen; the guest may never boot. \
                 Set bios_path_override to edk2's OvmfXen",
                path.display()
            ));
        }
        Ok(())
    }
}

fn find_files(config: &GuestConfig, ts: &crate::Toolstack) -> Result<Files, Cause> {
    let firmware = &config.firmware;
    let (what, candidates) = match firmware.kind {
        FirmwareKind::SeaBios => ("SeaBIOS image", &ts.paths.seabios),
        FirmwareKind::Ovmf => ("OVMF image", &ts.paths.ovmf),
    };
    let hvmloader =
        one_of(ts, "hvmloader", firmware.hvmloader.as_deref(), &ts.paths.hvmloader, "install Xen's tools")?;
    let firmware = one_of(
        ts,
        what,
        firmware.bios_path.as_deref(),
        candidates,
        "install it (seabios, ovmf) or set bios_path_override",
    )?;
    Ok(Files { hvmloader, firmware })
}

fn one_of(
    ts: &crate::Toolstack,
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
