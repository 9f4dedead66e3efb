//! Making a guest: the list of steps, and what they know of each other.

mod arguments;
mod checks;
mod devices;
mod guest;
mod image;
mod network;
mod ready;
mod stub;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use config::{GuestConfig, Uuid};
use qemu_args::StubDisk;
use xen::{Channel, HvmBuilt, PvBuilt};
use xen_types::DomId;

use crate::claims::{OpenDisks, claim};
use crate::destroy;
use crate::domain::Domain;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Operation, Restart, Stage, Step, StepResult, ids, resume, run,
};
use crate::record::{EmulatedDisk, GuestRecord};
use crate::tree::{DiskBacking, DomainTree};
use crate::{Guest, Toolstack};
pub(crate) use checks::{check_backend, check_bridge, check_disk};
pub(crate) use devices::{attach_image, describe, run_disk_script};
pub(crate) use guest::EXTRA_MEMORY;
use image::StubImage;
pub(crate) use network::{Vif, bridge};
pub(crate) use ready::{lives, state, wait_for};

/// How many of the last lines of the stubdomain's log go into an error.
const LOG_LINES: usize = 20;

/// How many lines of its end are looked at for them.
const LOG_LOOKED_AT: usize = 120;
/// The id of the last step.
pub(crate) const START: &str = "start-guest";
/// The stubdomain's kernel prints this when the agent ends the domain as crashed; the trace that follows is of no use.
const ENDED_BY_AGENT: &str = "sysrq: Trigger a crash";

/// The last lines, without the trace of an end that the agent chose.
fn before_end(mut lines: Vec<String>) -> Vec<String> {
    if let Some(end) = lines.iter().rposition(|line| line.contains(ENDED_BY_AGENT)) {
        lines.truncate(end);
    }
    lines.split_off(lines.len().saturating_sub(LOG_LINES))
}

/// How a guest is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Leave it paused.
    pub paused: bool,
    /// Take this UUID instead of the configuration's or a random one, as a restart does.
    pub uuid: Option<Uuid>,
}

/// The files in dom0 that go into the guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    pub(crate) hvmloader: PathBuf,
    pub(crate) firmware: PathBuf,
}

/// A guest that is being made.
pub(crate) struct Creation<'a> {
    pub(crate) ts: &'a Toolstack,
    pub(crate) config: &'a GuestConfig,
    pub(crate) paused: bool,
    pub(crate) record: GuestRecord,
    /// The state file is this guest's.
    pub(crate) recorded: bool,
    /// The restart that creates it, which goes on when what was interrupted of it is undone.
    pub(crate) restart: Option<Restart>,
    pub(crate) goes_on: bool,
    pub(crate) files: Files,
    pub(crate) image: StubImage,
    pub(crate) hap: bool,
    pub(crate) labels: Labels,
    pub(crate) guest_channels: Option<Channels>,
    pub(crate) stub_channels: Option<Channels>,
    pub(crate) guest_built: Option<HvmBuilt>,
    pub(crate) stub_built: Option<PvBuilt>,
    /// What is behind each disk, by its name.
    pub(crate) backings: BTreeMap<String, DiskBacking>,
    /// The claimed disks, held open until the backends have them.
    pub(crate) disks: OpenDisks,
    pub(crate) stub_started: Option<Instant>,
    pub(crate) warnings: Vec<String>,
}

/// The numbers of the XSM labels, 0 without one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Labels {
    pub(crate) guest: u32,
    pub(crate) stub: u32,
}

/// The two event channels that a domain is born with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) store: Channel,
    pub(crate) console: Channel,
}

