//! Backends: their states, and waiting until they have taken their devices.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stubdom_abi::harmless;
use xenbus::{DeviceId, XenbusState, backend_parent};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// The longest state or error text that is looked at, in bytes.
const TEXT_LIMIT: usize = 256;

/// Waits until the backend of each of these devices has taken it.
pub(crate) fn wait_for(ts: &Toolstack, mut waiting: Vec<DeviceId>) -> StepResult {
    let watcher = watch_backends(ts, &waiting)?;
    let deadline = Instant::now() + ts.deadlines.backends;
    let ready = watcher.until(deadline, || {
        let mut left = Vec::new();
        for device in &waiting {
            match state(ts, &device.back())? {
                None | Some(XenbusState::Initialising) => left.push(*device),
                Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected) => {}
                Some(_) => return Err(backend_trouble(ts, *device, Duration::ZERO)),
            }
        }
        waiting = left;
        Ok(waiting.is_empty().then_some(()))
    })?;
    match (ready, waiting.first()) {
        (None, Some(device)) => Err(backend_trouble(ts, *device, ts.deadlines.backends)),
        _ => Ok(()),
    }
}

/// Watches the backends of these devices. Devices of one kind and frontend share a watch.
pub(crate) fn watch_backends(ts: &Toolstack, devices: &[DeviceId]) -> Result<Watcher, Cause> {
    let mut watcher = Watcher::new();
    let parent = |id: &DeviceId| backend_parent(id.kind, id.backend, id.frontend);
    for parent in devices.iter().map(parent).collect::<BTreeSet<_>>() {
        watcher.watch(&ts.xenstore, &parent)?;
    }
    Ok(watcher)
}

/// The state of a device's end, whose directory this is; nothing when it has none, or something else.
pub(crate) fn state(ts: &Toolstack, end: &XsPath) -> Result<Option<XenbusState>, Cause> {
    let value = ts.xenstore.read(&below(end, "state"))?;
    Ok(value.and_then(|value| XenbusState::parse(&value)))
}

/// Why a backend is not ready, with what its driver wrote about it.
pub(crate) fn backend_trouble(ts: &Toolstack, device: DeviceId, after: Duration) -> Cause {
    let back = device.back();
    let state = text(ts, &below(&back, "state")).unwrap_or_else(|| "none".to_owned());
    let error = text(ts, &below(&device.errors(), "error"));
    Cause::Backend { path: back.to_string(), after, state, error }
}

/// The text of a node, made harmless for a terminal; nothing where it cannot be read.
pub(crate) fn text(ts: &Toolstack, path: &XsPath) -> Option<String> {
    let value = ts.xenstore.read(path).ok().flatten()?;
    Some(harmless(value.get(..TEXT_LIMIT).unwrap_or(&value)))
}
