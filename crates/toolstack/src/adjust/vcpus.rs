use xen_types::DomId;
use xenstore::XsPath;

use crate::attach::Live;
use crate::batch::Batch;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::steps::{Step, StepResult, run_all};
use crate::tree::{below, cpu_availability};
use crate::{Guest, Toolstack};

/// A guest that gets or loses virtual processors.
struct Change<'a> {
    live: Live<'a>,
    from: u32,
    to: u32,
}

fn steps<'b>() -> Vec<Step<Change<'b>>> {
    vec![
        Step::new("check the number", Change::check),
        Step::new("tell the guest", |c: &mut Change<'_>| c.tell(c.to))
            .undo(|c: &mut Change<'_>| c.tell(c.from)),
        Step::new("record the number", |c: &mut Change<'_>| c.record(c.to))
            .undo(|c: &mut Change<'_>| c.record(c.from)),
    ]
}

impl Toolstack {
    /// The names of the steps of [`Self::set_vcpus`], in order.
    #[must_use]
    pub fn set_vcpus_steps() -> Vec<&'static str> {
        steps().iter().map(Step::name).collect()
    }

    /// Tells a running guest how many of its virtual processors it shall use; at most what it was created with
    /// (`maxvcpus`). The call does not wait for the guest to do so.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotNow`] when the guest does not run.
    pub fn set_vcpus(&self, domid: DomId, vcpus: u32, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let live = Live::find(self, domid)?;
        let mut change = Change { from: live.record.config.vcpus, to: vcpus, live };
        run_all(&steps(), &mut change, &self.faults, events)?;
        Ok(change.live.guest())
    }
}

impl Change<'_> {
    fn check(&mut self) -> StepResult {
        let max = self.live.record.config.max_vcpus;
        if (1..=max).contains(&self.to) {
            return Ok(());
        }
        let why = format!("the guest was created with 1 to {max} (maxvcpus)");
        Err(Cause::Unsupported { what: format!("A number of {} processors", self.to), why })
    }

    fn tell(&mut self, online: u32) -> StepResult {
        let dir = XsPath::domain(self.live.domid);
        let mut batch = Batch::new();
        for cpu in 0..self.live.record.config.max_vcpus {
            batch.write(&below(&dir, &format!("cpu/{cpu}/availability")), cpu_availability(cpu, online));
        }
        batch.commit(&self.live.ts.xenstore)
    }

    fn record(&mut self, vcpus: u32) -> StepResult {
        self.live.record.config.vcpus = vcpus;
        self.live.save()
    }
}
