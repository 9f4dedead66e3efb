//! Destroying a guest, also one that is incomplete; also the undo of creating one.
//!
//! Both domains are paused first, so that nothing of what follows can be slowed down by them; then their backends
//! close all at the same time. The domains are killed only then: xenstored removes a dead domain's nodes without
//! telling anyone who watches them, and a backend would not learn that its frontend is gone. Every function looks at
//! what is there and finds nothing to do at its second call.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use xen_types::DomId;
use xenstore::wire::ErrorCode;
use xenstore::{SpecialWatch, Store, StoreError, XsPath};

use crate::batch::Batch;
use crate::create::state;
use crate::domain::{Domain, GuestId};
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::host::{HostError, ScriptCall};
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Operation, Restart, Stage, Step, StepResult, Way, ids, run,
};
use crate::record::GuestRecord;
use crate::tree::{DeviceId, DeviceKind, backend_parent, below, libxl_dir, vm_dir};
use crate::wait::Watcher;
use crate::{Toolstack, UndoFailure};

/// `XenbusStateInitialising`: the backend's driver has not taken its device up, or is just doing so.
const INITIALISING: u64 = 1;
/// States of a backend (`enum xenbus_state`): it works on its device and will say when it has closed.
const AT_WORK: std::ops::RangeInclusive<u64> = 2..=5;
/// The backend shall close.
const CLOSING: &[u8] = b"5";

/// A guest being destroyed.
struct Removal<'a> {
    ts: &'a Toolstack,
    record: GuestRecord,
    killed: bool,
    /// What destroys it so that it is created again.
    restart: Option<Restart>,
    /// A script that may still be running, with its deadline: another copy of it is not started beside it.
    stuck: Option<(PathBuf, Duration)>,
}

