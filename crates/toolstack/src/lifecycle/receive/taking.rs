//! A guest that another host has offered, and its way here.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::Receiver as Queue;
use std::time::{Duration, Instant};

use migration::message::{Body, Message, Offer};
use migration::receiver::Event as Told;
use migration::record::About;
use migration::shown::State;
use migration::{MigrationId, Reason};
use migration_stream::metadata::Metadata;
use xen::Cancel;
use xen_types::Release;

use crate::Toolstack;
use crate::cancel::Cancellable;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::handover::receiver::{Arrival, Renewed, Work};
use crate::handover::stream::{self, Packing, Received, Transferred};
use crate::handover::{
    HandoverError, Identity, JournalFile, MigrationRole, PeerChannel, Reception, next_number, plain,
};
use crate::operation::StepResult;
use crate::saved::Saved;

/// A guest that another host has offered, and that is not received yet. If it is dropped, it stays where it is.
#[derive(Debug)]
pub struct IncomingGuest {
    channel: PeerChannel,
    own: Identity,
    message: Message,
    offer: Offer,
    metadata: Metadata,
}

/// A guest that is being received.
pub(in crate::lifecycle) struct Taking<'a> {
    /// Until there is a machine.
    begin: Option<(Message, PeerChannel)>,
    own: Identity,
    offer: Offer,
    about: About,
    /// The machine, once OPEN is written.
    pub(super) arrival: Option<Arrival<'a>>,
    /// Why it is refused, if it is.
    pub(super) reason: Reason,
    /// Why it is refused, in words.
    pub(super) failure: Rc<RefCell<Option<String>>>,
    /// The end of the pipe that its stream is written to.
    to: Option<File>,
    patience: Duration,
    packing: Packing,
    /// QEMU starts before the memory has arrived.
    pub(in crate::lifecycle) starts_early: bool,
    cancellable: Cancellable,
    /// It can be found by another channel.
    _reception: Reception,
    queue: Option<Queue<Renewed>>,
}

