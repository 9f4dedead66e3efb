//! Restarting a guest: it is destroyed and created again as one operation, which a killed daemon's successor goes on
//! with.
//!
//! ```text
//!   ended ──delay_restart──▶ delayed ──restart──▶ removing ──▶ creating ──▶ runs
//!                                       preserve_and_restart ──▶┘
//! ```
//!
//! From the first stage on the guest's state file has the restart's entry. Where the ended guest is preserved under
//! another name, its successor has a state file of its own before the name is free.

use super::create::START;
use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::event::Event;
use crate::operation::{Cursor, ENTRY, Kind, Operation, Predecessor, Restart, Stage, Turn, must_be_free};
use crate::record::GuestRecord;
use crate::{Guest, Toolstack};

impl Toolstack {
    /// Records that an ended guest is restarted when its turn has come ([`Self::restart`]).
    ///
    /// # Errors
    /// When there is no such guest or the state file cannot be written.
    pub fn delay_restart(&self, id: GuestId, turn: Turn) -> Result<(), Error> {
        let mut record = self.record_of(id)?;
        must_be_free(&record)?;
        let restart = Restart { turn, stage: Stage::Delayed, predecessor: None };
        record.operation = Some(Operation { kind: Kind::Restart(restart), cursor: Cursor::back("") });
        Ok(record.save(&*self.host, &self.paths)?)
    }

    /// Records that a delayed restart will not be.
    ///
    /// # Errors
    /// When the state file cannot be read or written.
    pub fn cancel_restart(&self, id: GuestId) -> Result<(), Error> {
        let mut record = self.record_of(id)?;
        let is_delayed = matches!(
            &record.operation,
            Some(Operation { kind: Kind::Restart(Restart { stage: Stage::Delayed, .. }), .. })
        );
        if !is_delayed {
            return Ok(());
        }
        record.operation = None;
        Ok(record.save(&*self.host, &self.paths)?)
    }

    /// Destroys a guest and creates it again from its configuration, with the same UUID.
    ///
    /// # Errors
    /// As for [`Self::destroy`] and [`Self::create`]; [`Error::NotRestarted`] when it could not be created again, and it
    /// is left as it is.
    pub fn restart(&self, id: GuestId, turn: Turn, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let record = self.record_of(id)?;
        must_be_free(&record)?;
        // What can be known to fail afterwards fails while there is still a guest to keep.
        let mut renewed = record.clone();
        renewed.renew();
        if let Err(cause) = self.check_restart(&renewed) {
            self.cancel_restart(id)?;
            return Err(Error::NotRestarted { name: record.name, cause });
        }
        self.remove_and_create(record, Restart { turn, stage: Stage::Removing, predecessor: None }, events)
    }

    /// Destroys the copy of a guest that was handed over to a host which an operator has declared dead, and creates the
    /// guest again.
    pub(super) fn boot_anew(
        &self,
        record: GuestRecord,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let restart = Restart {
            turn: Turn::new(0, std::time::Duration::ZERO),
            stage: Stage::Removing,
            predecessor: None,
        };
        self.remove_and_create(record, restart, events)
    }

    fn remove_and_create(
        &self,
        mut record: GuestRecord,
        restart: Restart,
        events: &mut dyn FnMut(Event),
    ) -> Result<Guest, Error> {
        let name = record.name.clone();
        // Without it, the next daemon would only find that the guest is gone. On a full disk nothing could be created
        // either.
        let kind = Kind::Restart(Restart { stage: Stage::Removing, ..restart.clone() });
        record.operation = Some(Operation { kind, cursor: Cursor::forward(ENTRY) });
        if let Err(cause) = record.save(&*self.host, &self.paths) {
            return Err(Error::NotRestarted { name, cause });
        }
        let removed = self.remove(record, Some(restart.clone()), events);
        let record = removed.map_err(|left| Error::NotClean { name, left })?;
        self.create_again(record, restart, events)
    }

    /// Renames an ended guest to preserve it, and records that a new guest of its configuration follows, which
    /// [`Self::finish_restart`] creates. Returns the preserved guest, and the new one's identity.
    ///
    /// # Errors
    /// As for [`Self::rename`]: the guest keeps its name, and no other follows.
    pub fn preserve_and_restart(
        &self,
        id: GuestId,
        name: &str,
        turn: Turn,
    ) -> Result<(Guest, GuestId), Error> {
        let mut old = self.record_of(id)?;
        old.renew();
        // Two guests cannot have one UUID.
        let config = config::GuestConfig { uuid: None, ..old.config };
        let mut next = self.new_record(&config, self.random_uuid()?)?;
        let predecessor = Some(Predecessor { uuid: old.uuid, name: name.to_owned() });
        let restart = Restart { turn, stage: Stage::Creating, predecessor };
        next.operation = Some(Operation { kind: Kind::Restart(restart), cursor: Cursor::back("") });
        next.save(&*self.host, &self.paths)?;
        let preserved = self.give_name(id, name, false, &mut |_| ()).and_then(|record| {
            let dead = Cause::DeviceModelDead { name: record.name.clone() };
            record.guest().ok_or_else(|| dead.into())
        });
        match preserved {
            Ok(preserved) => Ok((preserved, next.id())),
            Err(error) => {
                next.remove(&*self.host, &self.paths)?;
                Err(error)
            }
        }
    }

    /// Goes on with a restart that is beyond its delay, from its entry.
    ///
    /// # Errors
    /// As for [`Self::restart`]. When what was interrupted cannot be undone, the restart's entry stays.
    pub fn finish_restart(&self, id: GuestId, events: &mut dyn FnMut(Event)) -> Result<Guest, Error> {
        let mut record = self.record_of(id)?;
        let Some(Operation { kind: Kind::Restart(restart), cursor }) = record.operation.clone() else {
            let why = "is not being restarted".to_owned();
            return Err(Cause::NotNow { name: record.name, why }.into());
        };
        match restart.stage {
            Stage::Delayed => self.restart(id, restart.turn, events),
            Stage::Removing => self.remove_and_create(record, restart, events),
            Stage::Creating => {
                if !cursor.step.is_empty() {
                    let operation = Operation { kind: Kind::Restart(restart.clone()), cursor };
                    let is_started = operation.cursor.is_at(START);
                    record = self.resume_create(record, operation, events)?;
                    if is_started {
                        let dead = Cause::DeviceModelDead { name: record.name.clone() };
                        return Ok(record.guest().ok_or(dead)?);
                    }
                }
                self.create_again(record, restart, events)
            }
        }
    }
}
