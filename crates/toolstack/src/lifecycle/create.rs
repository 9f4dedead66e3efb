//! Creating a guest with its stubdomain: the list of steps, and what one leaves for the next.
//!
//! The guest ([`crate::guest`]), the stubdomain ([`crate::stubdomain`]) and the devices ([`crate::device`]) know nothing of
//! the list. Each step calls one or two of their functions with what earlier steps returned, and keeps the result.

mod details;
mod prepare;
mod progress;

use std::os::fd::AsFd;

use config::{GuestConfig, Uuid};
pub(super) use details::Nodes;
use prepare::{Prepared, check_restart};
use progress::Progress;

use super::cleanup::{self, end};
use super::receive::Taking;
use crate::batch::Batch;
use crate::device::claims::{OpenDisks, claim};
use crate::device::initial::{self, Backings, Initial};
use crate::device::{disk, removal, script};
use crate::domain::{self, GuestId};
use crate::error::{Cause, Failure, ToolstackError as Error, UndoFailure};
use crate::event::Event;
use crate::guest::{self, Source, identity};
use crate::handover::{check_here, check_settled, forget_moved};
use crate::nodes::{DomainNodes, make_domain};
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Operation, Restart, Stage, Step, StepResult, ids, resume, run,
};
use crate::record::GuestRecord;
use crate::saved::Saved;
use crate::{Guest, Toolstack, stubdomain};

/// The id of the last step.
pub(crate) const START: &str = "start-guest";

/// How a guest is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Leave it paused.
    pub paused: bool,
    /// Take this UUID instead of the configuration's or a random one, as a restart does.
    pub uuid: Option<Uuid>,
    /// Make it although it was migrated to another host.
    pub force: bool,
}

/// A guest that is being created.
pub(super) struct Creation<'a> {
    pub(super) ts: &'a Toolstack,
    pub(super) config: &'a GuestConfig,
    pub(super) paused: bool,
    /// It is made here although it was migrated to another host.
    pub(super) force: bool,
    pub(super) record: GuestRecord,
    /// The state file is this guest's.
    recorded: bool,
    /// The restart that creates it, which goes on when what was interrupted of it is undone.
    restart: Option<Restart>,
    goes_on: bool,
    pub(super) progress: Progress<'a>,
    backings: Backings,
    /// The claimed disks, held open until the backends have them.
    disks: OpenDisks,
    warnings: Vec<String>,
    /// What it is restored from.
    pub(super) saved: Option<Saved>,
    /// The state of QEMU's devices, of a guest that is restored.
    pub(super) state: Vec<u8>,
    /// Its way here from another host.
    pub(super) incoming: Option<Box<Taking<'a>>>,
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
            .undo(|c: &mut Creation<'_>| disk::detach_loops(c.ts, &mut c.record)),
        Step::new("write-nodes", "write the xenstore trees", Creation::write_nodes)
            .undo(Creation::remove_nodes),
        Step::new("run-disk-scripts", "run disk scripts", Creation::run_disk_scripts)
            .undo(|c: &mut Creation<'_>| script::undo_all(c.ts, &mut c.record)),
        Step::new("build-guest", "build the guest", Creation::build_guest),
        Step::new("build-stubdomain", "build the stubdomain", Creation::build_stub),
        Step::new("write-arguments", "write consoles and arguments", Creation::write_details),
        // No undo: the domains' end is xenstored's news of it. Releasing one that lives would let consoles miss it.
        Step::new("introduce", "introduce the domains", Creation::introduce),
        Step::new("start-stubdomain", "start the stubdomain", Creation::start_stub).undo(Creation::stop_stub),
        // The undo of the disks' scripts undoes those of interfaces too: the record has them all.
        Step::new("connect-nics", "connect network interfaces", Creation::connect_nics)
            .undo(|c: &mut Creation<'_>| removal::remove_ports(c.ts, &mut c.record)),
        Step::new("await-backends", "wait for the backends", Creation::await_backends),
        Step::new("await-device-model", "wait for the device model", |c: &mut Creation<'_>| {
            stubdomain::await_device_model(c.ts, c.progress.stub_running()?, c.progress.guest_made()?.domain)
        }),
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
        let GuestId(uuid) = self.choose_id(config, options)?;
        let mut creation = Creation::new(self, config, self.new_record(config, uuid)?);
        (creation.paused, creation.force) = (options.paused, options.force);
        let guest = creation.run(events)?;
        options.force.then(|| forget_moved(self, uuid, &guest.name, events));
        Ok(guest)
    }

    /// Chooses the identity of a guest that is to be created: the UUID of the options or of the configuration, or a
    /// random one.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn choose_id(&self, config: &GuestConfig, options: CreateOptions) -> Result<GuestId, Cause> {
        options.uuid.or(config.uuid).map_or_else(|| self.random_uuid(), Ok).map(GuestId)
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
        check_restart(self, without)
    }
}

