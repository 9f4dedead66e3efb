//! Restoring a saved guest: a create whose guest goes on where it was.
//!
//! The steps are those of a create in another order, because the stubdomain boots while the guest's memory is read: its
//! agent prepares everything and holds QEMU, which must not start before all pages are there. QEMU reads the state of
//! its devices and waits; it is asked whether it has, then it runs, and the guest after it.

use super::create::{Creation, Nodes, START};
use crate::device::{disk, removal, script};
use crate::error::ToolstackError as Error;
use crate::event::Event;
use crate::operation::{ENTRY, Step, StepResult, ids, run};
use crate::saved::Saved;
use crate::stubdomain::{self, Begin, DeviceModel};
use crate::{Cause, Guest, Toolstack};

/// How a saved guest is restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Leave it paused.
    pub paused: bool,
    /// Restore it although its disks were written to after it was saved, or it was migrated to another host.
    pub force: bool,
}

/// The steps. Those that a create has too have its ids and undo: a restore that was interrupted is undone like a create.
fn steps<'a, 'b>() -> Vec<Step<Creation<'b>>>
where
    'b: 'a,
{
    let mut steps = vec![
        Step::new("check", "check the saved guest", Creation::check),
        Step::new(ENTRY, "write the state file", Creation::write_record).entry(),
    ];
    steps.extend(domain_steps());
    steps.extend([
        Step::new("restore-memory", "read the guest's memory", restore_memory),
        Step::new("introduce", "introduce the guest", introduce),
        Step::new("connect-nics", "connect network interfaces", Creation::connect_nics)
            .undo(|c: &mut Creation<'_>| removal::remove_ports(c.ts, &mut c.record)),
        Step::new("await-backends", "wait for the backends", Creation::await_backends),
        Step::new("load-devices", "load the state of QEMU's devices", load_devices),
        Step::new("run-device-model", "let the device model run", run_device_model),
        Step::new(START, "start the guest", Creation::start_guest).undo(Creation::stop_guest),
    ]);
    steps
}

/// The domains, with a stubdomain that boots and holds its QEMU.
pub(super) fn domain_steps<'a, 'b>() -> [Step<Creation<'b>>; 8]
where
    'b: 'a,
{
    [
        Step::new("make-guest", "make the guest's domain", Creation::make_guest).undo(Creation::unmake_guest),
        Step::new("make-stubdomain", "make the stubdomain", Creation::make_stub).undo(Creation::unmake_stub),
        Step::new("attach-images", "attach disk images", Creation::attach_images)
            .undo(|c: &mut Creation<'_>| disk::detach_loops(c.ts, &mut c.record)),
        Step::new("write-nodes", "write the xenstore trees", Creation::write_nodes)
            .undo(Creation::remove_nodes),
        Step::new("run-disk-scripts", "run disk scripts", Creation::run_disk_scripts)
            .undo(|c: &mut Creation<'_>| script::undo_all(c.ts, &mut c.record)),
        Step::new("build-stubdomain", "build the stubdomain", Creation::build_stub),
        Step::new("write-arguments", "write the stubdomain's arguments", describe_stub),
        Step::new("start-stubdomain", "start the stubdomain", start_stub).undo(stop_stub),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::restore`], in order.
    #[must_use]
    pub fn restore_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Makes a guest that goes on where it was saved.
    ///
    /// # Errors
    /// As for [`Self::create`]. The file of the saved guest is only read, whatever happens.
    pub fn restore(
        &self,
        saved: Saved,
        options: &RestoreOptions,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let config = saved.config.clone();
        let record = self.new_record(&config, saved.uuid)?;
        let mut restoration = Creation::new(self, &config, record);
        (restoration.paused, restoration.force) = (options.paused, options.force);
        if !options.force {
            saved.check_disks(self)?;
        }
        restoration.saved = Some(saved);
        let result = run(&steps(), &mut restoration, &self.faults, events).map(drop);
        restoration.conclude(result, events)
    }
}

fn describe_stub(c: &mut Creation<'_>) -> StepResult {
    let mut nodes = Nodes::default();
    c.describe_stub(&mut nodes)?;
    nodes.write(c.ts)?;
    match begin(c) {
        Begin::Early => {
            let (stub, guest) = (c.progress.stub_made()?.domain, c.progress.guest_made()?.domain);
            stubdomain::start_qemu(c.ts, stub, guest)
        }
        Begin::Held => Ok(()),
    }
}

fn begin(c: &Creation<'_>) -> Begin {
    let is_early = c.incoming.as_ref().is_some_and(|incoming| incoming.starts_early);
    if is_early { Begin::Early } else { Begin::Held }
}

/// xenstored gets to know the stubdomain alone: the guest's ring comes with its memory.
fn start_stub(c: &mut Creation<'_>) -> StepResult {
    c.introduce_stub()?;
    c.start_stub()?;
    if let Some(guest) = c.record.clone().guest() {
        c.ts.monitors.begin(&guest);
    }
    Ok(())
}

fn stop_stub(c: &mut Creation<'_>) -> StepResult {
    if let Some(guest) = c.record.clone().guest() {
        c.ts.monitors.give_up(&guest);
    }
    c.stop_stub()
}

fn restore_memory(c: &mut Creation<'_>) -> StepResult {
    c.build_guest()?;
    if let Some(saved) = &c.saved {
        c.state = saved.read_state(c.ts.deadlines.state)?;
    }
    Ok(())
}

pub(super) fn introduce(c: &mut Creation<'_>) -> StepResult {
    let mut nodes = Nodes::default();
    c.describe_guest(&mut nodes)?;
    nodes.write(c.ts)?;
    c.introduce_guest()
}

pub(super) fn load_devices(c: &mut Creation<'_>) -> StepResult {
    let running = c.progress.stub_running()?;
    let target = c.progress.guest_made()?.domain;
    let of = DeviceModel { guest: c.record.id(), stub: running.domain, target };
    let state = std::mem::take(&mut c.state);
    stubdomain::load_state(c.ts, running, of, (begin(c), &state))
}

/// QEMU says that it runs in the same way as after a fresh start.
pub(super) fn run_device_model(c: &mut Creation<'_>) -> Result<(), Cause> {
    stubdomain::cont(c.ts, c.record.id())?;
    let running = stubdomain::Running { since: std::time::Instant::now(), ..c.progress.stub_running()? };
    stubdomain::await_device_model(c.ts, running, c.progress.guest_made()?.domain)
}
