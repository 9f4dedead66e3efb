//! Migrating a guest to another host: the side that it leaves.
//!
//! The guest's memory is sent while it runs, in rounds; then it is suspended, its QEMU is stopped, and the rest follows.
//! From then on the two hosts' machines decide whose guest it is (`migration`): before GO is written, every failure lets
//! it go on here; after that only the other host's answer does.

mod leaving;
mod options;

use std::cell::RefCell;

use migration::message::Offer;
use migration::record::{About, Record, SenderRecord};
use migration::sender::Event as Told;
use migration::shown::State;
use migration::{MigrationId, Reason};
use xen::Cancel;

use super::save::{check_savable, device_model};
use super::suspend::{go_on, withdraw};
use crate::cancel::Cancellable;
use crate::domain::{self, GuestId};
use crate::error::{Cause, Failure, ToolstackError as Error};
use crate::event::Event;
use crate::guest::{Live, suspend};
use crate::handover::sender::{Departure, Work};
use crate::handover::stream::Transferred;
use crate::handover::{
    HandoverError, Identity, JournalFile, MigrationRole, PeerChannel, check_settled, disks, for_receiver,
    new_id, next_number,
};
use crate::monitors::Left;
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, Way, ids, resume, run,
};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure, saved, stubdomain};
use leaving::Leaving;
pub use options::MigrateOptions;

/// A guest that leaves this host.
pub(super) struct Migration<'a, 'e> {
    live: Live<'a>,
    id: MigrationId,
    options: MigrateOptions,
    /// The other host's QEMU was started before the guest's memory was there.
    starts_early: bool,
    channel: Option<PeerChannel>,
    offer: Option<(About, Offer)>,
    departure: Option<Departure<'a>>,
    /// What the machine wants done next.
    work: Option<Work>,
    tell: &'e dyn Fn(Event),
    cancellable: Cancellable,
}

const OFFER: &str = "offer";
const HAND_OVER: &str = "hand-over";

