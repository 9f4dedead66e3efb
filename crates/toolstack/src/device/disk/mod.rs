//! Disks: what can be one, what is behind it in dom0, and its script.

pub(crate) mod attach;

use std::path::Path;

use config::{Disk, DiskSource};
use xenbus::DeviceId;

use super::claims::open_disk;
use super::nodes::DiskBacking;
use super::script;
use crate::Toolstack;
use crate::dom0::{FileKind, HostDevices, OpenDisk};
use crate::error::Cause;
use crate::operation::StepResult;
use crate::record::{GuestRecord, LoopRecord};

/// The smallest file that can be a disk, in bytes.
const SECTOR: u64 = 512;

/// Whether a disk can be made of what is behind it.
pub(crate) fn check(source: &DiskSource, host: &dyn HostDevices) -> Result<(), Cause> {
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

/// Uses a block device directly and attaches an image file to a loop device, once for all backends of the disk. If the
/// disk is open already, that open file is attached; otherwise the disk is opened now.
pub(crate) fn attach_image(
    ts: &Toolstack,
    record: &mut GuestRecord,
    disk: &Disk,
    open: Option<&OpenDisk>,
) -> Result<DiskBacking, Cause> {
    if let DiskSource::Script { script, target } = &disk.source {
        let script = ts.paths.script(Path::new(script)).display().to_string();
        return Ok(DiskBacking::Script { script, target: target.clone() });
    }
    let now = if open.is_none() { open_disk(ts, disk)? } else { None };
    let Some(open) = open.or(now.as_ref()) else { return Ok(DiskBacking::Empty) };
    if let Some(device) = open.block_device() {
        return Ok(DiskBacking::Device { device });
    }
    let attachment = ts.host.attach_loop(open, !disk.is_writable(), &record.loop_tag())?;
    let device = attachment.device.clone();
    record.loops.push(LoopRecord { vdev: disk.vdev.to_string(), attachment });
    Ok(DiskBacking::Device { device })
}

/// Runs a disk's script for one of the disk's users.
pub(crate) fn run_script(ts: &Toolstack, record: &mut GuestRecord, script: &str, id: DeviceId) -> StepResult {
    let env = script::variables(script, id);
    script::run(ts, record, script, [vec!["add".to_owned()], vec!["remove".to_owned()]], env)
}

/// Detaches every loop device with the guest's tag, in its record or not.
pub(crate) fn detach_loops(ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
    for attachment in ts.host.find_loops(&record.loop_tag())? {
        ts.host.detach_loop(&attachment)?;
    }
    record.loops.clear();
    Ok(())
}
