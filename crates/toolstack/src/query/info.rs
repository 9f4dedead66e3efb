//! What is known of each guest.

use xen::DomainInfo;

use crate::domain::GuestId;
use crate::error::{Cause, ToolstackError as Error};
use crate::phase::Phase;
use crate::record::GuestRecord;
use crate::{Guest, Toolstack};

/// What is known of one guest.
#[derive(Clone, Debug)]
pub struct GuestInfo {
    /// The guest.
    pub guest: Guest,
    /// How far its life is.
    pub phase: Phase,
    /// What Xen says of its domain; nothing when that is gone.
    pub domain: Option<DomainInfo>,
    /// What Xen says of its stubdomain; nothing when that is gone.
    pub stubdomain: Option<DomainInfo>,
}

impl Toolstack {
    /// All guests that have a state file.
    ///
    /// # Errors
    /// When Xen or the state files do not answer.
    pub fn guests(&self) -> Result<Vec<GuestInfo>, Error> {
        let records = self.records()?.guests;
        records.into_iter().filter_map(|record| self.info_of(record).transpose()).collect()
    }

    /// One guest.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none.
    pub fn info(&self, id: GuestId) -> Result<GuestInfo, Error> {
        let record = self.record_of(id)?;
        let missing = || Cause::NoGuest(format!("with the UUID {id}"));
        self.info_of(record)?.ok_or_else(|| missing().into())
    }

    fn info_of(&self, record: GuestRecord) -> Result<Option<GuestInfo>, Error> {
        let phase = record.phase();
        let Some(guest) = record.guest() else { return Ok(None) };
        Ok(Some(GuestInfo {
            domain: self.domain_info(guest.domid, guest.uuid)?,
            stubdomain: self.domain_info(guest.stub_domid, guest.stub_uuid)?,
            phase,
            guest,
        }))
    }
}