fn steps<'b, 'e>() -> Vec<Step<Migration<'b, 'e>>> {
    vec![
        Step::new("check", "check whether the guest can be migrated", Migration::check),
        Step::new(ENTRY, "record the migration", |m: &mut Migration<'_, '_>| m.enter(Cursor::back(ENTRY)))
            .entry(),
        Step::new(OFFER, "offer the guest to the other host", Migration::offer).undo(Migration::conclude),
        Step::new("send-memory", "send the guest's memory", Migration::send_memory).undo(Migration::go_on),
        Step::new("await-ready", "wait until the other host has loaded the guest", Migration::await_ready),
        Step::new(HAND_OVER, "hand the guest over", Migration::hand_over).peer_decides(),
        Step::new("give-up-guest", "release the guest here", |_: &mut Migration<'_, '_>| Ok(()))
            .point_of_no_return(),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::migrate`], in order.
    #[must_use]
    pub fn migrate_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Connects to a unix socket at whose other end is another host's daemon, and introduces both.
    ///
    /// # Errors
    /// When there is nothing, or it is no such daemon.
    pub fn connect_peer(&self, socket: &std::path::Path) -> Result<PeerChannel, Error> {
        let own = Identity::find(self)?;
        Ok(PeerChannel::connect(socket, &own, self.deadlines.peer).map_err(Cause::from)?)
    }

    /// The same over a stream that is connected already.
    ///
    /// # Errors
    /// As for [`Self::connect_peer`].
    pub fn connect_peer_over(&self, stream: std::os::unix::net::UnixStream) -> Result<PeerChannel, Error> {
        let own = Identity::find(self)?;
        Ok(PeerChannel::over(stream, &own, self.deadlines.peer).map_err(Cause::from)?)
    }

    /// Migrates a guest to the host at the other end of the channel. Returns nothing when it runs there.
    ///
    /// # Errors
    /// [`Error::Step`]: the guest runs on here. With [`HandoverError::Unresolved`] it does not: it was handed over, and
    /// is locked until the other host answers, see [`Self::resolve`]. [`Error::NotClean`]: it runs there, and is not
    /// completely destroyed here.
    pub fn migrate(
        &self,
        id: GuestId,
        channel: PeerChannel,
        options: &MigrateOptions,
        events: &mut dyn FnMut(Event),
    ) -> Result<Option<Guest>, Error> {
        let live = Live::settled(self, id, events)?;
        let shared = RefCell::new(events);
        // A step tells how far it is while the engine has the closure.
        let tell = |event| (shared.borrow_mut())(event);
        let mut migration = Migration {
            live,
            id: new_id(self)?,
            options: options.clone(),
            starts_early: false,
            channel: Some(channel),
            offer: None,
            departure: None,
            work: None,
            tell: &tell,
            cancellable: self.cancels.begin(id),
        };
        let ran = run(&steps(), &mut migration, &self.faults, &mut |event| tell(event));
        migration.end(ran, &mut |event| tell(event))
    }
}

/// Undoes a migration that an earlier process began. One that was handed over waits for the other host's answer.
pub(super) fn resume_migration<'a>(
    live: Live<'a>,
    (id, host): (MigrationId, String),
    cursor: &Cursor,
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut migration = Migration::resumed(live, (id, host), &|_| ());
    let resumed = resume(&steps(), &mut migration, cursor, &mut |_| ());
    (migration.live, resumed)
}

impl OnGuest for Migration<'_, '_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::Migrate { id: self.id, to: self.options.host.clone() }
    }

    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        withdraw(&mut self.live, is_clean)
    }

    /// The entry stays until that of the guest's destruction takes its place.
    fn complete(&mut self) -> StepResult {
        Ok(())
    }
}

impl<'a, 'e> Migration<'a, 'e> {
    /// One that an earlier process began.
    pub(super) fn resumed(
        live: Live<'a>,
        (id, host): (MigrationId, String),
        tell: &'e dyn Fn(Event),
    ) -> Self {
        let cancellable = live.ts.cancels.begin(live.id());
        // There is nothing to give up.
        cancellable.ends();
        let options = MigrateOptions { host, ..MigrateOptions::default() };
        let (channel, offer, departure, work) = (None, None, None, None);
        let starts_early = false;
        Self { live, id, options, starts_early, channel, offer, departure, work, tell, cancellable }
    }

    /// The same, with a channel to the other host, which decides.
    pub(super) fn with(mut self, departure: Departure<'a>, work: Option<Work>) -> Self {
        (self.departure, self.work) = (Some(departure), work);
        self
    }

    /// What became of the guest.
    fn end(
        mut self,
        ran: Result<Vec<UndoFailure>, Failure>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Option<Guest>, Error> {
        // Whatever has failed since the other host's answer: the guest is there.
        if self.work == Some(Work::DestroyCopy) {
            if let Some(took) = self.departure.as_ref().and_then(Departure::stood_still) {
                events(Event::StoodStill { took });
            }
            return self.removed(events).map(|()| None);
        }
        let mut failure = match ran {
            Ok(_) => return Err(self.unresolved().into()),
            Err(failure) if failure.id == HAND_OVER => failure,
            Err(failure) => return Err(failure.into()),
        };
        // The engine undoes nothing that a peer decides.
        let record = self.departure.as_ref().and_then(|departure| departure.machine().record());
        if self.work == Some(Work::Resume) || matches!(record, None | Some(SenderRecord::Start)) {
            let undone = resume(&steps(), &mut self, &undo(), events);
            failure.undo = undone.err().unwrap_or_default();
        }
        Err(failure.into())
    }

    /// Does what the other host or an operator has decided. Returns the guest if it is here then.
    pub(super) fn settled(mut self, events: &mut dyn FnMut(Event)) -> Result<Option<Guest>, Error> {
        let is_forced = || -> Option<bool> {
            Some(matches!(self.departure.as_ref()?.machine().record()?, SenderRecord::Forced(_)))
        };
        match self.work {
            Some(Work::DestroyCopy) if is_forced() == Some(true) => {
                self.check_suspended()?;
                // Its configuration stays until it runs, also if this process ends.
                let guest = self.live.ts.boot_anew(self.live.record.clone(), events)?;
                self.departure()?.tell(Told::Destroyed);
                Ok(Some(guest))
            }
            Some(Work::DestroyCopy) => self.removed(events).map(|()| None),
            Some(Work::Resume) => {
                let undone = resume(&steps(), &mut self, &undo(), events);
                let name = self.live.record.name.clone();
                match undone {
                    Ok(_) => Ok(self.live.record.clone().guest()),
                    Err(left) => {
                        let why = left.iter().map(|left| left.cause.chain()).collect::<Vec<_>>().join("; ");
                        Err(Cause::from(HandoverError::StillSuspended { name, why }).into())
                    }
                }
            }
            _ => Err(self.unresolved().into()),
        }
    }

    /// Destroys the copy that is left here; the guest is at the other host. One that runs is no such copy.
    fn removed(&mut self, events: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let name = self.live.record.name.clone();
        self.check_suspended()?;
        let _ = disks::remove_markers(self.live.ts, &self.live.record.config, self.id);
        self.live.ts.monitors.left(self.live.id(), Left::Migrated(&self.options.host));
        let removed = self.live.ts.remove(self.live.record.clone(), None, events);
        let event = if removed.is_ok() { Told::Destroyed } else { Told::DestroyFailed };
        if let Some(departure) = &mut self.departure {
            self.work = departure.tell(event);
        }
        removed.map(drop).map_err(|left| Error::NotClean { name, left })
    }

    fn check_suspended(&self) -> Result<(), Cause> {
        let (ts, record) = (self.live.ts, &self.live.record);
        let info = record.guest_domain(ts)?.map(|domain| ts.look(domain)).transpose()?.flatten();
        if info.is_none_or(|info| info.state.shutdown.is_some()) {
            return Ok(());
        }
        let (name, host) = (record.name.clone(), self.options.host.clone());
        Err(HandoverError::TwoCopies { name, host }.into())
    }

    fn departure(&mut self) -> Result<&mut Departure<'a>, Cause> {
        self.departure.as_mut().ok_or(Cause::TooEarly { what: "connection to the other host" })
    }

    fn unresolved(&self) -> Cause {
        let (name, host) = (self.live.record.name.clone(), self.options.host.clone());
        HandoverError::Unresolved { name, host }.into()
    }

    fn not_migrated(&self) -> Cause {
        let reason = match self.departure.as_ref().map(Departure::state) {
            Some(State::ComingBack(reason) | State::NotMigrated(reason)) => reason,
            _ => Reason::Other,
        };
        let (name, host) = (self.live.record.name.clone(), self.options.host.clone());
        if reason == Reason::Cancelled {
            return Cause::Cancelled { name };
        }
        let why = self.departure.as_ref().and_then(Departure::why);
        HandoverError::NotMigrated { name, host, reason, why }.into()
    }

    fn check(&mut self) -> StepResult {
        let (ts, live) = (self.live.ts, &self.live);
        check_savable(live)?;
        check_settled(ts, live.record.uuid, &live.record.name)?;
        let own = Identity::find(ts)?;
        let peer =
            &self.channel.as_ref().ok_or(Cause::TooEarly { what: "connection to the other host" })?.peer;
        if peer.journal == own.journal.id {
            let why = "a guest cannot be migrated to the host where it runs: name another one".to_owned();
            return Err(Cause::Unsupported { what: format!("Migrating guest {}", live.record.name), why });
        }
        let processors = stubdomain::processors(ts, live.id(), &live.record.config)?;
        let mut metadata =
            saved::describe(ts, &live.record, config::Uuid::from_bytes(self.id.0), processors)?;
        if let Some(theirs) = &self.options.dest_config {
            metadata.config = for_receiver(&live.record.config, theirs)?;
        }
        metadata.starts_early = stubdomain::can_start_early(ts, live.id())?;
        self.starts_early = metadata.starts_early;
        let offer = Offer {
            guest: live.record.uuid,
            name: live.record.name.clone(),
            machine: metadata.machine.clone(),
            xen_version: metadata.xen_release.clone(),
            config: serde_json::to_value(&metadata).unwrap_or_default(),
            disks: Vec::new(),
            compression: self.options.packing().word(),
        };
        let about = About {
            id: self.id,
            guest: live.record.uuid,
            name: live.record.name.clone(),
            peer: self.options.host.clone(),
            peer_journal: peer.journal,
            boot: own.boot,
            domid: live.record.domid,
            begun: next_number(ts)?,
            stood_still_ms: None,
        };
        self.offer = Some((about, offer));
        Ok(())
    }

    /// Writes START, offers the guest, and waits until it is accepted.
    fn offer(&mut self) -> StepResult {
        let ts = self.live.ts;
        let early = || Cause::TooEarly { what: "connection to the other host" };
        let (about, mut offer) = self.offer.take().ok_or_else(early)?;
        offer.disks = disks::describe(ts, &self.live.record.config, self.id)?;
        let journal = JournalFile::new(ts, MigrationRole::Sender, about);
        let channel = self.channel.take().ok_or_else(early)?;
        let (mut departure, mut work) = Departure::begin(ts, journal, channel, offer);
        if work.is_none() {
            work = departure.wait(&self.cancellable.cancel);
        }
        (self.departure, self.work) = (Some(departure), work);
        match self.work {
            Some(Work::Stream(_)) => Ok(()),
            _ => Err(self.not_migrated()),
        }
    }

    /// Sends everything but GO. What stops it is in the machine's state; else the guest cannot be saved.
    fn send_memory(&mut self) -> StepResult {
        let Some(Work::Stream(limits)) = self.work else { return Err(self.not_migrated()) };
        let of = device_model(&self.live)?;
        let early = Cause::TooEarly { what: "connection to the other host" };
        let departure = self.departure.as_mut().ok_or(early)?;
        let mut leaving = Leaving::new(&self.live, of, departure, &self.options, self.tell);
        leaving.starts_early = self.starts_early;
        let sent = leaving.send(limits, &self.cancellable.cancel);
        self.work = leaving.work;
        let Transferred { length, digest } =
            sent.map_err(|cause| cause.unwrap_or_else(|| self.not_migrated()))?;
        self.fence()?;
        self.work = self.departure()?.tell(Told::Saved { length, digest });
        Ok(())
    }

    /// From here on nothing in this host writes to the disks: the guest is suspended, QEMU is stopped, and what both wrote
    /// is on the disks ([`Leaving::send`]).
    fn fence(&mut self) -> StepResult {
        domain::pause(self.live.ts, device_model(&self.live)?.stub)
    }

    fn await_ready(&mut self) -> StepResult {
        let cancel = self.cancellable.cancel.clone();
        self.work = self.departure()?.wait(&cancel);
        match self.work {
            Some(Work::VerifySuspended) => Ok(()),
            _ => Err(self.not_migrated()),
        }
    }

    /// Writes GO, sends it, and waits for the answer.
    fn hand_over(&mut self) -> StepResult {
        let cancel = Cancel::new();
        let is_suspended = self
            .live
            .domain()
            .and_then(|domain| suspend::is_suspended(self.live.ts, domain))
            .unwrap_or(false);
        // It is about to be decided: giving up is only a request from here on.
        let is_cancelled = self.cancellable.ends();
        let departure = self.departure()?;
        let event = match (is_cancelled, is_suspended) {
            (true, _) => Told::Cancel,
            (false, true) => Told::StillSuspended,
            (false, false) => Told::GuestEnded,
        };
        let work = departure.tell(event);
        self.work = work.or_else(|| departure.wait(&cancel));
        match self.work {
            Some(Work::DestroyCopy) => Ok(()),
            Some(Work::Resume) => Err(self.not_migrated()),
            _ => Err(self.unresolved()),
        }
    }

    /// Lets QEMU run again, and then the guest, whatever was done of suspending them.
    fn go_on(&mut self) -> StepResult {
        let ts = self.live.ts;
        // One that is gone has nothing to be resumed.
        let Some(domain) = self.live.record.guest_domain(ts)? else { return Ok(()) };
        if let Some(stub) = self.live.record.stub_domain(ts)? {
            unpause(ts, stub)?;
        }
        ts.hypervisor.stop_log_dirty(domain.domid())?;
        if self.departure.is_none() {
            leaving::stop_log(ts, self.live.id());
        }
        suspend::withdraw_request(ts, domain)?;
        go_on(&self.live)
    }

    /// Records that the guest stays here, and tells the other host.
    fn conclude(&mut self) -> StepResult {
        let (ts, config) = (self.live.ts, self.live.record.config.clone());
        if let Err(cause) = disks::remove_markers(ts, &config, self.id) {
            // They do no harm.
            (self.tell)(Event::Warning { text: cause.chain() });
        }
        if self.departure.is_none() {
            self.reload()?;
        }
        let Some(departure) = &mut self.departure else { return Ok(()) };
        let domain = self.live.record.guest_domain(ts)?;
        let ended = match domain {
            Some(domain) => suspend::is_suspended(ts, domain)?.then_some(Told::ResumeFailed),
            None => Some(Told::GuestEnded),
        };
        if !matches!(departure.state(), State::ComingBack(_) | State::NotMigrated(_) | State::EndedHere) {
            departure.tell(Told::SaveFailed);
        }
        let failed = ended == Some(Told::ResumeFailed);
        departure.tell(ended.unwrap_or(Told::Resumed));
        if departure.two_copies {
            let (name, host) = (self.live.record.name.clone(), self.options.host.clone());
            let text = HandoverError::TwoCopies { name, host }.to_string();
            (self.tell)(Event::Warning { text });
        }
        if departure.machine().allows_operation() {
            return Ok(());
        }
        if !failed {
            // Its journal may be writable soon.
            departure.wait(&Cancel::new());
        }
        match departure.trouble.take() {
            _ if departure.machine().allows_operation() => Ok(()),
            Some(cause) => Err(cause),
            None => Err(Cause::NotNow {
                name: self.live.record.name.clone(),
                why: "is still suspended".to_owned(),
            }),
        }
    }

    /// What an earlier process has written of the migration.
    fn reload(&mut self) -> StepResult {
        let ts = self.live.ts;
        if let Some((journal, Record::Sender(record))) =
            JournalFile::load(ts, MigrationRole::Sender, self.id)?
            && record == SenderRecord::Start
        {
            let (departure, work) = Departure::restored(ts, journal, record, None);
            (self.departure, self.work) = (Some(departure), work);
        }
        Ok(())
    }
}

/// Where the undo of a migration begins that the other host has refused at the last moment.
fn undo() -> Cursor {
    Cursor { step: HAND_OVER.to_owned(), way: Way::Undo }
}

/// Lets a domain run that was paused here; one that is gone, or was not paused, is fine.
pub(super) fn unpause(ts: &Toolstack, domain: crate::Domain) -> StepResult {
    match ts.look(domain)? {
        Some(info) if info.state.paused => Ok(ts.hypervisor.unpause_domain(domain.domid())?),
        _ => Ok(()),
    }
}
