//! Suspending a guest, which stays in memory, and resuming it.

use xen::Cancel;

use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::{Live, suspend};
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, must_be_free, resume, run,
};
use crate::record::GuestRecord;
use crate::stubdomain;
use crate::{Guest, Toolstack, UndoFailure};

/// A guest that is suspended or resumed.
struct Suspension<'a> {
    live: Live<'a>,
    kind: Kind,
}

fn suspend_steps<'b>() -> Vec<Step<Suspension<'b>>> {
    vec![
        Step::new("check", "check whether the guest can be suspended", Suspension::check),
        Step::new(ENTRY, "record the suspension", |s: &mut Suspension<'_>| s.enter(Cursor::back(ENTRY)))
            .entry(),
        Step::new("suspend", "suspend the guest", Suspension::suspend).undo(Suspension::go_on),
        Step::new("stop-device-model", "stop the device model", |s: &mut Suspension<'_>| {
            stubdomain::stop(s.live.ts, s.live.id())
        }),
    ]
}

fn resume_steps<'b>() -> Vec<Step<Suspension<'b>>> {
    vec![
        Step::new(ENTRY, "record the resume", |s: &mut Suspension<'_>| s.enter(Cursor::forward(ENTRY)))
            .entry()
            .point_of_no_return(),
        Step::new("resume", "let the guest go on", Suspension::go_on),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::suspend`], in order.
    #[must_use]
    pub fn suspend_steps() -> Vec<&'static str> {
        ids(&suspend_steps())
    }

    /// The ids of the steps of [`Self::resume`], in order.
    #[must_use]
    pub fn resume_steps() -> Vec<&'static str> {
        ids(&resume_steps())
    }

    /// Suspends a guest, which stays in memory, and stops its device model.
    ///
    /// # Errors
    /// [`Error::Step`], and the guest runs on.
    pub fn suspend(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let mut suspension = Suspension { live: Live::settled(self, id, events)?, kind: Kind::Suspend };
        run(&suspend_steps(), &mut suspension, &self.faults, events)?;
        Ok(suspension.live.guest()?)
    }

    /// Whether a guest has suspended itself for a request that was given up: [`Self::settle_change`] lets it go on.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer.
    pub fn is_suspended_late(&self, guest: &Guest) -> Result<bool, Cause> {
        match self.domain(Some(guest.domid), guest.uuid)? {
            Some(domain) => suspend::is_late(self, domain),
            None => Ok(false),
        }
    }

    /// Lets a suspended guest go on where it was. Whoever suspended it does not matter.
    ///
    /// # Errors
    /// When the guest is not suspended or its device model does not answer. It can be tried again.
    pub fn resume(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let live = Live::suspended(self, id)?;
        must_be_free(&live.record)?;
        let mut suspension = Suspension { live, kind: Kind::Resume };
        let left = run(&resume_steps(), &mut suspension, &self.faults, events)?;
        suspension.live.concluded(left)
    }
}

/// Undoes a suspension, or completes a resumption, that an earlier process began: the guest runs either way.
pub(crate) fn resume_suspension<'a>(
    live: Live<'a>,
    kind: Kind,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let steps = if kind == Kind::Suspend { suspend_steps() } else { resume_steps() };
    let mut suspension = Suspension { live, kind };
    let resumed = resume(&steps, &mut suspension, cursor, events);
    (suspension.live, resumed)
}

impl OnGuest for Suspension<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        self.kind.clone()
    }

    fn withdraw(&mut self, is_clean: bool) -> StepResult {
        withdraw(&mut self.live, is_clean)
    }
}

/// Removes the entry of an operation that was undone, unless it has left the guest suspended: then it is tried again.
pub(super) fn withdraw(live: &mut Live<'_>, is_clean: bool) -> StepResult {
    if !is_clean && live.domain().and_then(|domain| suspend::is_suspended(live.ts, domain)).unwrap_or(true) {
        return Ok(());
    }
    live.record.operation = None;
    live.save()
}

impl Suspension<'_> {
    fn check(&mut self) -> StepResult {
        suspend::check(self.live.ts, self.live.domain()?, &self.live.record.name)
    }

    fn suspend(&mut self) -> StepResult {
        suspend::suspend(self.live.ts, self.live.domain()?, &self.live.record.name, &Cancel::new())
    }

    fn go_on(&mut self) -> StepResult {
        suspend::withdraw_request(self.live.ts, self.live.domain()?)?;
        go_on(&self.live)
    }
}

/// Lets QEMU run, and then the guest, if that is suspended.
pub(super) fn go_on(live: &Live<'_>) -> StepResult {
    let (ts, domain) = (live.ts, live.domain()?);
    if !suspend::is_suspended(ts, domain)? {
        return Ok(());
    }
    stubdomain::cont(ts, live.id())?;
    suspend::resume(ts, domain)
}
