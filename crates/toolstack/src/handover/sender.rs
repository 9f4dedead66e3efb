//! What carries out the effects of the sender's machine that need no guest: its journal, its messages, its timers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use migration::message::{Body, Limits, Message, Offer};
use migration::record::{Done, Record, SenderRecord};
use migration::sender::{Effect, Event, Sender, Timer};
use migration::shown::State;
use xen::Cancel;

use super::channel::{Heard, PeerChannel};
use super::journals::JournalFile;
use crate::Toolstack;
use crate::error::Cause;

/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What has to be done with the guest; the answer is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Stream(Limits),
    Suspend,
    StopAndSave,
    VerifySuspended,
    Resume,
    DestroyCopy,
    BootAnew,
}

/// One migration at its sender.
pub(crate) struct Departure<'a> {
    ts: &'a Toolstack,
    machine: Sender,
    journal: JournalFile,
    channel: Option<PeerChannel>,
    offer: Option<Offer>,
    timer: Option<(Instant, Timer)>,
    /// When the guest was asked to suspend.
    suspending: Option<Instant>,
    /// It was given up, and the machine knows.
    is_cancelled: bool,
    is_finished: bool,
    /// Why the other host refuses the guest, in its words.
    said: Option<String>,
    /// Both hosts run the guest, or may.
    pub(crate) two_copies: bool,
    /// Why the journal could not be written.
    pub(crate) trouble: Option<Cause>,
}

impl<'a> Departure<'a> {
    /// Begins a migration: START is written, then the guest is offered.
    pub(crate) fn begin(
        ts: &'a Toolstack,
        journal: JournalFile,
        channel: PeerChannel,
        offer: Offer,
    ) -> (Self, Option<Work>) {
        let (machine, effects) = Sender::begin(journal.about.id, journal.about.peer_journal);
        let mut departure = Self::with(ts, machine, journal, Some(channel));
        departure.offer = Some(offer);
        let work = departure.perform(effects);
        (departure, work)
    }

    /// Continues one from its record.
    pub(crate) fn restored(
        ts: &'a Toolstack,
        journal: JournalFile,
        record: SenderRecord,
        channel: Option<PeerChannel>,
    ) -> (Self, Option<Work>) {
        let (machine, effects) = Sender::restored(journal.about.id, journal.about.peer_journal, record);
        let mut departure = Self::with(ts, machine, journal, channel);
        let work = departure.perform(effects);
        (departure, work)
    }

    fn with(ts: &'a Toolstack, machine: Sender, journal: JournalFile, channel: Option<PeerChannel>) -> Self {
        Self {
            ts,
            machine,
            journal,
            channel,
            offer: None,
            timer: None,
            suspending: None,
            is_cancelled: false,
            is_finished: false,
            said: None,
            two_copies: false,
            trouble: None,
        }
    }

    pub(crate) fn machine(&self) -> &Sender {
        &self.machine
    }

    pub(crate) fn journal(&self) -> &JournalFile {
        &self.journal
    }

    pub(crate) fn channel(&self) -> Option<&PeerChannel> {
        self.channel.as_ref()
    }

    /// The guest is asked to suspend now.
    pub(crate) fn stands_still(&mut self) {
        self.suspending = Some(Instant::now());
    }

    /// For how long it stood still, once it runs at the other host.
    pub(crate) fn stood_still(&self) -> Option<Duration> {
        self.journal.about.stood_still_ms.map(Duration::from_millis)
    }

    /// What is known of why the guest is not migrated, beside the machine's reason.
    pub(crate) fn why(&self) -> Option<String> {
        let said =
            self.channel.as_ref().and_then(|channel| channel.said.clone()).or_else(|| self.said.clone());
        said.or_else(|| self.trouble.as_ref().map(Cause::chain))
    }

    pub(crate) fn state(&self) -> State {
        self.machine.state()
    }

    /// Gives the machine an event; returns what is to be done with the guest.
    pub(crate) fn tell(&mut self, event: Event) -> Option<Work> {
        let effects = self.machine.step(event);
        self.perform(effects)
    }

    /// Waits until something is to be done with the guest. Nothing when nothing will be: it is finished, or it needs
    /// another channel.
    pub(crate) fn wait(&mut self, cancel: &Cancel) -> Option<Work> {
        let limit = Instant::now() + self.ts.deadlines.peer_work;
        loop {
            if self.is_finished {
                return None;
            }
            let retries = matches!(self.timer, Some((_, Timer::Retry)));
            if self.channel.is_none() && !retries || Instant::now() >= limit {
                return None;
            }
            if let Some(work) = self.wait_once(cancel) {
                return Some(work);
            }
        }
    }

