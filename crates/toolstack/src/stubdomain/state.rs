//! The state of QEMU's devices, out of a stubdomain and into another.

use std::time::{Duration, Instant};

use config::GuestConfig;
use qemu_args::Plan;
use qmp::commands::{
    Cont, PciDevice, QueryHotpluggableCpus, QueryMigrate, QueryPci, QueryStatus, Stop, XenSaveDevicesState,
};
use qmp::{Monitor, QmpError};
use stubdom_abi::{DmKey, Feature, StubReport};
use xenstore::{SpecialWatch, Store};

use super::start::Running;
use crate::Toolstack;
use crate::domain::{Domain, GuestId, lives};
use crate::error::Cause;
use crate::operation::StepResult;
use crate::wait::Watcher;

/// QEMU's name of the descriptor that the state goes out by (`docs/misc/stubdom.txt`).
const STATE_OUT: &str = "/dev/fdset/1";
/// What QEMU says of a state that it has loaded whole, as far as it knows.
const COMPLETED: &str = "completed";
/// What it says of itself when it has, and does not run yet.
const PAUSED: &str = "paused";

/// A device model: whose it is, and the domains of both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceModel {
    pub(crate) guest: GuestId,
    pub(crate) stub: Domain,
    pub(crate) target: Domain,
}

/// Fails unless the stubdomain can give its state in a way that shows where it ends.
pub(crate) fn check_state(ts: &Toolstack, of: DeviceModel, name: &str) -> StepResult {
    let report = StubReport::read_keys(&ts.xenstore, of.stub.domid(), of.target.domid(), &[DmKey::Features])?;
    if report.features().has(Feature::StateFrames) {
        return Ok(());
    }
    let why = format!("the image of {name}'s stubdomain does not say \"{}\"", Feature::StateFrames.word());
    Err(Cause::Unsupported { what: "Saving the state of this device model".to_owned(), why })
}

/// Whether another QEMU for this guest can be started before the guest's memory is there.
///
/// Such a QEMU cannot map the memory of the display, and maps it when it reads at which address the guest has it. While a
/// guest has it at none, for instance in its firmware, QEMU would never see what the guest draws.
pub(crate) fn can_start_early(ts: &Toolstack, guest: GuestId) -> Result<bool, Cause> {
    /// The base class of displays.
    const DISPLAY: u32 = 3;
    let monitor = ts.monitors.monitor(guest)?;
    let buses = qmp::run(&*monitor, &QueryPci {}, Instant::now() + ts.deadlines.qmp)?;
    let displays =
        buses.iter().flat_map(|bus| &bus.devices).filter(|device| device.class_info.class >> 8 == DISPLAY);
    let is_placed =
        |device: &PciDevice| device.regions.iter().any(|region| region.bar == 0 && region.address > 0);
    Ok(displays.into_iter().all(is_placed))
}

/// Stops QEMU, so that it writes neither to the guest's memory nor to its disks, and takes the state of its devices. The
/// guest has to be suspended already: what it writes to a device model that is stopped is lost.
pub(crate) fn take_state(ts: &Toolstack, of: DeviceModel) -> Result<Vec<u8>, Cause> {
    stop(ts, of.guest)?;
    take_stopped_state(ts, of)
}

/// The same of a QEMU that is stopped already.
pub(crate) fn take_stopped_state(ts: &Toolstack, of: DeviceModel) -> Result<Vec<u8>, Cause> {
    let monitor = ts.monitors.monitor(of.guest)?;
    let end = DmKey::StateEnd.path(of.stub.domid(), of.target.domid());
    let state = ts.states.receive(of.stub, ts.deadlines.state, &mut || {
        let save = XenSaveDevicesState { filename: STATE_OUT.to_owned(), live: false };
        qmp::run(&*monitor, &save, Instant::now() + ts.deadlines.state)?;
        Ok(ts.xenstore.write(&end, b"1")?)
    })?;
    Ok(state)
}

