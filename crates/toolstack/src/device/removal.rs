//! Removing devices: closing both ends, and removing their nodes and bridge ports.

use std::ops::RangeInclusive;
use std::time::Instant;

use xen_types::DomId;
use xenbus::{DeviceId, DeviceKind, XenbusState, backend_parent};
use xenstore::{Store, XsPath};

use super::backend::{state, watch_backends};
use crate::Toolstack;
use crate::batch::Batch;
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::record::GuestRecord;
use crate::wait::Watcher;

/// A backend in one of these works on its device, and will report when it has closed.
const AT_WORK: RangeInclusive<XenbusState> = XenbusState::InitWait..=XenbusState::Closing;

/// The PV devices of a domain that dom0's kernel serves.
pub(crate) fn devices_of(ts: &Toolstack, domid: DomId) -> Result<Vec<DeviceId>, Cause> {
    let mut devices = Vec::new();
    for kind in [DeviceKind::Vbd, DeviceKind::Vif] {
        let devids = ts.xenstore.list(&backend_parent(kind, DomId::DOM0, domid))?.unwrap_or_default();
        let devids = devids.iter().filter_map(|devid| devid.parse().ok());
        devices.extend(devids.map(|devid| DeviceId::of_dom0(kind, domid, devid)));
    }
    Ok(devices)
}

/// Closes all devices of these domains.
pub(crate) fn close_devices(ts: &Toolstack, domids: &[DomId]) -> StepResult {
    let mut devices = Vec::new();
    for domid in domids {
        devices.extend(devices_of(ts, *domid)?);
    }
    close(ts, &devices)
}

/// Tells the backends of these devices at the same time to close, and waits until they have.
///
/// The frontends' directories are removed in the same transaction: a backend whose frontend is gone closes without
/// waiting for it (`frontend_changed` of Linux's backends, `XenbusStateUnknown`). One whose frontend was gone before,
/// because its domain has died, is not waited for: it closes when its own directory is removed.
///
/// A driver that is just taking a device up writes what it can do below the backend's directory, whether that is still
/// there or not (`xen_blkbk_probe` of Linux), and would make it anew. So each first gets the time to end that.
pub(crate) fn close(ts: &Toolstack, devices: &[DeviceId]) -> StepResult {
    let watcher = watch_backends(ts, devices)?;
    // Without a driver for it in the backend's domain a device stays as it is, and nobody writes anything.
    await_none(ts, &watcher, devices.iter().map(|id| id.back()).collect(), |state| {
        state == XenbusState::Initialising
    })?;
    let mut batch = Batch::new();
    let mut awaited = Vec::new();
    for device in devices {
        let (front, back) = (device.front(), device.back());
        let at_work = state(ts, &back)?.is_some_and(|state| AT_WORK.contains(&state));
        if at_work && ts.xenstore.list(&front)?.is_some() {
            batch.remove(front);
            batch.write(&below(&back, "online"), "0");
            batch.write(&below(&back, "state"), XenbusState::Closing.value());
            awaited.push(back);
        }
    }
    if awaited.is_empty() {
        return Ok(());
    }
    batch.commit(&ts.xenstore)?;
    // A backend that has not closed loses its nodes all the same: the kernel ends it then.
    await_none(ts, &watcher, awaited, |state| AT_WORK.contains(&state))
}

/// Waits until none of these backends is in such a state, or the deadline for closing is over.
fn await_none(
    ts: &Toolstack,
    watcher: &Watcher,
    mut backends: Vec<XsPath>,
    such: impl Fn(XenbusState) -> bool,
) -> StepResult {
    watcher.until(Instant::now() + ts.deadlines.backends_close, || {
        let mut left = Vec::new();
        for back in &backends {
            if state(ts, back)?.is_some_and(&such) {
                left.push(back.clone());
            }
        }
        backends = left;
        Ok(backends.is_empty().then_some(()))
    })?;
    Ok(())
}

/// Removes everything that xenstore has of these devices, and the directories that are empty without them.
pub(crate) fn remove_device_nodes(ts: &Toolstack, devices: &[DeviceId]) -> StepResult {
    ts.xenstore.transaction(|inside| {
        for device in devices {
            for path in device.all() {
                inside.rm(&path)?;
            }
            for path in device.shared() {
                if inside.list(&path)?.is_some_and(|children| children.is_empty()) {
                    inside.rm(&path)?;
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Removes the vifs from their bridges. Those whose domid another domain has now disappeared with their backends.
pub(crate) fn remove_ports(ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
    while let Some(port) = record.ports.last() {
        if let Some(vif) = port.vif()
            && record.own_numbers(ts)?.contains(&vif.domid)
        {
            ts.host.remove_port(&port.interface, vif)?;
        }
        record.ports.pop();
    }
    Ok(())
}