    /// Waits for the other host's confirmation, if it has something to confirm.
    pub(crate) fn await_confirmation(&mut self) {
        let deadline = Instant::now() + self.ts.deadlines.peer;
        while let (State::StartedAnew { confirmed: false, .. }, Some(channel)) =
            (self.machine.state(), &mut self.channel)
            && Instant::now() < deadline
        {
            let heard = channel.hear(deadline, &Cancel::new());
            self.take(heard);
        }
    }

    fn wait_once(&mut self, cancel: &Cancel) -> Option<Work> {
        // Once it knows, only the other host's answers count.
        let never = Cancel::new();
        let cancel = if self.is_cancelled { &never } else { cancel };
        let deadline = self.timer.map_or_else(|| Instant::now() + RETRY, |(deadline, _)| deadline);
        let heard = match &mut self.channel {
            Some(channel) => channel.hear(deadline, cancel),
            None => {
                // Only the journal is tried again.
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                Heard::Late
            }
        };
        self.take(heard)
    }

    /// Takes what has arrived already, without waiting.
    pub(crate) fn poll(&mut self, cancel: &Cancel) -> Option<Work> {
        if cancel.is_cancelled() && !self.is_cancelled {
            return self.take(Heard::Cancelled);
        }
        let heard = self.channel.as_mut()?.heard()?;
        self.take(heard)
    }

    fn take(&mut self, heard: Heard) -> Option<Work> {
        match heard {
            Heard::Message(message) => self.tell(Event::Received(message)),
            Heard::Cut => {
                self.said = self.said.take().or(self.channel.take().and_then(|channel| channel.said.clone()));
                self.tell(Event::Cut)
            }
            Heard::Cancelled => {
                self.is_cancelled = true;
                self.tell(Event::Cancel)
            }
            Heard::Late => {
                let (_, timer) = self.timer.take()?;
                self.tell(Event::Timeout(timer))
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Option<Work> {
        let mut work = None;
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Write(record) => {
                    let event = self.write(record);
                    queue.extend(self.machine.step(event));
                }
                Effect::Send(message) => self.send(&message),
                Effect::SendOffer => self.send_offer(),
                Effect::StartTimer(timer) => {
                    self.timer = Some((Instant::now() + self.patience(timer), timer));
                }
                Effect::Finished => self.is_finished = true,
                Effect::ReportTwoCopies => self.two_copies = true,
                Effect::Stream(limits) => work = Some(Work::Stream(limits)),
                Effect::Suspend => work = Some(Work::Suspend),
                Effect::StopAndSave => work = Some(Work::StopAndSave),
                Effect::VerifySuspended => work = Some(Work::VerifySuspended),
                Effect::Resume => work = Some(Work::Resume),
                Effect::DestroyCopy => work = Some(Work::DestroyCopy),
                Effect::BootAnew => work = Some(Work::BootAnew),
            }
        }
        work
    }

    fn write(&mut self, record: SenderRecord) -> Event {
        if record == SenderRecord::Done(Done::Moved)
            && let Some(since) = self.suspending.take()
        {
            // The answer was sent when the guest ran there.
            self.journal.about.stood_still_ms = u64::try_from(since.elapsed().as_millis()).ok();
        }
        match self.journal.write(self.ts, Record::Sender(record)) {
            Ok(()) => {
                self.trouble = None;
                Event::Written
            }
            // How far it came is not known.
            Err(cause) => {
                self.trouble = Some(cause);
                Event::WriteFailed { doubtful: true }
            }
        }
    }

    fn send(&self, message: &Message) {
        if let Some(channel) = &self.channel {
            channel.send(message);
        }
    }

    fn send_offer(&mut self) {
        let Some(offer) = self.offer.take() else { return };
        let (id, journal) = (self.journal.about.id, self.journal.about.peer_journal);
        self.send(&Message { id, journal, body: Body::Offer(Box::new(offer)) });
    }

    fn patience(&self, timer: Timer) -> Duration {
        match timer {
            Timer::Progress => self.ts.deadlines.peer_work,
            Timer::Answer => self.ts.deadlines.peer,
            Timer::Retry => RETRY,
        }
    }
}
