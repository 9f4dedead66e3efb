//! What is said of a guest in the header of its file.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use config::Uuid;
use migration_stream::libxl_json;
use migration_stream::metadata::Metadata;
use qemu_args::Facts;
use qmp::commands::QueryVersion;

use crate::error::Cause;
use crate::operation::StepResult;
use crate::record::GuestRecord;
use crate::{Toolstack, guest, stubdomain};

/// Fails if QEMU's devices are not where they would be in a restored guest.
pub(crate) fn check_places(ts: &Toolstack, record: &GuestRecord) -> StepResult {
    let qemu = stubdomain::Prepared::find(ts, &record.config)?.image.qemu;
    let plan = qemu_args::plan(&record.config, &Facts { uuid: record.uuid, qemu, incoming: true })?;
    stubdomain::check_places(ts, record.id(), &plan, &record.name)
}

/// What is said of a guest in the part of the header that only we read, and to another host.
pub(crate) fn describe(
    ts: &Toolstack,
    record: &GuestRecord,
    id: Uuid,
    processors: u32,
) -> Result<Metadata, Cause> {
    let monitor = ts.monitors.monitor(record.id())?;
    let version = qmp::run(&*monitor, &QueryVersion {}, Instant::now() + ts.deadlines.qmp)?.qemu;
    let xen = ts.hypervisor.version_info()?;
    let machine = record.machine.clone().ok_or_else(|| Cause::Unsupported {
        what: format!("Saving guest {}", record.name),
        why: "it was created by a release that did not record the machine type of its QEMU; destroy it and create it again first"
            .into(),
    })?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Metadata {
        id,
        name: record.name.clone(),
        uuid: record.uuid,
        config: record.config.clone(),
        machine,
        qemu_version: format!("{}.{}.{}", version.major, version.minor, version.micro),
        xen_version: format!("{}.{}{}", xen.major, xen.minor, xen.extra),
        xen_release: xen.release().to_string(),
        vcpus_online: processors,
        devices: Vec::new(),
        footers: false,
        starts_early: false,
        created,
        outrigger: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// What stock xl reads of a guest.
pub(crate) fn json(ts: &Toolstack, record: &GuestRecord, processors: u32) -> Result<Vec<u8>, Cause> {
    let config = &record.config;
    let (guest, stub) = (guest::Prepared::find(ts, config)?, stubdomain::Prepared::find(ts, config)?);
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let facts = libxl_json::Facts {
        uuid: record.uuid,
        online_vcpus: (0..processors).collect(),
        paging_memory: guest.paging_memory(config),
        generation_id: None,
        hvm_pirq: config.platform.hvm_pirq.unwrap_or(!xen::release::BUILT.hvm_pirq_is_optional()),
        stub_kernel: path(&stub.image.kernel),
        stub_ramdisk: path(&stub.image.ramdisk),
        stub_memory: stub.memory,
    };
    Ok(libxl_json::encode(config, &facts))
}
