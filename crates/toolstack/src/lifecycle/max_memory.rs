//! Limiting the memory that a running guest may be given.

use xen_types::KiB;
use xenstore::{Store, XsPath};

use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::nodes::below;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// A guest whose limit changes.
struct Change<'a> {
    live: Live<'a>,
    from: Option<KiB>,
    to: Option<KiB>,
}

fn steps<'b>() -> Vec<Step<Change<'b>>> {
    vec![
        Step::new("check", "check the limit", Change::check),
        Step::new(ENTRY, "record the change", |c: &mut Change<'_>| c.enter(Cursor::back(ENTRY))).entry(),
        Step::new("tell-guest", "notify the guest", |c: &mut Change<'_>| c.tell(c.to))
            .undo(|c: &mut Change<'_>| c.tell(c.from)),
        Step::new("record", "record the limit", |c: &mut Change<'_>| c.record(c.to))
            .undo(|c: &mut Change<'_>| c.record(c.from)),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::set_max_memory`], in order.
    #[must_use]
    pub fn set_max_memory_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Limits what [`Self::set_memory`] may give a running guest, video memory included, until the guest ends. What it
    /// was created with (`maxmem`) is the most: its memory map does not grow.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn set_max_memory(
        &self,
        id: GuestId,
        memory: KiB,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let mut change = Change { from: live.record.memory_limit, to: Some(memory), live };
        run(&steps(), &mut change, &self.faults, events)?;
        Ok(change.live.guest()?)
    }
}

/// Undoes a change that an earlier process began.
pub(crate) fn resume_max_memory<'a>(
    live: Live<'a>,
    from: Option<KiB>,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut change = Change { live, from, to: from };
    let resumed = resume(&steps(), &mut change, cursor, events);
    (change.live, resumed)
}

impl OnGuest for Change<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::SetMaxMemory { from: self.from }
    }
}

impl Change<'_> {
    fn check(&mut self) -> StepResult {
        let config = &self.live.record.config;
        let Some(to) = self.to else { return Ok(()) };
        let no = |why: String| Err(Cause::Unsupported { what: format!("A limit of {to}"), why });
        if to > config.max_memory {
            return no(format!("the guest was created with at most {} (maxmem)", config.max_memory));
        }
        if to < config.memory {
            return no(format!("the guest has {}; set that first, with mem-set", config.memory));
        }
        Ok(())
    }

    fn tell(&mut self, limit: Option<KiB>) -> StepResult {
        let path = below(&XsPath::domain(self.live.domid()?), "memory/static-max");
        let limit = limit.unwrap_or(self.live.record.config.max_memory);
        Ok(self.live.ts.xenstore.write(&path, limit.get().to_string().as_bytes())?)
    }

    fn record(&mut self, limit: Option<KiB>) -> StepResult {
        self.live.record.memory_limit = limit;
        Ok(())
    }
}
