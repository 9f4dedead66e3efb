//! What carries out the effects of the receiver's machine that need no guest: its journal, its messages, its timers.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver as Queue, RecvTimeoutError};
use std::time::{Duration, Instant};

use migration::message::Message;
use migration::receiver::{Effect, Event, First, OwnJournal, Receiver, Timer};
use migration::record::{ReceiverRecord, Record};
use migration::shown::State;
use migration::{Digest, Reason};
use xen::Cancel;

use super::channel::{Heard, PeerChannel};
use super::journals::JournalFile;
use crate::Toolstack;
use crate::error::Cause;

/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether a user has cancelled, while there is no channel.
const LOOK: Duration = Duration::from_millis(100);

/// What has to be done with the guest; the answer is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Build,
    Load { length: u64, digest: Digest },
    VerifyPaused,
    Arm,
    Unpause,
    Inspect,
    DestroyIncoming,
    BootAnew,
    PauseCopy,
}

/// A channel that another host has opened about a migration that is in progress here, and what it said first.
pub(crate) type Renewed = (PeerChannel, Message);

/// One migration at its receiver.
pub(crate) struct Arrival<'a> {
    ts: &'a Toolstack,
    machine: Receiver,
    journal: JournalFile,
    pub(crate) channel: Option<PeerChannel>,
    /// Where other channels come from.
    renewed: Option<Queue<Renewed>>,
    timer: Option<(Instant, Timer)>,
    is_cancelled: bool,
    is_finished: bool,
    /// Both hosts run the guest, or may.
    pub(crate) two_copies: bool,
    /// Why the journal could not be written.
    pub(crate) trouble: Option<Cause>,
}

impl<'a> Arrival<'a> {
    /// Begins with the first message about a migration. Without a machine, the answer was sent, if there is one.
    pub(crate) fn first(
        ts: &'a Toolstack,
        own: OwnJournal,
        message: &Message,
        refusal: Option<Reason>,
        (journal, channel): (JournalFile, PeerChannel),
    ) -> Option<(Self, Option<Work>)> {
        match Receiver::first(message, own, refusal) {
            First::Machine(machine, effects) => {
                let mut arrival = Self::with(ts, machine, journal, Some(channel));
                let work = arrival.perform(effects);
                Some((arrival, work))
            }
            First::Reply(answer) => {
                channel.send(&answer);
                None
            }
            First::Nothing => None,
        }
    }

    /// Continues one from its record.
    pub(crate) fn restored(
        ts: &'a Toolstack,
        own: OwnJournal,
        (journal, record): (JournalFile, ReceiverRecord),
        channel: Option<PeerChannel>,
    ) -> (Self, Option<Work>) {
        let (machine, effects) = Receiver::restored(journal.about.id, own, record);
        let mut arrival = Self::with(ts, machine, journal, channel);
        let work = arrival.perform(effects);
        (arrival, work)
    }

    fn with(
        ts: &'a Toolstack,
        machine: Receiver,
        journal: JournalFile,
        channel: Option<PeerChannel>,
    ) -> Self {
        Self {
            ts,
            machine,
            journal,
            channel,
            renewed: None,
            timer: None,
            is_cancelled: false,
            is_finished: false,
            two_copies: false,
            trouble: None,
        }
    }

    /// Takes other channels of the sender from here on, when the first is cut.
    pub(crate) fn renew_from(&mut self, queue: Queue<Renewed>) {
        self.renewed = Some(queue);
    }

    pub(crate) fn machine(&self) -> &Receiver {
        &self.machine
    }

    pub(crate) fn journal(&self) -> &JournalFile {
        &self.journal
    }