fn steps<'b>() -> Vec<Step<Removal<'b>>> {
    vec![
        Step::new(ENTRY, "record the destruction", |r: &mut Removal<'_>| r.enter(Cursor::forward(ENTRY)))
            .entry()
            .point_of_no_return(),
        Step::new("pause", "pause the domains", Removal::pause),
        Step::new("close-devices", "close the devices", |r: &mut Removal<'_>| {
            close_devices(r.ts, &r.record.own_numbers(r.ts)?)
        }),
        Step::new("undo-scripts", "undo the scripts", Removal::undo_scripts),
        Step::new("leave-bridges", "remove vifs from bridges", |r: &mut Removal<'_>| {
            remove_ports(r.ts, &mut r.record)
        }),
        Step::new("kill", "destroy the domains", Removal::kill),
        Step::new("remove-nodes", "remove xenstore nodes", |r: &mut Removal<'_>| {
            remove_nodes(r.ts, &r.record)
        }),
        Step::new("detach-images", "detach disk images", |r: &mut Removal<'_>| {
            detach_loops(r.ts, &mut r.record)
        }),
        Step::new("await-end", "wait for the domains' end", Removal::wait),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::destroy`], in order.
    #[must_use]
    pub fn destroy_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Destroys a guest at once, its stubdomain, and everything that was made for them.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none, [`Error::NotClean`] when something stays; its state file stays then too,
    /// and destroying it again continues there.
    pub fn destroy(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let record = self.record_of(id)?;
        let name = record.name.clone();
        if record.operation.as_ref().is_some_and(|operation| operation.cursor.way == Way::Peer) {
            return Err(Cause::Held { name }.into());
        }
        self.remove(record, None, events).map(drop).map_err(|left| Error::NotClean { name, left })
    }

    /// Removes everything that was made for a guest, and its state file; a guest that is restarted gets a new one, which
    /// is returned. Returns what failed also the second time.
    pub(crate) fn remove(
        &self,
        record: GuestRecord,
        restart: Option<Restart>,
        events: &mut dyn FnMut(Event),
    ) -> Result<GuestRecord, Vec<UndoFailure>> {
        for script in record.scripts.iter().filter(|script| frontend_of(&script.backend).is_none()) {
            let (path, backend) = (script.script.display(), &script.backend);
            let text =
                format!("The script {path} is not run to undo its work: its device {backend:?} is unknown");
            events(Event::Warning { text });
        }
        let mut removal = Removal { ts: self, record, killed: false, restart, stuck: None };
        let left = run(&steps(), &mut removal, &self.faults, events);
        // Nothing is before the point of no return, so that nothing is undone.
        let left = left.unwrap_or_default();
        if left.is_empty() { Ok(removal.record) } else { Err(left) }
    }
}

impl OnGuest for Removal<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.ts, &mut self.record)
    }

    fn kind(&self) -> Kind {
        match &self.restart {
            Some(restart) => Kind::Restart(Restart { stage: Stage::Removing, ..restart.clone() }),
            None => Kind::Destroy,
        }
    }

    /// Removes the state file, or makes it that of the guest that follows.
    fn complete(&mut self) -> StepResult {
        let (host, paths) = (&*self.ts.host, &self.ts.paths);
        let Some(restart) = self.restart.clone() else { return self.record.remove(host, paths) };
        let mut next = self.ts.new_record(&self.record.config, self.record.uuid)?;
        let kind = Kind::Restart(Restart { stage: Stage::Creating, ..restart });
        next.operation = Some(Operation { kind, cursor: Cursor::back("") });
        next.save(host, paths)?;
        self.record = next;
        Ok(())
    }
}

impl Removal<'_> {
    fn pause(&mut self) -> StepResult {
        self.ts.find_domains(&mut self.record)?;
        self.record.domains(self.ts)?.into_iter().try_for_each(|domain| pause(self.ts, domain))
    }

    fn undo_scripts(&mut self) -> StepResult {
        if let Some((script, after)) = self.stuck.clone() {
            return Err(HostError::ScriptStuck { script, after }.into());
        }
        undo_scripts(self.ts, &mut self.record).inspect_err(|cause| {
            if let Cause::Host(HostError::ScriptStuck { script, after }) = cause {
                self.stuck = Some((script.clone(), *after));
            }
        })
    }

    fn kill(&mut self) -> StepResult {
        self.ts.monitors.release(self.record.id());
        self.record.domains(self.ts)?.into_iter().try_for_each(|domain| kill(self.ts, domain))?;
        self.killed = true;
        Ok(())
    }

    fn wait(&mut self) -> StepResult {
        // Domains that could not be killed before would be waited for in vain.
        if !self.killed {
            self.kill()?;
        }
        wait_gone(self.ts, self.record.domains(self.ts)?)
    }
}

/// Stops a domain's vCPUs; one that is gone is fine.
pub(crate) fn pause(ts: &Toolstack, domain: Domain) -> StepResult {
    match ts.hypervisor.pause_domain(domain.domid()) {
        Err(error) if !error.is_no_domain() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Destroys a domain; one that is gone is fine. xenstored releases it at once.
pub(crate) fn kill(ts: &Toolstack, domain: Domain) -> StepResult {
    match ts.hypervisor.destroy_domain(domain.domid()) {
        Err(error) if !error.is_no_domain() => return Err(error.into()),
        _ => {}
    }
    match ts.xenstore.release(domain.domid()) {
        // It was never introduced, or xenstored has noticed by itself; oxenstored calls that `EINVAL`.
        Err(StoreError::Refused { code: ErrorCode::NoEntry | ErrorCode::Invalid, .. }) => Ok(()),
        other => Ok(other?),
    }
}

/// Waits until domains are gone from Xen's list, that is, until nothing holds their memory any more.
pub(crate) fn wait_gone(ts: &Toolstack, domains: Vec<Domain>) -> StepResult {
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &SpecialWatch::ReleaseDomain)?;
    let after = ts.deadlines.domain_gone;
    let mut left = domains;
    let gone = watcher.until(Instant::now() + after, || {
        let mut still = Vec::new();
        for domain in &left {
            if ts.look(*domain)?.is_some() {
                still.push(*domain);
            }
        }
        left = still;
        Ok(left.is_empty().then_some(()))
    })?;
    match (gone, left.first()) {
        (None, Some(domain)) => Err(Cause::DomainStays { domid: domain.domid(), after }),
        _ => Ok(()),
    }
}

/// The PV devices of a domain that the kernel serves.
pub(crate) fn devices_of(ts: &Toolstack, domid: DomId) -> Result<Vec<DeviceId>, Cause> {
    let mut devices = Vec::new();
    for kind in [DeviceKind::Vbd, DeviceKind::Vif] {
        let devids = ts.xenstore.list(&backend_parent(kind, domid))?.unwrap_or_default();
        let devids = devids.iter().filter_map(|devid| devid.parse().ok());
        devices.extend(devids.map(|devid| DeviceId::new(kind, domid, devid)));
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
    let mut watcher = Watcher::new();
    let parents: BTreeSet<_> = devices.iter().map(|id| backend_parent(id.kind, id.frontend)).collect();
    for parent in &parents {
        watcher.watch(&ts.xenstore, parent)?;
    }
    // Without a driver for it in dom0 a device stays as it is, and nobody writes anything.
    await_none(ts, &watcher, devices.iter().map(|id| id.back()).collect(), |state| state == INITIALISING)?;
    let mut batch = Batch::new();
    let mut awaited = Vec::new();
    for device in devices {
        let (front, back) = (device.front(), device.back());
        let at_work = state(ts, &back)?.is_some_and(|state| AT_WORK.contains(&state));
        if at_work && ts.xenstore.list(&front)?.is_some() {
            batch.remove(front);
            batch.write(&below(&back, "online"), "0");
            batch.write(&below(&back, "state"), CLOSING);
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
    such: impl Fn(u64) -> bool,
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

/// Undoes every script that has run, last first, by running it again with the arguments for that. Those that would find
/// another domain's device under the domid, or whose device is unknown, are forgotten without being run.
pub(crate) fn undo_scripts(ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
    let deadline = ts.deadlines.script;
    let mut outcome = Ok(());
    while let Some(script) = record.scripts.last().cloned() {
        let ours = record.own_numbers(ts)?;
        record.scripts.pop();
        if !frontend_of(&script.backend).is_some_and(|domid| ours.contains(&domid)) {
            continue;
        }
        let call = ScriptCall {
            script: script.script.clone(),
            args: script.args.clone(),
            env: script.env.clone(),
            deadline,
        };
        if let Err(error) = ts.host.run_script(&call) {
            record.scripts.push(script);
            outcome = Err(error.into());
            break;
        }
    }
    outcome
}

/// Runs the scripts of these devices again with the arguments that take them back, last first.
pub(crate) fn undo_scripts_of(ts: &Toolstack, record: &mut GuestRecord, devices: &[DeviceId]) -> StepResult {
    let names: Vec<String> = devices.iter().map(|id| id.backend_name()).collect();
    let (theirs, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut record.scripts).into_iter().partition(|script| names.contains(&script.backend));
    record.scripts = theirs;
    let outcome = undo_scripts(ts, record);
    // The others were there first.
    let left = std::mem::replace(&mut record.scripts, others);
    record.scripts.extend(left);
    outcome
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

/// The frontend's domid in `backend/<kind>/<domid>/<devid>`.
fn frontend_of(backend: &str) -> Option<DomId> {
    let mut words = backend.strip_prefix("backend/")?.split('/');
    let (_kind, domid, _devid) = (words.next()?, words.next()?, words.next()?.parse::<u64>().ok()?);
    if words.next().is_some() { None } else { domid.parse().ok() }
}

/// Detaches every loop device with the guest's tag, in its record or not.
pub(crate) fn detach_loops(ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
    for attachment in ts.host.find_loops(&record.loop_tag())? {
        ts.host.detach_loop(&attachment)?;
    }
    record.loops.clear();
    Ok(())
}

/// Removes everything that xenstore has of the two domains.
pub(crate) fn remove_nodes(ts: &Toolstack, record: &GuestRecord) -> StepResult {
    let mut batch = Batch::new();
    for domid in record.own_numbers(ts)? {
        remove_numbered(ts, &mut batch, domid)?;
    }
    let own = [record.domid, record.stub_domid];
    let domains = ts.hypervisor.list_domains()?;
    for uuid in [record.uuid, record.stub_uuid] {
        // Another toolstack may have created a guest from the same configuration.
        let another =
            |info: &xen::DomainInfo| info.uuid == *uuid.as_bytes() && !own.contains(&Some(info.domid));
        if !domains.iter().any(another) {
            batch.remove(vm_dir(uuid));
        }
    }
    batch.apply(&ts.xenstore)?;
    remove_empty_kinds(ts)
}

/// Removes the directories of the kinds of which no backend is left, as libxl does (`libxl__xs_path_cleanup`), and those
/// of which no error is left.
fn remove_empty_kinds(ts: &Toolstack) -> StepResult {
    let dom0 = XsPath::domain(DomId::DOM0);
    let (backends, errors) = (below(&dom0, "backend"), below(&dom0, "error/backend"));
    let kinds = |of: &XsPath| DeviceKind::ALL.map(|kind| below(of, kind.name()));
    // A transaction, so that a device which someone adds meanwhile is not taken along.
    ts.xenstore.transaction(|inside| {
        let mut dirs: Vec<_> = kinds(&backends).into_iter().chain([backends.clone()]).collect();
        if inside.list(&errors)?.is_some() {
            dirs.extend(kinds(&errors).into_iter().chain([errors.clone(), below(&dom0, "error")]));
        }
        for dir in dirs {
            if inside.list(&dir)?.is_some_and(|children| children.is_empty()) {
                inside.rm(&dir)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn remove_numbered(ts: &Toolstack, batch: &mut Batch, domid: DomId) -> StepResult {
    let dom0 = XsPath::domain(DomId::DOM0);
    // Where Linux's xenbus writes the errors of backends.
    let errors = ts.xenstore.list(&below(&dom0, "error/backend"))?.is_some();
    for kind in DeviceKind::ALL {
        batch.remove(backend_parent(kind, domid));
        if errors {
            batch.remove(below(&dom0, &format!("error/backend/{}/{domid}", kind.name())));
        }
    }
    batch.remove(XsPath::domain(domid)).remove(libxl_dir(domid));
    Ok(())
}
