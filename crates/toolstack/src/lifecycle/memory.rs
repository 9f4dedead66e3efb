use xen_types::KiB;
use xenstore::XsPath;

use crate::domain::{EXTRA_MEMORY, GuestId};
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::{Live, memory_target};
use crate::nodes::below;
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};
use xenstore::Store;

/// The least that a guest may be shrunk to, beside its video memory: libxl has the same limit (`xl mem-set`).
const LEAST: KiB = KiB::from_mib(4);

/// A guest whose memory changes.
struct Resize<'a> {
    live: Live<'a>,
    from: KiB,
    to: KiB,
}

fn steps<'b>() -> Vec<Step<Resize<'b>>> {
    vec![
        Step::new("check", "check the memory", Resize::check),
        Step::new(ENTRY, "record the change", |r: &mut Resize<'_>| r.enter(Cursor::back(ENTRY))).entry(),
        Step::new("set-limit", "set Xen's limit", |r: &mut Resize<'_>| r.limit(r.to))
            .undo(|r: &mut Resize<'_>| r.limit(r.from)),
        Step::new("set-on-demand", "set the populate-on-demand target", |r: &mut Resize<'_>| {
            r.on_demand(r.to)
        })
        .undo(|r: &mut Resize<'_>| r.on_demand(r.from)),
        Step::new("tell-guest", "notify the guest", |r: &mut Resize<'_>| r.tell(r.to))
            .undo(|r: &mut Resize<'_>| r.tell(r.from)),
        Step::new("record", "record the memory", |r: &mut Resize<'_>| r.record(r.to))
            .undo(|r: &mut Resize<'_>| r.record(r.from)),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::set_memory`], in order.
    #[must_use]
    pub fn set_memory_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Sets the memory of a running guest, video memory included; at most what it was created with (`maxmem`). The
    /// guest's balloon driver does the work; the call does not wait for it.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn set_memory(
        &self,
        id: GuestId,
        memory: KiB,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let mut resize = Resize { from: live.record.config.memory, to: memory, live };
        run(&steps(), &mut resize, &self.faults, events)?;
        Ok(resize.live.guest()?)
    }
}

/// Undoes a change that an earlier process began.
pub(crate) fn resume_memory<'a>(
    live: Live<'a>,
    from: KiB,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut resize = Resize { live, from, to: from };
    let resumed = resume(&steps(), &mut resize, cursor, events);
    (resize.live, resumed)
}

impl OnGuest for Resize<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::SetMemory { from: self.from }
    }
}

impl Resize<'_> {
    fn check(&mut self) -> StepResult {
        let config = &self.live.record.config;
        let no = |why: String| Err(Cause::Unsupported { what: format!("A memory of {}", self.to), why });
        if self.to > config.max_memory {
            return no(format!("the guest was created with at most {} (maxmem)", config.max_memory));
        }
        if let Some(limit) = self.live.record.memory_limit.filter(|limit| self.to > *limit) {
            return no(format!("mem-max has limited the guest to {limit}"));
        }
        let least = config.display.video_memory + LEAST;
        if self.to < least {
            return no(format!("a guest with this video memory needs at least {least}"));
        }
        let more = self.to.get().saturating_sub(self.from.get());
        self.live.ts.check_free_memory("the guest needs another", KiB(more))
    }

    fn limit(&mut self, memory: KiB) -> StepResult {
        Ok(self.live.ts.hypervisor.set_max_memory(self.live.domain()?.domid(), memory + EXTRA_MEMORY)?)
    }

    fn on_demand(&mut self, memory: KiB) -> StepResult {
        let target = memory_target(&self.live.record.config, memory);
        Ok(self.live.ts.hypervisor.set_pod_target(self.live.domain()?.domid(), target)?)
    }

    fn tell(&mut self, memory: KiB) -> StepResult {
        let path = below(&XsPath::domain(self.live.domid()?), "memory/target");
        let target = memory_target(&self.live.record.config, memory);
        Ok(self.live.ts.xenstore.write(&path, target.get().to_string().as_bytes())?)
    }

    fn record(&mut self, memory: KiB) -> StepResult {
        self.live.record.config.memory = memory;
        Ok(())
    }
}