    pub(crate) fn state(&self) -> State {
        self.machine.state()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether a record is still to be written that could not be.
    pub(crate) fn is_blocked(&self) -> bool {
        matches!(self.machine.state(), State::JournalBlocked { .. })
    }

    /// Gives the machine an event; returns what is to be done with the guest.
    pub(crate) fn tell(&mut self, event: Event) -> Option<Work> {
        let effects = self.machine.step(event);
        self.perform(effects)
    }

    /// Waits until something is to be done with the guest, at most until `limit`. Nothing when nothing will be.
    pub(crate) fn wait(&mut self, limit: Instant, cancel: &Cancel) -> Option<Work> {
        while !self.is_finished && Instant::now() < limit {
            let can_be_renewed = self.renewed.is_some() || self.timer.is_some();
            if self.channel.is_none() && !can_be_renewed {
                return None;
            }
            if let Some(work) = self.wait_once(limit, cancel) {
                return Some(work);
            }
        }
        None
    }

    fn wait_once(&mut self, limit: Instant, cancel: &Cancel) -> Option<Work> {
        if let Some(work) = self.take_renewed() {
            return Some(work);
        }
        let never = Cancel::new();
        let cancel = if self.is_cancelled { &never } else { cancel };
        let due = self.timer.map_or(limit, |(due, _)| due.min(limit));
        let heard = match &mut self.channel {
            // Another channel may come at any time.
            Some(channel) => channel.hear(due.min(Instant::now() + RETRY), cancel),
            None if cancel.is_cancelled() => Heard::Cancelled,
            None => match self.await_renewed(due) {
                Some(renewed) => return self.renew(renewed),
                None => Heard::Late,
            },
        };
        self.take(heard)
    }

    /// Waits for another channel, but not for long: a user may cancel.
    fn await_renewed(&self, due: Instant) -> Option<Renewed> {
        let left = due.saturating_duration_since(Instant::now()).min(LOOK);
        match self.renewed.as_ref().map(|queue| queue.recv_timeout(left)) {
            Some(Ok(renewed)) => Some(renewed),
            Some(Err(RecvTimeoutError::Timeout)) => None,
            // Nobody can bring one: only the timer is waited for.
            Some(Err(RecvTimeoutError::Disconnected)) | None => {
                std::thread::sleep(left);
                None
            }
        }
    }

    fn take_renewed(&mut self) -> Option<Work> {
        let renewed = self.renewed.as_ref()?.try_recv().ok()?;
        self.renew(renewed)
    }

    fn renew(&mut self, (channel, message): Renewed) -> Option<Work> {
        self.channel = Some(channel);
        let first = self.tell(Event::Connected);
        first.or_else(|| self.tell(Event::Received(message)))
    }

    /// Takes what was heard.
    pub(crate) fn take(&mut self, heard: Heard) -> Option<Work> {
        match heard {
            Heard::Message(message) => self.tell(Event::Received(message)),
            Heard::Cut => {
                self.channel = None;
                let work = self.tell(Event::Cut);
                self.wait_less();
                work
            }
            Heard::Cancelled => {
                self.is_cancelled = true;
                self.tell(Event::Cancel)
            }
            Heard::Late => {
                let (_, timer) = self.timer.take_if(|(due, _)| Instant::now() >= *due)?;
                self.tell(Event::Timeout(timer))
            }
        }
    }

    /// A loaded guest waits for another channel, but not for as long as for an answer: its sender may have given up.
    fn wait_less(&mut self) {
        let soon = Instant::now() + self.ts.deadlines.peer;
        if let (State::IncomingPaused, Some((due, _))) = (self.machine.state(), &mut self.timer) {
            *due = soon.min(*due);
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
                Effect::Send(message) => {
                    if let Some(channel) = &self.channel {
                        channel.send(&message);
                    }
                }
                Effect::StartTimer(timer) => {
                    self.timer = Some((Instant::now() + self.patience(timer), timer));
                }
                Effect::Finished => self.is_finished = true,
                Effect::ReportTwoCopies => self.two_copies = true,
                Effect::Build => work = Some(Work::Build),
                Effect::Load { length, digest } => work = Some(Work::Load { length, digest }),
                Effect::VerifyPaused => work = Some(Work::VerifyPaused),
                Effect::Arm => work = Some(Work::Arm),
                Effect::Unpause => work = Some(Work::Unpause),
                Effect::Inspect => work = Some(Work::Inspect),
                Effect::DestroyIncoming => work = Some(Work::DestroyIncoming),
                Effect::BootAnew => work = Some(Work::BootAnew),
                Effect::PauseCopy => work = Some(Work::PauseCopy),
            }
        }
        work
    }

    fn write(&mut self, record: ReceiverRecord) -> Event {
        match self.journal.write(self.ts, Record::Receiver(record)) {
            Ok(()) => {
                self.trouble = None;
                Event::Written
            }
            Err(cause) => {
                self.trouble = Some(cause);
                Event::WriteFailed
            }
        }
    }

    fn patience(&self, timer: Timer) -> Duration {
        match timer {
            Timer::Progress => self.ts.deadlines.peer_work,
            Timer::Repeat => self.ts.deadlines.peer,
            Timer::Retry => RETRY,
        }
    }
}