impl IncomingGuest {
    /// Reads an offer.
    ///
    /// # Errors
    /// When the guest's description cannot be used; the other host is told then.
    pub(in crate::lifecycle) fn read(
        ts: &Toolstack,
        channel: PeerChannel,
        own: Identity,
        message: Message,
    ) -> Result<Self, Cause> {
        let Body::Offer(offer) = &message.body else { return Err(Cause::TooEarly { what: "offer" }) };
        let offer = (**offer).clone();
        let read: Result<Metadata, Cause> = serde_json::from_value(offer.config.clone())
            .map_err(|error| HandoverError::Offer { why: error.to_string() }.into());
        let same = |metadata: Metadata| {
            let agrees = metadata.uuid == offer.guest && metadata.name == offer.name;
            let why = "it names two guests".to_owned();
            if agrees { Ok(metadata) } else { Err(HandoverError::Offer { why }.into()) }
        };
        match read.and_then(same) {
            Ok(metadata) => Ok(Self { channel, own, message, offer, metadata }),
            Err(cause) => {
                let about = about(&channel, &offer, message.id, &own);
                refuse(
                    ts,
                    &own,
                    &message,
                    (JournalFile::new(ts, MigrationRole::Receiver, about), channel),
                    (Reason::Refused, &cause.chain()),
                );
                Err(cause)
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> GuestId {
        GuestId(self.metadata.uuid)
    }

    /// Refuses it because this host has such a guest, and tells the other host.
    pub fn refuse(self, ts: &Toolstack) {
        let about = about(&self.channel, &self.offer, self.message.id, &self.own);
        let journal = JournalFile::new(ts, MigrationRole::Receiver, about);
        refuse(
            ts,
            &self.own,
            &self.message,
            (journal, self.channel),
            (Reason::Busy, "it has a guest of that name or UUID"),
        );
    }

    /// The guest as its stream will have it, and its way here.
    pub(super) fn open<'a>(self, ts: &'a Toolstack) -> Result<(Saved, Taking<'a>), Error> {
        let Self { channel, own, message, offer, metadata } = self;
        let begun = next_number(ts)?;
        let about = About { begun, ..about(&channel, &offer, message.id, &own) };
        let failed = |source| Cause::from(HandoverError::Io { operation: "make a pipe for it", source });
        let (from, to) = io::pipe().map_err(failed)?;
        let guest = GuestId(metadata.uuid);
        let word = offer.compression.as_deref();
        let packing = Packing::of(word).ok_or_else(|| HandoverError::Offer {
            why: "its memory is compressed in a way that is not known here".to_owned(),
        });
        let cancellable = ts.cancels.begin(guest);
        let from = File::from(OwnedFd::from(from));
        let opened = Saved::incoming(metadata, (from, &cancellable.cancel), &about.peer);
        let (saved, packing) = match (opened, packing.map_err(Cause::from)) {
            (Ok(saved), Ok(packing)) => (saved, packing),
            (Err(cause), _) | (_, Err(cause)) => {
                let journal = JournalFile::new(ts, MigrationRole::Receiver, about);
                refuse(ts, &own, &message, (journal, channel), (Reason::Refused, &cause.chain()));
                return Err(cause.into());
            }
        };
        let (reception, queue) = ts.receptions.begin(message.id);
        let taking = Taking {
            begin: Some((message, channel)),
            own,
            offer,
            about,
            arrival: None,
            reason: Reason::BuildFailed,
            failure: Rc::default(),
            to: Some(File::from(OwnedFd::from(to))),
            patience: ts.deadlines.peer_work,
            packing,
            starts_early: saved.starts_early,
            cancellable,
            _reception: reception,
            queue: Some(queue),
        };
        Ok((saved, taking))
    }
}

fn about(channel: &PeerChannel, offer: &Offer, id: MigrationId, own: &Identity) -> About {
    About {
        id,
        guest: offer.guest,
        name: offer.name.clone(),
        peer: plain(&channel.peer.host),
        peer_journal: channel.peer.journal,
        boot: own.boot,
        domid: None,
        begun: 0,
        stood_still_ms: None,
    }
}

/// Records that a guest is refused, and tells the other host.
fn refuse(
    ts: &Toolstack,
    own: &Identity,
    message: &Message,
    from: (JournalFile, PeerChannel),
    (reason, why): (Reason, &str),
) {
    from.1.note(why);
    // If it cannot be recorded, the end of the channel says that nothing was taken.
    if let Some((mut arrival, Some(Work::DestroyIncoming))) =
        Arrival::first(ts, own.journal, message, Some(reason), from)
    {
        arrival.tell(Told::Destroyed);
    }
}

impl<'a> Taking<'a> {
    pub(in crate::lifecycle) const fn id(&self) -> MigrationId {
        self.about.id
    }

    pub(super) fn disks(&self) -> &[String] {
        &self.offer.disks
    }

    /// A stream goes to the same release of Xen or a later one.
    pub(super) fn check_xen(&mut self) -> StepResult {
        let here = xen::release::BUILT;
        let theirs = Release::parse(&self.offer.xen_version);
        if theirs.is_some_and(|theirs| theirs <= here) {
            return Ok(());
        }
        self.reason = Reason::VersionMismatch;
        let version: String = self.offer.xen_version.chars().filter(|c| !c.is_control()).take(20).collect();
        let what = format!("Taking a guest from Xen {version}");
        let why = format!("this host has Xen {here}, which must be the same or a later one");
        Err(Cause::Unsupported { what, why })
    }

    /// Writes OPEN, or that it is refused.
    pub(super) fn begin(&mut self, ts: &'a Toolstack, refusal: Option<Reason>) -> StepResult {
        let Some((message, channel)) = self.begin.take() else { return Ok(()) };
        if refusal.is_some()
            && let Some(text) = self.failure.take()
        {
            channel.note(&text);
        }
        let journal = JournalFile::new(ts, MigrationRole::Receiver, self.about.clone());
        let first = Arrival::first(ts, self.own.journal, &message, refusal, (journal, channel));
        let Some((mut arrival, work)) = first else { return Err(self.refused(Reason::Other)) };
        if let Some(queue) = self.queue.take() {
            arrival.renew_from(queue);
        }
        self.arrival = Some(arrival);
        match work {
            Some(Work::Build) => Ok(()),
            _ => Err(self.not_received()),
        }
    }

    /// Receives the stream while `build` reads it, and checks it.
    pub(super) fn receive<T>(&mut self, build: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
        let early = || Cause::TooEarly { what: "connection to the other host" };
        let to = self.to.take().ok_or_else(early)?;
        let (from, patience) = ((self.about.id, self.packing), self.patience);
        let arrival = self.arrival.as_mut().ok_or_else(early)?;
        arrival.tell(Told::Built);
        let mut channel = arrival.channel.take().ok_or(HandoverError::Closed)?;
        let stop = self.cancellable.cancel.clone();
        let (built, received, is_cancelled) = std::thread::scope(|scope| {
            let (channel, stop) = (&mut channel, &stop);
            let pump = scope.spawn(move || stream::receive(channel, from, to, patience, stop));
            // However it ends, the thread ends too.
            let guard = StopsUnlessBuilt(Some(stop));
            let built = build();
            let is_cancelled = stop.is_cancelled();
            if built.is_ok() {
                guard.built();
            } else {
                drop(guard);
            }
            (built, pump.join(), is_cancelled)
        });
        arrival.channel = Some(channel);
        self.reason = if is_cancelled { Reason::Cancelled } else { Reason::LoadFailed };
        match (built, received) {
            (Ok(built), Ok(Received::End(transferred, message))) => {
                let loads = arrival.tell(Told::Received(message));
                self.check_stream(loads, transferred).map(|()| built)
            }
            (built, Ok(Received::Other(heard))) => {
                arrival.take(heard);
                match built {
                    Err(cause) if arrival.state() == State::Incoming => Err(cause),
                    _ => Err(self.not_received()),
                }
            }
            (built, _) => Err(built.err().unwrap_or_else(|| self.not_received())),
        }
    }

    fn check_stream(&mut self, loads: Option<Work>, transferred: Transferred) -> StepResult {
        let Transferred { length, digest } = transferred;
        if loads == Some(Work::Load { length, digest }) {
            return Ok(());
        }
        self.reason = Reason::DigestMismatch;
        Err(self.refused(Reason::DigestMismatch))
    }

    /// Says that all is loaded, and waits until the other host gives the guest up.
    pub(super) fn await_hand_over(&mut self, limit: Instant) -> StepResult {
        let cancel = self.cancellable.cancel.clone();
        let Some(arrival) = &mut self.arrival else { return Err(self.not_received()) };
        let work = arrival.tell(Told::Loaded).or_else(|| arrival.wait(limit, &cancel));
        if work == Some(Work::VerifyPaused) && !self.cancellable.ends() {
            return Ok(());
        }
        self.reason = if cancel.is_cancelled() { Reason::Cancelled } else { Reason::TimedOut };
        Err(self.not_received())
    }

    /// Gives the machine an event, after which it has to want this done.
    pub(super) fn expect(&mut self, event: Told, wanted: Work) -> StepResult {
        let Some(arrival) = &mut self.arrival else { return Err(self.not_received()) };
        let work = arrival.tell(event);
        if work == Some(wanted) { Ok(()) } else { Err(self.not_received()) }
    }

    /// The disks are this host's; it may be said twice.
    pub(super) fn armed(&mut self) {
        if let Some(arrival) = &mut self.arrival {
            arrival.tell(Told::Armed);
        }
    }

    /// Records that the guest is not taken, and waits until that is on the disk: only then it may be destroyed.
    pub(super) fn abort(&mut self) {
        self.to = None;
        let Some(arrival) = &mut self.arrival else { return };
        if let (Some(channel), Some(text)) = (&arrival.channel, self.failure.take()) {
            channel.note(&text);
        }
        match arrival.state() {
            State::TakingOver => _ = arrival.tell(Told::ArmFailed),
            State::Incoming | State::IncomingPaused => _ = arrival.tell(Told::BuildFailed(self.reason)),
            _ => {}
        }
        let never = Cancel::new();
        while arrival.is_blocked() {
            arrival.wait(Instant::now() + self.patience, &never);
        }
    }

    /// Tells the other host that nothing was taken, if it was not told yet.
    pub(super) fn refuse(&mut self, ts: &'a Toolstack) {
        let reason = self.reason;
        // It fails as it has to.
        let _ = self.begin(ts, Some(reason));
        if let Some(arrival) = &mut self.arrival {
            arrival.tell(Told::Destroyed);
        }
    }

    /// The guest runs here. Says so, and waits for the acknowledgement, without which it runs all the same.
    pub(super) fn taken_over(&mut self, ts: &Toolstack) {
        let Some(arrival) = &mut self.arrival else { return };
        arrival.tell(Told::Unpaused);
        let limit = Instant::now() + ts.deadlines.peer;
        while arrival.channel.is_some() && !arrival.is_finished() && Instant::now() < limit {
            arrival.wait(limit, &Cancel::new());
        }
    }

    fn not_received(&self) -> Cause {
        let reason = match self.arrival.as_ref().map(Arrival::state) {
            Some(State::Refused(reason)) => reason,
            _ => self.reason,
        };
        self.refused(reason)
    }

    fn refused(&self, reason: Reason) -> Cause {
        let (name, host) = (self.about.name.clone(), self.about.peer.clone());
        HandoverError::NotReceived { name, host, reason }.into()
    }
}

/// Ends a thread that passes on what nobody reads any more.
struct StopsUnlessBuilt<'a>(Option<&'a Cancel>);

impl StopsUnlessBuilt<'_> {
    fn built(mut self) {
        self.0 = None;
    }
}

impl Drop for StopsUnlessBuilt<'_> {
    fn drop(&mut self) {
        if let Some(stop) = self.0 {
            stop.cancel();
        }
    }
}
