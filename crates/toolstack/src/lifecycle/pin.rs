//! Choosing the physical CPUs of a running guest's vCPUs.
//!
//! Nothing of it is recorded for the guest's next start: that is what `cpus` in its configuration is for.

use config::CpuSet;
use xen::{CpuMap, Errno};

use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Pinned, Resumed, Step, StepResult, ids, resume, run,
};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// What [`Toolstack::pin_vcpus`] is to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// The vCPU; all of the guest if it is none.
    pub vcpu: Option<u32>,
    /// The CPUs that it may run on; as before if it is none.
    pub hard: Option<CpuSet>,
    /// The CPUs that it runs on if they are free; as before if it is none.
    pub soft: Option<CpuSet>,
}

/// A guest whose vCPUs get other CPUs.
struct Change<'a> {
    live: Live<'a>,
    from: Vec<Pinned>,
    to: Pins,
}

fn steps<'b>() -> Vec<Step<Change<'b>>> {
    vec![
        Step::new("check", "check the vCPUs", Change::check),
        Step::new(ENTRY, "record the change", |c: &mut Change<'_>| c.enter(Cursor::back(ENTRY))).entry(),
        Step::new("pin", "choose the CPUs", Change::pin).undo(Change::restore),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::pin_vcpus`], in order.
    #[must_use]
    pub fn pin_vcpus_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Chooses the CPUs of a running guest's vCPUs, until the guest ends.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn pin_vcpus(&self, id: GuestId, pins: Pins, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let mut change = Change { live, from: Vec::new(), to: pins };
        run(&steps(), &mut change, &self.faults, events)?;
        Ok(change.live.guest()?)
    }
}

/// Undoes a change that an earlier process began.
pub(crate) fn resume_pins<'a>(
    live: Live<'a>,
    from: Vec<Pinned>,
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (Live<'a>, Result<Resumed, Vec<UndoFailure>>) {
    let mut change = Change { live, from, to: Pins::default() };
    let resumed = resume(&steps(), &mut change, cursor, events);
    (change.live, resumed)
}

impl OnGuest for Change<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.live.ts, &mut self.live.record)
    }

    fn kind(&self) -> Kind {
        Kind::PinVcpus { from: self.from.clone() }
    }
}

impl Change<'_> {
    fn check(&mut self) -> StepResult {
        let all = self.live.ts.hypervisor.vcpus(self.live.domain()?.domid())?;
        let count = all.len();
        let meant = all.into_iter().filter(|cpu| self.to.vcpu.is_none_or(|vcpu| vcpu == cpu.number));
        self.from = meant
            .map(|cpu| Pinned {
                vcpu: cpu.number,
                hard: cpu.hard.iter().collect(),
                soft: cpu.soft.iter().collect(),
            })
            .collect();
        match self.to.vcpu {
            Some(vcpu) if self.from.is_empty() => {
                let why = format!("the guest has {count}, numbered from 0");
                Err(Cause::Unsupported { what: format!("vCPU {vcpu}"), why })
            }
            _ => Ok(()),
        }
    }

    fn pin(&mut self) -> StepResult {
        let (ts, domid) = (self.live.ts, self.live.domain()?.domid());
        let (hard, soft) = (self.to.hard.as_ref(), self.to.soft.as_ref());
        for Pinned { vcpu, .. } in &self.from {
            if let Some(cpus) = hard {
                let set = ts.hypervisor.set_vcpu_affinity(domid, *vcpu, &CpuMap::from_iter(cpus.iter()));
                set.map_err(|error| match error.errno() {
                    Some(Errno::EINVAL) => Cause::NoSuchCpu { vcpu: *vcpu, cpus: cpus.clone() },
                    _ => error.into(),
                })?;
            }
            if let Some(cpus) = soft {
                ts.hypervisor.set_vcpu_soft_affinity(domid, *vcpu, &CpuMap::from_iter(cpus.iter()))?;
            }
        }
        Ok(())
    }

    fn restore(&mut self) -> StepResult {
        let (ts, domid) = (self.live.ts, self.live.domain()?.domid());
        for Pinned { vcpu, hard, soft } in &self.from {
            ts.hypervisor.set_vcpu_affinity(domid, *vcpu, &CpuMap::from_iter(hard.iter().copied()))?;
            ts.hypervisor.set_vcpu_soft_affinity(domid, *vcpu, &CpuMap::from_iter(soft.iter().copied()))?;
        }
        Ok(())
    }
}