/// How many processors QEMU has. It keeps those that the guest was told to use no longer.
pub(crate) fn processors(ts: &Toolstack, guest: GuestId, config: &GuestConfig) -> Result<u32, Cause> {
    if config.max_vcpus == 1 {
        return Ok(1);
    }
    let monitor = ts.monitors.monitor(guest)?;
    let known = qmp::run(&*monitor, &QueryHotpluggableCpus {}, Instant::now() + ts.deadlines.qmp)?;
    let there = known.iter().filter(|cpu| cpu.qom_path.is_some()).count();
    Ok(u32::try_from(there).unwrap_or(config.max_vcpus).clamp(1, config.max_vcpus))
}

/// Fails if QEMU has a device where a QEMU that is started for this plan would have none, or one of another class: its
/// state would not fit. A device that QEMU lacks does no harm: the guest's drivers have unplugged it, and will again.
pub(crate) fn check_places(ts: &Toolstack, guest: GuestId, plan: &Plan, name: &str) -> StepResult {
    /// What the machine brings: host bridge, PIIX3, the platform device.
    const OWN: u32 = 3;
    let monitor = ts.monitors.monitor(guest)?;
    let buses = qmp::run(&*monitor, &QueryPci {}, Instant::now() + ts.deadlines.qmp)?;
    let planned = plan.pci_devices();
    let fits = |device: &PciDevice| {
        let its = planned.iter().find(|(slot, _)| *slot == device.slot);
        its.is_some_and(|(_, class)| class.is_none_or(|class| class == device.class_info.class))
    };
    let devices = buses.iter().filter(|bus| bus.bus == 0).flat_map(|bus| &bus.devices);
    match devices.filter(|device| device.slot >= OWN).find(|device| !fits(device)) {
        None => Ok(()),
        Some(device) => Err(Cause::Replugged { name: name.to_owned(), slot: device.slot }),
    }
}

/// Stops QEMU, whose guest is suspended. It ends what it does with the disks first.
pub(crate) fn stop(ts: &Toolstack, guest: GuestId) -> StepResult {
    let monitor = ts.monitors.monitor(guest)?;
    qmp::run(&*monitor, &Stop {}, Instant::now() + ts.deadlines.state)?;
    Ok(())
}

