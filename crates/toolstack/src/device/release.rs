//! Detaching one PV device, with or without asking the guest.

use std::time::Instant;

use xenbus::{DeviceId, XenbusState};
use xenstore::Store;

use crate::Toolstack;
use crate::device::backend::state;
use crate::device::removal::{close, remove_device_nodes};
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// Asks the frontend to release the device and waits until its backend has closed. A device without a driver is not
/// asked for.
pub(crate) fn ask(ts: &Toolstack, name: &str, device: DeviceId) -> StepResult {
    let (front, back) = (device.front(), device.back());
    if state(ts, &front)? != Some(XenbusState::Connected) {
        return Ok(());
    }
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &back)?;
    watcher.watch(&ts.xenstore, &below(&front, "state"))?;
    write_states(ts, device, "0", XenbusState::Closing)?;
    let after = ts.deadlines.release;
    let closed = watcher.until(Instant::now() + after, || {
        let open = |end: Option<XenbusState>| end.is_some_and(|state| state <= XenbusState::Closing);
        Ok((!open(state(ts, &front)?) || !open(state(ts, &back)?)).then_some(()))
    })?;
    match closed {
        Some(()) => Ok(()),
        None => Err(Cause::NotReleased { name: name.to_owned(), device: "the device".to_owned(), after }),
    }
}

/// Withdraws a request to release a device; returns whether the device keeps working because the guest had not released
/// it.
pub(crate) fn withdraw(ts: &Toolstack, device: DeviceId) -> Result<bool, Cause> {
    let (front, back) = (state(ts, &device.front())?, state(ts, &device.back())?);
    if back == Some(XenbusState::Closing) && front == Some(XenbusState::Connected) {
        write_states(ts, device, "1", XenbusState::Connected)?;
        return Ok(true);
    }
    let open = |end: Option<XenbusState>| end.is_some_and(|state| state < XenbusState::Closing);
    Ok(open(back) && open(front))
}

fn write_states(ts: &Toolstack, device: DeviceId, online: &str, to: XenbusState) -> StepResult {
    let back = device.back();
    ts.xenstore.transaction(|inside| {
        // Not below a directory that has gone meanwhile.
        if inside.read(&below(&back, "state"))?.is_some() {
            inside.write(&below(&back, "online"), online.as_bytes())?;
            inside.write(&below(&back, "state"), to.value())?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Closes devices, whatever their frontends do, and removes all that xenstore has of them.
pub(crate) fn remove(ts: &Toolstack, devices: &[DeviceId]) -> StepResult {
    close(ts, devices)?;
    remove_device_nodes(ts, devices)
}