/// The steps, in order.
///
/// The order has its reasons:
/// - The stubdomain's image starts while nothing else has to be waited for, so the stubdomain starts as soon as its
///   QEMU would find everything: the guest built and introduced (xenstored's SET_TARGET wants both domains
///   connected), its arguments, its devices' nodes.
/// - Backends and bridges are waited for while the stubdomain boots.
/// - The guest runs last: a vCPU that exits to a device model that is not there waits forever.
fn steps<'a, 'b>() -> Vec<Step<Creation<'b>>>
where
    'b: 'a,
{
    vec![
        Step::new("check", "check the configuration", Creation::check),
        Step::new(ENTRY, "write the state file", Creation::write_record).entry(),
        Step::new("make-guest", "make the guest's domain", Creation::make_guest).undo(Creation::unmake_guest),
        Step::new("make-stubdomain", "make the stubdomain", Creation::make_stub).undo(Creation::unmake_stub),
        Step::new("attach-images", "attach disk images", Creation::attach_images)
            .undo(Creation::detach_images),
        Step::new("write-nodes", "write the xenstore trees", Creation::write_trees)
            .undo(Creation::remove_trees),
        Step::new("run-disk-scripts", "run disk scripts", Creation::run_disk_scripts)
            .undo(Creation::undo_scripts),
        Step::new("build-guest", "build the guest", Creation::build_guest),
        Step::new("build-stubdomain", "build the stubdomain", Creation::build_stub),
        Step::new("write-arguments", "write consoles and arguments", Creation::write_details),
        // No undo: the domains' end is xenstored's news of it. Releasing one that lives would let consoles miss it.
        Step::new("introduce", "introduce the domains", Creation::introduce),
        Step::new("start-stubdomain", "start the stubdomain", Creation::start_stub).undo(Creation::stop_stub),
        Step::new("connect-nics", "connect network interfaces", Creation::connect_nics)
            .undo(Creation::disconnect_nics),
        Step::new("await-backends", "wait for the backends", |c: &mut Creation<'_>| {
            c.wait_for_backends()?;
            c.disks.clear();
            Ok(())
        }),
        Step::new("await-device-model", "wait for the device model", Creation::wait_for_device_model),
        Step::new(START, "start the guest", Creation::start_guest).undo(Creation::stop_guest),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::create`], in order.
    #[must_use]
    pub fn create_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Makes a guest and its stubdomain, and starts both.
    ///
    /// # Errors
    /// [`Error::Step`] with the step, its cause and the stubdomain's last log lines. Everything was undone then, except
    /// what [`crate::Failure::undo`] lists.
    pub fn create(
        &self,
        config: &GuestConfig,
        options: CreateOptions,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let uuid = match options.uuid.or(config.uuid) {
            Some(uuid) => uuid,
            None => self.random_uuid()?,
        };
        let record = self.new_record(config, uuid)?;
        let mut creation = Creation::new(self, config, record);
        creation.paused = options.paused;
        creation.run(events)
    }

    /// A record of a guest that is to be created in this boot of the host.
    pub(crate) fn new_record(&self, config: &GuestConfig, uuid: Uuid) -> Result<GuestRecord, Cause> {
        Ok(GuestRecord::new(config, self.host.boot_id()?, uuid, self.random_uuid()?))
    }

    /// Creates the guest of a restart, whose state file is there.
    pub(crate) fn create_again(
        &self,
        record: GuestRecord,
        restart: Restart,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let config = record.config.clone();
        let restart = Restart { stage: Stage::Creating, ..restart };
        let mut creation = Creation::new(self, &config, record);
        (creation.recorded, creation.restart) = (true, Some(restart));
        creation.run(events)
    }

    /// Ends a create that an earlier process began: undoes it, or starts the guest if only that was missing. A restart
    /// goes on afterwards.
    pub(crate) fn resume_create(
        &self,
        mut record: GuestRecord,
        operation: Operation,
        events: &mut dyn FnMut(Event),
    ) -> Result<GuestRecord, Error> {
        self.find_domains(&mut record)?;
        let (config, name) = (record.config.clone(), record.name.clone());
        let mut creation = Creation::new(self, &config, record);
        creation.recorded = true;
        match operation.kind {
            Kind::Create { paused } => creation.paused = paused,
            Kind::Restart(restart) => (creation.restart, creation.goes_on) = (Some(restart), true),
            _ => {}
        }
        match resume(&steps(), &mut creation, &operation.cursor, events) {
            Ok(_) => Ok(creation.record),
            Err(left) => Err(Error::NotClean { name, left }),
        }
    }

    /// Checks whether a guest could be created again, while it is still there.
    pub(crate) fn check_restart(&self, record: &GuestRecord) -> StepResult {
        // Its disks are claimed anew, and are not compared with what they were.
        let mut without = record.clone();
        without.disks.clear();
        Creation::new(self, &record.config, without).check_restart()
    }

    /// A random UUID (version 4).
    pub(crate) fn random_uuid(&self) -> Result<Uuid, Cause> {
        let mut bytes = [0; 16];
        self.host.random(&mut bytes)?;
        // RFC 9562, section 5.4: version in the high half of byte 6, variant in the high bits of byte 8.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Uuid::from_bytes(bytes))
    }
}

impl<'a> Creation<'a> {
    fn new(ts: &'a Toolstack, config: &'a GuestConfig, record: GuestRecord) -> Self {
        Self {
            ts,
            config,
            paused: false,
            record,
            recorded: false,
            restart: None,
            goes_on: false,
            files: Files::default(),
            image: StubImage::default(),
            hap: true,
            labels: Labels::default(),
            guest_channels: None,
            stub_channels: None,
            guest_built: None,
            stub_built: None,
            backings: BTreeMap::new(),
            disks: OpenDisks::new(),
            stub_started: None,
            warnings: Vec::new(),
        }
    }

    fn run(mut self, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let faults = &self.ts.faults;
        let result = run(&steps(), &mut self, faults, events);
        for text in std::mem::take(&mut self.warnings) {
            events(Event::Warning { text });
        }
        match result {
            Ok(_) => Ok(self.guest()?),
            Err(mut failure) => {
                failure.stubdomain_log = self.last_log_lines();
                Err(failure.into())
            }
        }
    }
}

impl OnGuest for Creation<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.ts, &mut self.record)
    }

    fn kind(&self) -> Kind {
        match &self.restart {
            Some(restart) => Kind::Restart(restart.clone()),
            None => Kind::Create { paused: self.paused },
        }
    }

    /// A guest that may have run is not destroyed because this was not recorded.
    fn has_passed(&mut self) -> Result<bool, Cause> {
        Ok(self.record.operation.as_ref().is_some_and(|operation| operation.cursor.step == START))
    }

    /// Removes the state file, unless it is that of another guest of this UUID or of a restart that goes on.
    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        let (host, paths) = (&*self.ts.host, &self.ts.paths);
        if self.goes_on {
            (self.record.domid, self.record.stub_domid) = (None, None);
            return self.record.save(host, paths);
        }
        match (self.recorded, is_clean) {
            (true, true) => self.record.remove(host, paths),
            // By it, what is left is found.
            (true, false) => self.record.save(host, paths),
            (false, _) => Ok(()),
        }
    }
}

impl Creation<'_> {
    /// The domid of the guest's domain, checked in Xen.
    pub(crate) fn domid(&self) -> Result<DomId, Cause> {
        let domain = self.record.guest_domain(self.ts)?;
        Ok(domain.ok_or_else(|| self.not_now("has no domain"))?.domid())
    }

    /// The stubdomain, checked in Xen.
    pub(crate) fn stub_domain(&self) -> Result<Domain, Cause> {
        self.record.stub_domain(self.ts)?.ok_or_else(|| self.not_now("has no stubdomain"))
    }

    /// Its domid.
    pub(crate) fn stub(&self) -> Result<DomId, Cause> {
        Ok(self.stub_domain()?.domid())
    }

    fn not_now(&self, why: &str) -> Cause {
        Cause::NotNow { name: self.record.name.clone(), why: why.to_owned() }
    }

    pub(crate) fn not_yet(&self, why: &str) -> Cause {
        self.not_now(&format!("{why} yet"))
    }

    pub(crate) fn guest_tree(&self) -> Result<DomainTree<'_>, Cause> {
        Ok(DomainTree { domid: self.domid()?, uuid: self.record.uuid, name: &self.record.name, hvm: true })
    }

    fn guest(self) -> Result<Guest, Cause> {
        let gone = self.not_now("has no domain");
        self.record.guest().ok_or(gone)
    }

    /// The stubdomain's last log lines, if it was started at all.
    fn last_log_lines(&self) -> Vec<String> {
        if self.stub_started.is_none() {
            return Vec::new();
        }
        let log = self.ts.paths.console_log(&self.record.stub_name(), 0);
        before_end(self.ts.host.tail(&log, LOG_LOOKED_AT))
    }

    /// Records the domid of a domain that was just created.
    fn record_domain(&self) -> StepResult {
        self.record.save(&*self.ts.host, &self.ts.paths)
    }

    /// Claims the guest's disks and its name. Two guests that want the same do this one after the other.
    fn write_record(&mut self) -> StepResult {
        let ts = self.ts;
        let lock = ts.lock_disks();
        self.check_records(&ts.records()?)?;
        self.disks = claim(ts, &lock, &mut self.record, &self.config.disks)?;
        self.recorded = true;
        self.enter(Cursor::back(ENTRY))
    }

    /// Notes which devices QEMU emulates.
    pub(crate) fn note_emulated(&mut self) -> StepResult {
        let plan = self.plan(self.domid()?)?;
        let emulated = |disk: &StubDisk| EmulatedDisk { vdev: disk.guest_vdev, stub_vdev: disk.stub_vdev };
        self.record.emulated_disks = plan.disks.iter().map(emulated).collect();
        self.record.emulated_nics = plan.nics.iter().map(|nic| nic.devid).collect();
        Ok(())
    }

    /// Starts the guest, unless it has run already: it may have ended since.
    fn start_guest(&mut self) -> StepResult {
        let Some(domain) = self.record.guest_domain(self.ts)? else {
            return Err(self.not_now("has no domain"));
        };
        match self.ts.look(domain)? {
            Some(info) if !self.paused && info.state.paused && info.state.shutdown.is_none() => {
                Ok(self.ts.hypervisor.unpause_domain(domain.domid())?)
            }
            _ => Ok(()),
        }
    }

    fn stop_guest(&mut self) -> StepResult {
        match self.record.guest_domain(self.ts)? {
            Some(domain) => destroy::pause(self.ts, domain),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_an_end_that_the_agent_chose_is_left_out() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(before_end(lines("a b")), ["a", "b"]);
        let mut ended = lines("a why");
        ended.extend([format!("[ 1.0] {ENDED_BY_AGENT}"), "Call Trace:".to_owned()]);
        assert_eq!(before_end(ended), ["a", "why"]);
        assert_eq!(before_end(vec!["x".to_owned(); 50]).len(), LOG_LINES);
    }
}