/// Lets QEMU run again; one that runs is fine. A daemon that has just started has no session with it yet: that is waited
/// for.
pub(crate) fn cont(ts: &Toolstack, guest: GuestId) -> StepResult {
    let after = ts.deadlines.device_model;
    let done = Watcher::new().until(Instant::now() + after, || {
        let monitor = match ts.monitors.monitor(guest) {
            Ok(monitor) => monitor,
            Err(QmpError::NoSession { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match qmp::run(&*monitor, &Cont {}, Instant::now() + ts.deadlines.qmp) {
            Ok(_) => Ok(Some(())),
            // It may still be at what it does with the disks.
            Err(QmpError::NoSession { .. } | QmpError::Lost { .. } | QmpError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?;
    done.ok_or(Cause::DeviceModelTimeout { after })
}

/// When a QEMU is started that reads a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// As soon as the stubdomain has booted: [`start_qemu`] was called. It waits for the state.
    Early,
    /// When the state is there, and the guest's memory.
    Held,
}

/// Has the agent start QEMU, now or when it has prepared everything.
pub(crate) fn start_qemu(ts: &Toolstack, stub: Domain, target: Domain) -> StepResult {
    Ok(ts.xenstore.write(&DmKey::Start.path(stub.domid(), target.domid()), b"1")?)
}

/// Has QEMU read this state, and waits until it says that it has. It does not run then.
pub(crate) fn load_state(
    ts: &Toolstack,
    running: Running,
    of: DeviceModel,
    (begin, state): (Begin, &[u8]),
) -> StepResult {
    await_hold(ts, running, (of, begin))?;
    if begin == Begin::Held {
        start_qemu(ts, of.stub, of.target)?;
    }
    ts.states.send(of.stub, state, ts.deadlines.state)?;
    let monitor = ts.monitors.monitor(of.guest)?;
    let after = ts.deadlines.device_model;
    let exit = DmKey::AgentExit;
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &exit.path(of.stub.domid(), of.target.domid()))?;
    // The guest stands still meanwhile, and nothing fires a watch.
    let loaded = watcher.looking_every(POLL).until(Instant::now() + after, || {
        let report = StubReport::read_keys(&ts.xenstore, of.stub.domid(), of.target.domid(), &[exit])?;
        let exit = report.exit();
        if exit.is_some() || !lives(ts, running.domain)? {
            return Err(Cause::StubdomainDied { exit });
        }
        is_loaded(&*monitor)
    })?;
    loaded.ok_or(Cause::DeviceModelTimeout { after })
}

/// Waits until the agent has everything prepared for QEMU, or has started it if it was to. An image that cannot hold its
/// QEMU does not serve QEMU's monitor before the guest runs.
fn await_hold(ts: &Toolstack, running: Running, (of, begin): (DeviceModel, Begin)) -> StepResult {
    let (stub, guest) = (of.stub.domid(), of.target.domid());
    // The step first: the agent says what it can do before it says how far it is.
    let keys = [DmKey::AgentStep, DmKey::Features, DmKey::AgentExit];
    let mut watcher = Watcher::new();
    for key in keys {
        watcher.watch(&ts.xenstore, &key.path(stub, guest))?;
    }
    watcher.watch(&ts.xenstore, &SpecialWatch::ReleaseDomain)?;
    let after = ts.deadlines.device_model;
    let held = watcher.until(running.since + after, || {
        let report = StubReport::read_keys(&ts.xenstore, stub, guest, &keys)?;
        let exit = report.exit();
        if exit.is_some() || !lives(ts, running.domain)? {
            return Err(Cause::StubdomainDied { exit });
        }
        if report.step().is_some() && !report.features().has(Feature::Hold) {
            let why = format!("the image of its stubdomain does not say \"{}\"", Feature::Hold.word());
            return Err(Cause::Unsupported { what: "Restoring a guest with this image".to_owned(), why });
        }
        let is_prepared = match begin {
            Begin::Held => report.is_held(),
            // It says either at first: the key may come before it looks, or behind.
            Begin::Early => report.is_held() || report.is_serving(),
        };
        Ok(is_prepared.then_some(()))
    })?;
    held.ok_or(Cause::DeviceModelTimeout { after })
}

/// How long it is until a QEMU that loads its state is asked again whether it has.
const POLL: Duration = Duration::from_millis(25);

/// How long one question waits for a session that is not there yet.
const QUESTION: Duration = Duration::from_secs(2);

/// Whether QEMU has read its state and waits for `cont`; nothing while it has not, or cannot be asked yet.
fn is_loaded(monitor: &dyn Monitor) -> Result<Option<()>, Cause> {
    let deadline = || Instant::now() + QUESTION;
    let migration = match qmp::run(monitor, &QueryMigrate {}, deadline()) {
        Ok(migration) => migration,
        Err(QmpError::NoSession { .. } | QmpError::Lost { .. } | QmpError::Timeout { .. }) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match migration.status.as_deref() {
        Some(COMPLETED) => {}
        Some("failed") => {
            let why = migration.error_desc.unwrap_or_else(|| "QEMU gives no reason".to_owned());
            return Err(Cause::StateRefused { why: stubdom_abi::harmless(why.as_bytes()) });
        }
        _ => return Ok(None),
    }
    let status = qmp::run(monitor, &QueryStatus {}, deadline())?;
    if status.status == PAUSED {
        return Ok(Some(()));
    }
    let why = format!(
        "it says that it is \"{}\", not \"{PAUSED}\"",
        stubdom_abi::harmless(status.status.as_bytes())
    );
    Err(Cause::StateRefused { why })
}
