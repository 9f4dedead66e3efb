//! Waiting until the backends and the device model are ready.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stubdom_abi::{DmKey, StubReport, harmless};
use xen_types::DomId;
use xenstore::{SpecialWatch, Store, XsPath};

use super::Creation;
use crate::Toolstack;
use crate::destroy::devices_of;
use crate::domain::Domain;
use crate::error::Cause;
use crate::operation::StepResult;
use crate::tree::{DeviceId, below};
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

impl Creation<'_> {
    /// Waits until each disk's and interface's backend has taken its device.
    pub(super) fn wait_for_backends(&mut self) -> StepResult {
        let mut backends = Vec::new();
        for domid in self.record.own_numbers(self.ts)? {
            backends.extend(devices_of(self.ts, domid)?.into_iter().map(DeviceId::back));
        }
        wait_for(self.ts, backends)
    }

    /// Waits until QEMU says that it runs; the end of the stubdomain ends the waiting at once.
    pub(super) fn wait_for_device_model(&mut self) -> StepResult {
        let stub_domain = self.stub_domain()?;
        let (stub, guest) = (stub_domain.domid(), self.domid()?);
        let keys = [DmKey::State, DmKey::AgentExit];
        let mut watcher = Watcher::new();
        for key in keys {
            watcher.watch(&self.ts.xenstore, &key.path(stub, guest))?;
        }
        watcher.watch(&self.ts.xenstore, &SpecialWatch::ReleaseDomain)?;
        let after = self.ts.deadlines.device_model;
        let deadline = self.stub_started.unwrap_or_else(Instant::now) + after;
        let ready = watcher.until(deadline, || {
            let report = StubReport::read_keys(&self.ts.xenstore, stub, guest, &keys)?;
            if report.is_running() {
                return Ok(Some(()));
            }
            let exit = report.exit();
            if exit.is_some() || !lives(self.ts, stub_domain)? {
                return Err(Cause::StubdomainDied { exit });
            }
            Ok(None)
        })?;
        if ready.is_some() {
            return Ok(());
        }
        Err(Cause::DeviceModelTimeout { after })
    }
}

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

/// Whether a domain is there and has neither shut down nor crashed.
pub(crate) fn lives(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    let info = ts.look(domain)?;
    Ok(info.is_some_and(|info| !info.state.dying && info.state.shutdown.is_none()))
}

/// A backend's state; nothing when it has none, or one that is no number.
pub(crate) fn state(ts: &Toolstack, backend: &XsPath) -> Result<Option<u64>, Cause> {
    let value = ts.xenstore.read(&below(backend, "state"))?;
    Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.trim().parse().ok()))
}

/// Why a backend is not ready, with what its driver wrote about it.
pub(super) fn backend_trouble(ts: &Toolstack, backend: &XsPath, after: Duration) -> Cause {
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
