//! A guest's name and UUID, which no other guest may have.

use config::Uuid;
use xen_types::DomId;
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::Cause;
use crate::nodes::below;
use crate::operation::StepResult;
use crate::record::{GuestRecord, Records};

/// The longest name of a domain that is looked at, in bytes.
const NAME_LIMIT: usize = 4096;

impl Toolstack {
    /// A random UUID (version 4).
    pub(crate) fn random_uuid(&self) -> Result<Uuid, Cause> {
        let mut bytes = [0; 16];
        self.host.random(&mut bytes)?;
        // RFC 9562, section 5.4: version in the high half of byte 6, variant in the high bits of byte 8.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Uuid::from_bytes(bytes))
    }
}

/// The name, the stubdomain's name and the UUID must be free, in Xen and among guests that are being made.
pub(crate) fn check(ts: &Toolstack, record: &GuestRecord) -> StepResult {
    let mut domains = ts.hypervisor.list_domains()?;
    // A dying domain only waits until its pages are unmapped; its name and UUID are free.
    domains.retain(|domain| !domain.state.dying);
    if domains.iter().any(|domain| domain.uuid == *record.uuid.as_bytes()) {
        return Err(Cause::UuidTaken(record.uuid));
    }
    let wanted = [record.name.clone(), record.stub_name()];
    for domain in domains {
        let path = below(&XsPath::domain(domain.domid), "name");
        let Some(value) = ts.xenstore.read(&path)? else { continue };
        let name = String::from_utf8_lossy(value.get(..NAME_LIMIT).unwrap_or(&value)).into_owned();
        if wanted.contains(&name) {
            return Err(Cause::NameTaken { name, domid: domain.domid });
        }
    }
    check_records(record, &ts.records()?)
}

/// Checks the records, since guests that are being created may not be in Xen yet.
pub(crate) fn check_records(record: &GuestRecord, records: &Records) -> StepResult {
    check_unreadable(record, records)?;
    let wanted = [record.name.clone(), record.stub_name()];
    // A restarted guest's own record is among them.
    for other in records.guests.iter().filter(|other| other.stub_uuid != record.stub_uuid) {
        if other.uuid == record.uuid {
            return Err(Cause::UuidTaken(record.uuid));
        }
        if let Some(name) = other.name_among(&wanted) {
            let domid = other.domid.unwrap_or(DomId::DOM0);
            return Err(Cause::NameTaken { name: name.to_owned(), domid });
        }
    }
    Ok(())
}

/// No guest whose state file cannot be read may have the name or the UUID.
pub(crate) fn check_unreadable(record: &GuestRecord, records: &Records) -> StepResult {
    match records.in_the_way(Some(record.uuid), &[record.name.clone(), record.stub_name()]) {
        Some(file) => Err(Cause::UnreadableInTheWay { path: file.path.clone(), why: file.cause.chain() }),
        None => Ok(()),
    }
}
