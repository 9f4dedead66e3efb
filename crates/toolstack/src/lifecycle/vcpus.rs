use std::time::Instant;

use qmp::commands::{DeviceAdd, QueryHotpluggableCpus};
use serde_json::{Map, Value};
use xenstore::XsPath;

use crate::batch::Batch;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::guest::Live;
use crate::nodes::{below, cpu_availability};
use crate::operation::{Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, resume, run};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// A guest that gets or loses virtual processors.
struct Change<'a> {
    live: Live<'a>,
    from: u32,
    to: u32,
}

fn steps<'b>() -> Vec<Step<Change<'b>>> {
    vec![
        Step::new("check", "check the number", Change::check),
        Step::new(ENTRY, "record the change", |c: &mut Change<'_>| c.enter(Cursor::back(ENTRY))).entry(),
        Step::new("tell-guest", "notify the guest", |c: &mut Change<'_>| c.tell(c.to))
            .undo(|c: &mut Change<'_>| c.tell(c.from)),
        // Added vCPUs cannot be removed; a later request finds them.
        Step::new("add-to-qemu", "add vCPUs to QEMU", Change::add),
        Step::new("record", "record the number", |c: &mut Change<'_>| c.record(c.to))
            .undo(|c: &mut Change<'_>| c.record(c.from)),
    ]
}

/// Where a processor is; those of a higher number come later.
fn place(props: &Map<String, Value>) -> [u64; 4] {
    ["socket-id", "die-id", "core-id", "thread-id"]
        .map(|key| props.get(key).and_then(Value::as_u64).unwrap_or(0))
}

impl Toolstack {
    /// The ids of the steps of [`Self::set_vcpus`], in order.
    #[must_use]
    pub fn set_vcpus_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Tells a running guest how many of its virtual processors it shall use; at most what it was created with
    /// (`maxvcpus`). The call does not wait for the guest to do so.
    ///
    /// # Errors
    /// [`Error::Step`], and everything was undone; [`Cause::NotRunning`] when the guest does not run.
    pub fn set_vcpus(&self, id: GuestId, vcpus: u32, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let live = Live::settled(self, id, events)?;
        let mut change = Change { from: live.record.config.vcpus, to: vcpus, live };
        run(&steps(), &mut change, &self.faults, events)?;
        Ok(change.live.guest()?)
    }
}

/// Undoes a change that an earlier process began.
pub(crate) fn resume_vcpus<'a>(
    live: Live<'a>,
    from: u32,
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
        Kind::SetVcpus { from: self.from }
    }
}

impl Change<'_> {
    fn check(&mut self) -> StepResult {
        let max = self.live.record.config.max_vcpus;
        if (1..=max).contains(&self.to) {
            return Ok(());
        }
        let why = format!("the guest was created with 1 to {max} (maxvcpus)");
        Err(Cause::Unsupported { what: format!("A number of {} vCPUs", self.to), why })
    }

    fn tell(&mut self, online: u32) -> StepResult {
        let dir = XsPath::domain(self.live.domid()?);
        let mut batch = Batch::new();
        for cpu in 0..self.live.record.config.max_vcpus {
            batch.write(&below(&dir, &format!("cpu/{cpu}/availability")), cpu_availability(cpu, online));
        }
        batch.commit(&self.live.ts.xenstore)
    }

    /// Those processors that QEMU was not started with, lowest first: a guest learns of them through ACPI.
    fn add(&mut self) -> StepResult {
        if self.live.record.config.max_vcpus == 1 {
            return Ok(());
        }
        let ts = self.live.ts;
        let monitor = ts.monitors.monitor(self.live.id())?;
        let deadline = || Instant::now() + ts.deadlines.qmp;
        let mut known = qmp::run(&*monitor, &QueryHotpluggableCpus {}, deadline())?;
        known.sort_by_key(|cpu| place(&cpu.props));
        let wanted = usize::try_from(self.to).unwrap_or(usize::MAX);
        let missing = known.into_iter().take(wanted).enumerate().filter(|(_, cpu)| cpu.qom_path.is_none());
        for (number, cpu) in missing {
            let mut arguments = cpu.props;
            arguments.insert("driver".to_owned(), cpu.kind.into());
            arguments.insert("id".to_owned(), format!("cpu-{number}").into());
            qmp::run(&*monitor, &DeviceAdd(arguments), deadline())?;
        }
        Ok(())
    }

    fn record(&mut self, vcpus: u32) -> StepResult {
        self.live.record.config.vcpus = vcpus;
        Ok(())
    }
}
