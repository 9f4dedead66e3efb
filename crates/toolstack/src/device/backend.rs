//! Backends: their states, and waiting until they have taken their devices.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stubdom_abi::harmless;
use xen_types::DomId;
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// States of a device's end (`enum xenbus_state` in `xen/include/public/io/xenbus.h`): the backend has what it
/// needs.
const INIT_WAIT: u64 = 2;
/// Both ends work.
const CONNECTED: u64 = 4;
/// The end is closing or closed.
const CLOSING: u64 = 5;
/// The longest state or error text that is looked at, in bytes.
const TEXT_LIMIT: usize = 256;

/// Waits until each of these backends has taken its device.
pub(crate) fn wait_for(ts: &Toolstack, backends: Vec<XsPath>) -> StepResult {
    let mut watcher = Watcher::new();
    for parent in backends.iter().filter_map(XsPath::parent).collect::<BTreeSet<_>>() {
        watcher.watch(&ts.xenstore, &parent)?;
    }
    let deadline = Instant::now() + ts.deadlines.backends;
    let mut waiting = backends;
    let ready = watcher.until(deadline, || {
        let mut left = Vec::new();
        for backend in &waiting {
            match state(ts, backend)? {
                Some(state) if (INIT_WAIT..=CONNECTED).contains(&state) => {}
                Some(state) if state >= CLOSING => {
                    return Err(backend_trouble(ts, backend, Duration::ZERO));
                }
                _ => left.push(backend.clone()),
            }
        }
        waiting = left;
        Ok(waiting.is_empty().then_some(()))
    })?;
    match (ready, waiting.first()) {
        (None, Some(backend)) => Err(backend_trouble(ts, backend, ts.deadlines.backends)),
        _ => Ok(()),
    }
}

/// A backend's state; nothing when it has none, or one that is no number.
pub(crate) fn state(ts: &Toolstack, backend: &XsPath) -> Result<Option<u64>, Cause> {
    let value = ts.xenstore.read(&below(backend, "state"))?;
    Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.trim().parse().ok()))
}

/// Why a backend is not ready, with what its driver wrote about it.
pub(crate) fn backend_trouble(ts: &Toolstack, backend: &XsPath, after: Duration) -> Cause {
    let text = |path: &XsPath| {
        let value = ts.xenstore.read(path).ok().flatten()?;
        Some(harmless(value.get(..TEXT_LIMIT).unwrap_or(&value)))
    };
    let state = text(&below(backend, "state")).unwrap_or_else(|| "none".to_owned());
    // Linux's xenbus writes errors to `error/<path>/error` of the backend's domain.
    let dom0 = XsPath::domain(DomId::DOM0);
    let error = backend
        .strip_prefix(&dom0)
        .and_then(|rest| dom0.join(format!("error/{rest}/error")).ok())
        .and_then(|path| text(&path));
    Cause::Backend { path: backend.to_string(), after, state, error }
}