impl<'a> Creation<'a> {
    pub(super) fn new(ts: &'a Toolstack, config: &'a GuestConfig, record: GuestRecord) -> Self {
        Self {
            ts,
            config,
            paused: false,
            force: false,
            record,
            recorded: false,
            restart: None,
            goes_on: false,
            progress: Progress::new(ts, &config.name),
            backings: Backings::new(),
            disks: OpenDisks::new(),
            warnings: Vec::new(),
            saved: None,
            state: Vec::new(),
            incoming: None,
        }
    }

    fn run(mut self, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let faults = &self.ts.faults;
        let result = run(&steps(), &mut self, faults, events).map(drop);
        self.conclude(result, events)
    }

    /// The guest, or why there is none.
    pub(super) fn conclude(
        mut self,
        result: Result<(), Failure>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        std::mem::take(&mut self.warnings).into_iter().for_each(|text| events(Event::Warning { text }));
        match result {
            Ok(()) => Ok(self.record.guest().ok_or(Cause::TooEarly { what: "guest" })?),
            Err(mut failure) => {
                // A restart has its entry from the start, also where the check fails.
                if self.restart.is_some()
                    && self.record.operation.is_some()
                    && failure.undo.is_empty()
                    && let Err(cause) = self.record.remove(&*self.ts.host, &self.ts.paths)
                {
                    failure.undo.push(UndoFailure { id: ENTRY, label: "remove the state file", cause });
                }
                if self.progress.stub_running.is_some() {
                    failure.stubdomain_log = stubdomain::last_log_lines(self.ts, &self.record.stub_name());
                }
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
        match (&self.restart, &self.incoming) {
            (Some(restart), _) => Kind::Restart(restart.clone()),
            (None, Some(incoming)) => Kind::Receive { id: incoming.id() },
            (None, None) => Kind::Create { paused: self.paused },
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
            // They are claimed anew.
            self.record.disks.clear();
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
    fn not_now(&self, why: &str) -> Cause {
        Cause::NotNow { name: self.record.name.clone(), why: why.to_owned() }
    }

    fn devices(&self) -> Result<Initial<'_>, Cause> {
        let (guest, stub) =
            (self.progress.guest_made()?.domain.domid(), self.progress.stub_made()?.domain.domid());
        Ok(Initial { ts: self.ts, config: self.config, plan: &self.progress.prepared()?.plan, guest, stub })
    }
}

/// The steps.
impl Creation<'_> {
    pub(super) fn check(&mut self) -> StepResult {
        identity::check(self.ts, &self.record)?;
        if self.restart.is_none() {
            check_settled(self.ts, self.record.uuid, &self.record.name)?;
            // One that comes back comes from where it is.
            if self.incoming.is_none() && !self.force {
                check_here(self.ts, self.record.uuid, &self.record.name)?;
            }
        }
        let prepared = Prepared::find(self.ts, self.config, self.record.uuid, self.saved.as_ref())?;
        prepared.check_memory(self.ts, self.config)?;
        self.warnings.extend(prepared.guest.warning(self.ts, self.config)?);
        self.progress.prepared = Some(prepared);
        Ok(())
    }

    /// Claims the guest's disks and its name. Two guests that want the same do this one after the other.
    pub(super) fn write_record(&mut self) -> StepResult {
        let ts = self.ts;
        let lock = ts.lock_disks();
        identity::check_records(&self.record, &ts.records()?)?;
        self.disks = claim(ts, &lock, &mut self.record, &self.config.disks)?;
        self.recorded = true;
        self.enter(Cursor::back(ENTRY))
    }

    pub(super) fn make_guest(&mut self) -> StepResult {
        let (ts, record) = (self.ts, &mut self.record);
        let spec = self.progress.guest_spec(self.config, record)?;
        let made = guest::make(ts, spec, &mut |domid| {
            record.domid = Some(domid);
            record.save(&*ts.host, &ts.paths)
        })?;
        self.progress.guest_made = Some(made);
        Ok(())
    }

    pub(super) fn unmake_guest(&mut self) -> StepResult {
        end(self.ts, self.record.guest_domain(self.ts)?)
    }

    pub(super) fn make_stub(&mut self) -> StepResult {
        let (ts, guest) = (self.ts, self.progress.guest_made()?.domain);
        let spec = self.progress.stub_spec(self.config, &self.record)?;
        let record = &mut self.record;
        let made = stubdomain::make(ts, &spec, &mut |domid| {
            record.stub_domid = Some(domid);
            record.save(&*ts.host, &ts.paths)
        })?;
        self.progress.stub_made = Some(made);
        // It does not run yet.
        stubdomain::set_target(ts, made.domain, guest)
    }

    /// The guest's ioreq server would hold the stubdomain. What fails of the guest's end, its own undo reports.
    pub(super) fn unmake_stub(&mut self) -> StepResult {
        let _ = self.record.guest_domain(self.ts)?.map(|guest| domain::kill(self.ts, guest));
        end(self.ts, self.record.stub_domain(self.ts)?)
    }

    pub(super) fn attach_images(&mut self) -> StepResult {
        let disks = &self.config.disks;
        self.backings = initial::attach_images(self.ts, &mut self.record, disks, &self.disks)?;
        Ok(())
    }

    /// Both domains' directories, then all their devices.
    pub(super) fn write_nodes(&mut self) -> StepResult {
        let (guest, stub) = (self.progress.guest_made()?.domain, self.progress.stub_made()?.domain);
        let (record, mut domains) = (&self.record, Batch::new());
        make_domain(&mut domains, &DomainNodes { domain: guest, name: &record.name, hvm: true });
        make_domain(&mut domains, &DomainNodes { domain: stub, name: &record.stub_name(), hvm: false });
        stubdomain::write_target(&mut domains, stub, guest);
        domains.apply(&self.ts.xenstore)?;
        self.devices()?.write_nodes(&self.record, &self.backings)?;
        initial::note_emulated(&mut self.record, &self.progress.prepared()?.plan);
        Ok(())
    }

    /// Closes the devices and removes everything that xenstore has of the two domains.
    pub(super) fn remove_nodes(&mut self) -> StepResult {
        removal::close_devices(self.ts, &self.record.own_numbers(self.ts)?)?;
        cleanup::remove_nodes(self.ts, &self.record)
    }

    pub(super) fn run_disk_scripts(&mut self) -> StepResult {
        self.with_devices(|devices, record, backings| devices.run_disk_scripts(record, backings))
    }

    pub(super) fn connect_nics(&mut self) -> StepResult {
        self.with_devices(|devices, record, _| devices.connect_nics(record))
    }

    pub(super) fn await_backends(&mut self) -> StepResult {
        initial::wait_for_backends(self.ts, &self.record)?;
        self.disks.clear();
        Ok(())
    }

    pub(super) fn build_guest(&mut self) -> StepResult {
        let source = self
            .saved
            .as_ref()
            .map_or(Source::Fresh, |saved| Source::Stream(saved.file.as_fd(), &saved.cancel));
        let spec = self.progress.guest_spec(self.config, &self.record)?;
        let built = guest::build(self.ts, spec, self.progress.guest_made()?, source)?;
        self.progress.guest_built = Some(built);
        Ok(())
    }

    pub(super) fn build_stub(&mut self) -> StepResult {
        let built = stubdomain::build(
            self.ts,
            &self.progress.stub_spec(self.config, &self.record)?,
            self.progress.stub_made()?,
        )?;
        self.progress.stub_built = Some(built);
        Ok(())
    }

    fn write_details(&mut self) -> StepResult {
        let mut nodes = Nodes::default();
        self.describe_guest(&mut nodes)?;
        self.describe_stub(&mut nodes)?;
        nodes.write(self.ts)
    }

    /// Connects both domains to xenstored, and lets the stubdomain act for its target there.
    fn introduce(&mut self) -> StepResult {
        self.introduce_stub()?;
        self.introduce_guest()
    }

    pub(super) fn introduce_stub(&mut self) -> StepResult {
        let stub = self.progress.stub_built()?;
        domain::introduce(self.ts, stub.made.domain, stub.places.store_frame, stub.made.channels)
    }

    /// The stubdomain has to be connected already.
    pub(super) fn introduce_guest(&mut self) -> StepResult {
        let (guest, stub) = (self.progress.guest_built()?, self.progress.stub_made()?);
        domain::introduce(self.ts, guest.made.domain, guest.places.store_gfn, guest.made.channels)?;
        stubdomain::introduce_target(self.ts, stub.domain, guest.made.domain)
    }

    pub(super) fn start_stub(&mut self) -> StepResult {
        self.progress.stub_running = Some(stubdomain::start(self.ts, self.progress.stub_built()?)?);
        Ok(())
    }

    /// Stops the running stubdomain; it dies when its devices are closed.
    pub(super) fn stop_stub(&mut self) -> StepResult {
        match self.record.stub_domain(self.ts)? {
            Some(stub) => domain::pause(self.ts, stub),
            None => Ok(()),
        }
    }

    /// Starts the guest, unless it has run already: it may have ended since.
    pub(super) fn start_guest(&mut self) -> StepResult {
        let Some(domain) = self.record.guest_domain(self.ts)? else {
            // An earlier process came this far, and another toolstack has destroyed the guest since.
            let was_resumed = self.progress.stub_running.is_none();
            return if was_resumed { Ok(()) } else { Err(self.not_now("has no domain")) };
        };
        match self.ts.look(domain)? {
            Some(info) if !self.paused && info.state.paused && info.state.shutdown.is_none() => {
                Ok(self.ts.hypervisor.unpause_domain(domain.domid())?)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stop_guest(&mut self) -> StepResult {
        match self.record.guest_domain(self.ts)? {
            Some(guest) => domain::pause(self.ts, guest),
            None => Ok(()),
        }
    }

    /// Has the devices do something that the record keeps.
    fn with_devices(
        &mut self,
        work: impl FnOnce(Initial<'_>, &mut GuestRecord, &Backings) -> StepResult,
    ) -> StepResult {
        let (guest, stub) =
            (self.progress.guest_made()?.domain.domid(), self.progress.stub_made()?.domain.domid());
        let plan = &self.progress.prepared()?.plan;
        work(
            Initial { ts: self.ts, config: self.config, plan, guest, stub },
            &mut self.record,
            &self.backings,
        )
    }
}
