use xen_types::DomId;
use xenstore::XsPath;

use crate::batch::Batch;
use crate::domain::{Domain, GuestId};
use crate::error::{Cause, ToolstackError as Error};
use crate::event::{Event, warnings};
use crate::guest::Live;
use crate::nodes::{below, vm_dir};
use crate::operation::{
    Cursor, ENTRY, Journal, Kind, OnGuest, Resumed, Step, StepResult, ids, must_be_free, resume, run,
};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack, UndoFailure};

/// A guest that gets another name.
struct Renaming<'a> {
    ts: &'a Toolstack,
    record: GuestRecord,
    from: String,
    to: String,
    /// Its configuration has the new name too, which it keeps when it restarts.
    for_good: bool,
}

fn steps<'b>() -> Vec<Step<Renaming<'b>>> {
    vec![
        Step::new("check", "check the name", Renaming::check),
        Step::new(ENTRY, "record the name", |r: &mut Renaming<'_>| {
            r.record(&r.to.clone());
            r.enter(Cursor::back(ENTRY))
        })
        .undo(|r: &mut Renaming<'_>| {
            r.record(&r.from.clone());
            Ok(())
        })
        .entry(),
        Step::new("write-names", "write the names", |r: &mut Renaming<'_>| r.write(&r.to.clone()))
            .undo(|r: &mut Renaming<'_>| r.write(&r.from.clone())),
    ]
}

impl Toolstack {
    /// The ids of the steps of [`Self::rename`], in order.
    #[must_use]
    pub fn rename_steps() -> Vec<&'static str> {
        ids(&steps())
    }

    /// Renames a guest and its stubdomain; the guest keeps the name when it restarts. The name of a preserved guest
    /// is not its configuration's and does not become it.
    ///
    /// # Errors
    /// When there is no such guest, or the name is taken or none; [`Error::Step`], and everything was undone.
    pub fn rename(&self, id: GuestId, name: &str, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let record = self.give_name(id, name, true, events)?;
        let dead = Cause::DeviceModelDead { name: record.name.clone() };
        Ok(record.guest().ok_or(dead)?)
    }

    /// Renames an ended guest and its stubdomain, to preserve it beside a new guest of its configuration.
    ///
    /// # Errors
    /// As for [`Self::rename`].
    pub fn preserve_as(&self, id: GuestId, name: &str) -> Result<(), Error> {
        self.give_name(id, name, false, &mut |_| ()).map(drop)
    }

    pub(crate) fn give_name(
        &self,
        id: GuestId,
        name: &str,
        for_good: bool,
        events: &mut dyn FnMut(Event),
    ) -> Result<GuestRecord, Error> {
        let mut record = self.record_of(id)?;
        must_be_free(&record)?;
        if let Some(operation) = &record.operation {
            match Live::find(self, id) {
                Ok(live) => record = self.settle(live, &mut warnings(events))?.record,
                // What was changed of an ended guest is removed with it.
                Err(Cause::NotRunning { .. } | Cause::DeviceModelDead { .. })
                    if !operation.is_of_domains() =>
                {
                    record.operation = None;
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        let (from, to) = (record.name.clone(), name.to_owned());
        // A preserved guest stays so: its configuration's name is its successor's.
        let for_good = for_good && !record.is_preserved();
        let mut renaming = Renaming { ts: self, record, from, to, for_good };
        run(&steps(), &mut renaming, &self.faults, events)?;
        Ok(renaming.record)
    }
}

/// Undoes a renaming that an earlier process began. The guest may have ended.
pub(crate) fn resume_rename(
    ts: &Toolstack,
    record: GuestRecord,
    (from, for_good): (String, bool),
    cursor: &Cursor,
    events: &mut dyn FnMut(Event),
) -> (GuestRecord, Result<Resumed, Vec<UndoFailure>>) {
    let to = record.name.clone();
    let mut renaming = Renaming { ts, record, from, to, for_good };
    let resumed = resume(&steps(), &mut renaming, cursor, events);
    (renaming.record, resumed)
}

impl OnGuest for Renaming<'_> {
    fn parts(&mut self) -> (&Toolstack, &mut GuestRecord) {
        (self.ts, &mut self.record)
    }

    fn kind(&self) -> Kind {
        Kind::Rename { from: self.from.clone(), for_good: self.for_good }
    }
}

impl Renaming<'_> {
    /// Neither the name nor that of the stubdomain may be another domain's.
    fn check(&mut self) -> StepResult {
        if self.to != self.from {
            config::check_name(&self.to)
                .map_err(|why| Cause::Unsupported { what: format!("The name {:?}", self.to), why })?;
        }
        let wanted = [self.to.clone(), format!("{}-dm", self.to)];
        let own: Vec<_> = self.record.domains(self.ts)?.into_iter().map(Domain::domid).collect();
        for info in self.ts.hypervisor.list_domains()?.into_iter().filter(|info| !info.state.dying) {
            let Some(name) = self.ts.domain_name(info.domid)? else { continue };
            if wanted.contains(&name) && !own.contains(&info.domid) {
                return Err(Cause::NameTaken { name, domid: info.domid });
            }
        }
        let others = self.ts.records()?;
        if let Some(file) = others.in_the_way(None, &wanted) {
            return Err(Cause::UnreadableInTheWay { path: file.path.clone(), why: file.cause.chain() });
        }
        for other in others.guests.into_iter().filter(|other| other.uuid != self.record.uuid) {
            if let Some(name) = other.name_among(&wanted) {
                let domid = other.domid.unwrap_or(DomId::DOM0);
                return Err(Cause::NameTaken { name: name.to_owned(), domid });
            }
        }
        Ok(())
    }

    fn record(&mut self, name: &str) {
        name.clone_into(&mut self.record.name);
        if self.for_good {
            name.clone_into(&mut self.record.config.name);
        }
    }

    fn write(&mut self, name: &str) -> StepResult {
        let mut batch = Batch::new();
        let stub_name = format!("{name}-dm");
        let domains = [
            (self.record.guest_domain(self.ts)?, name),
            (self.record.stub_domain(self.ts)?, stub_name.as_str()),
        ];
        for (domain, name) in domains {
            // Another toolstack may have destroyed it.
            let Some(domain) = domain else { continue };
            batch.write(&below(&XsPath::domain(domain.domid()), "name"), name);
            batch.write(&below(&vm_dir(domain.uuid()), "name"), name);
        }
        batch.commit(&self.ts.xenstore)
    }
}
