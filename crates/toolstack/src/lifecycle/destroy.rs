//! Destroying a guest, also one that is incomplete.
//!
//! Both domains are paused first, so that nothing of what follows can be slowed down by them; then their backends
//! close all at the same time. The domains are killed only then: xenstored removes a dead domain's nodes without
//! telling anyone who watches them, and a backend would not learn that its frontend is gone. Every function looks at
//! what is there and finds nothing to do at its second call.

use super::cleanup::remove_nodes;
use crate::device::disk::detach_loops;
use crate::device::removal::{close_devices, remove_ports};
use crate::device::script;
use crate::domain::{GuestId, kill, pause, wait_gone};
use crate::error::ToolstackError as Error;
use crate::event::Event;
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Operation, Restart, Stage, Step, StepResult, ids, must_be_free,
    run,
};
use crate::record::GuestRecord;
use crate::{Toolstack, UndoFailure};

/// A guest being destroyed.
struct Destruction<'a> {
    ts: &'a Toolstack,
    record: GuestRecord,
    killed: bool,
    /// What destroys it so that it is created again.
    restart: Option<Restart>,
}

fn steps<'b>() -> Vec<Step<Destruction<'b>>> {
    vec![
        Step::new(ENTRY, "record the destruction", |d: &mut Destruction<'_>| d.enter(Cursor::forward(ENTRY)))
            .entry()
            .point_of_no_return(),
        Step::new("pause", "pause the domains", Destruction::pause),
        Step::new("close-devices", "close the devices", |d: &mut Destruction<'_>| {
            close_devices(d.ts, &d.record.own_numbers(d.ts)?)
        }),
        Step::new("undo-scripts", "undo the scripts", |d: &mut Destruction<'_>| {
            script::undo_all(d.ts, &mut d.record)
        }),
        Step::new("leave-bridges", "remove vifs from bridges", |d: &mut Destruction<'_>| {
            remove_ports(d.ts, &mut d.record)
        }),
        Step::new("kill", "destroy the domains", Destruction::kill),
        Step::new("remove-nodes", "remove xenstore nodes", |d: &mut Destruction<'_>| {
            remove_nodes(d.ts, &d.record)
        }),
        Step::new("detach-images", "detach disk images", |d: &mut Destruction<'_>| {
            detach_loops(d.ts, &mut d.record)
        }),
        Step::new("await-end", "wait for the domains' end", Destruction::wait),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::destroy`], in order.
    #[must_use]
    pub fn destroy_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Destroys a guest at once, its stubdomain, and everything that was made for them.
    ///
    /// # Errors
    /// [`NoGuest`](crate::Cause::NoGuest) when there is none, [`Error::NotClean`] when something stays; its state file
    /// stays then too, and destroying it again continues there.
    pub fn destroy(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let record = self.record_of(id)?;
        let name = record.name.clone();
        must_be_free(&record)?;
        self.remove(record, None, events).map(drop).map_err(|left| Error::NotClean { name, left })
    }

    /// Removes everything that was made for a guest, and its state file; a guest that is restarted gets a new one, which
    /// is returned. Returns what failed also the second time.
    pub(crate) fn remove(
        &self,
        record: GuestRecord,
        restart: Option<Restart>,
        events: &mut dyn FnMut(Event),
    ) -> Result<GuestRecord, Vec<UndoFailure>> {
        for script in record.scripts.iter().filter(|script| script::frontend_of(&script.backend).is_none()) {
            let (path, backend) = (script.script.display(), &script.backend);
            let text =
                format!("The script {path} is not run to undo its work: its device {backend:?} is unknown");
            events(Event::Warning { text });
        }
        let mut destruction = Destruction { ts: self, record, killed: false, restart };
        let left = run(&steps(), &mut destruction, &self.faults, events);
        // Nothing is before the point of no return, so that nothing is undone.
        let left = left.unwrap_or_default();
        if left.is_empty() { Ok(destruction.record) } else { Err(left) }
    }
}

impl OnGuest for Destruction<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.ts, &mut self.record)
    }

    fn kind(&self) -> Kind {
        match &self.restart {
            Some(restart) => Kind::Restart(Restart { stage: Stage::Removing, ..restart.clone() }),
            None => Kind::Destroy,
        }
    }

    /// Removes the state file, or makes it that of the guest that follows.
    fn complete(&mut self) -> StepResult {
        let (host, paths) = (&*self.ts.host, &self.ts.paths);
        let Some(restart) = self.restart.clone() else { return self.record.remove(host, paths) };
        let mut renewed = self.record.clone();
        renewed.renew();
        let mut next = self.ts.new_record(&renewed.config, renewed.uuid)?;
        let kind = Kind::Restart(Restart { stage: Stage::Creating, ..restart });
        next.operation = Some(Operation { kind, cursor: Cursor::back("") });
        next.save(host, paths)?;
        self.record = next;
        Ok(())
    }
}

impl Destruction<'_> {
    fn pause(&mut self) -> StepResult {
        self.ts.find_domains(&mut self.record)?;
        self.record.domains(self.ts)?.into_iter().try_for_each(|domain| pause(self.ts, domain))
    }

    fn kill(&mut self) -> StepResult {
        self.ts.monitors.release(self.record.id());
        self.record.domains(self.ts)?.into_iter().try_for_each(|domain| kill(self.ts, domain))?;
        self.killed = true;
        Ok(())
    }

    fn wait(&mut self) -> StepResult {
        // Domains that could not be killed before would be waited for in vain.
        if !self.killed {
            self.kill()?;
        }
        wait_gone(self.ts, self.record.domains(self.ts)?)
    }
}
