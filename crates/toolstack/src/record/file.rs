//! Reading state files, including those of other releases.
//!
//! A file has an outer part that every release reads: `form`, `uuid`, `stub_uuid`, `name`, `boot`, `domid`,
//! `stub_domid`, `disks` and `loops`. The rest is for releases that understand its form. A file that this release
//! cannot read is not the same as no file: its guest may be running, and nothing that the outer part names is free.

use std::path::{Path, PathBuf};

use config::Uuid;
use serde::Deserialize;
use serde_json::Value;
use xen_types::DomId;

use super::{DiskRecord, EXTENSION, FORM, GuestRecord, LIMIT, OLDEST};
use crate::Toolstack;
use crate::dom0::{BootId, HostDevices, HostError};
use crate::domain::GuestId;
use crate::error::Cause;
use crate::paths::Paths;

/// A state file that this release cannot read, with what could be read of its outer part.
#[derive(Debug)]
pub struct UnreadableRecord {
    /// The file.
    pub path: PathBuf,
    /// The guest's UUID, from the file or else from the file's name.
    pub uuid: Option<Uuid>,
    /// The guest's name.
    pub name: Option<String>,
    /// The last domid of its domain.
    pub domid: Option<DomId>,
    /// The boot of the host in which it was created.
    pub boot: Option<BootId>,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// Why the file cannot be read, and what to do.
    pub cause: Cause,
}

/// The result of reading a state file.
#[derive(Debug)]
pub(crate) enum Found {
    /// A record.
    Read(Box<GuestRecord>),
    /// A file that cannot be read.
    Unreadable(UnreadableRecord),
    /// No file: it was removed a moment ago.
    Nothing,
}

/// All state files.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Guests of this boot of the host.
    pub(crate) guests: Vec<GuestRecord>,
    /// Guests that ended with an earlier boot: they have no domains, ports, loop devices or scripts.
    pub(crate) past: Vec<GuestRecord>,
    /// Files that cannot be read.
    pub(crate) unreadable: Vec<UnreadableRecord>,
    /// Copies of readable files under other names. They are reported, and hold nothing.
    pub(crate) copies: Vec<UnreadableRecord>,
}

impl Records {
    /// Separates the copies from the unreadable files: files whose names are no UUIDs, and whose text is that of a
    /// guest with a readable file of its own.
    fn separate_copies(&mut self) {
        let known: Vec<Uuid> = self.guests.iter().chain(&self.past).map(|record| record.uuid).collect();
        let is_copy = |file: &mut UnreadableRecord| {
            uuid_of_name(&file.path).is_none() && file.uuid.is_some_and(|uuid| known.contains(&uuid))
        };
        for mut file in self.unreadable.extract_if(.., is_copy) {
            if let Some(uuid) = file.uuid {
                file.cause = Cause::RecordCopy { path: file.path.clone(), uuid };
            }
            self.copies.push(file);
        }
    }

    /// The unreadable file whose guest may have this UUID or one of these names.
    pub(crate) fn in_the_way(&self, uuid: Option<Uuid>, names: &[String]) -> Option<&UnreadableRecord> {
        self.unreadable.iter().find(|file| {
            let named = file.name.as_ref();
            (uuid.is_some() && file.uuid == uuid)
                || named.is_some_and(|name| names.contains(name) || names.contains(&format!("{name}-dm")))
        })
    }
}

impl GuestRecord {
    /// Reads a file.
    pub(crate) fn load(host: &dyn HostDevices, path: &Path) -> Found {
        let unreadable = |value: Option<&Value>, cause| Found::Unreadable(outer_part(path, value, cause));
        let damaged = |why: String| Cause::Record { path: path.to_owned(), why };
        let text = match host.read_file(path, LIMIT) {
            Ok(text) => text,
            Err(HostError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Found::Nothing;
            }
            Err(error) => return unreadable(None, error.into()),
        };
        let value: Value = match serde_json::from_slice(&text) {
            Ok(value) => value,
            Err(error) => return unreadable(None, damaged(error.to_string())),
        };
        match value.get("form").and_then(Value::as_u64) {
            Some(form) if (u64::from(OLDEST)..=u64::from(FORM)).contains(&form) => {}
            Some(form) if form > u64::from(FORM) => {
                return unreadable(Some(&value), Cause::RecordTooNew { path: path.to_owned(), form });
            }
            form => {
                let form = form.map_or_else(|| "missing".to_owned(), |form| form.to_string());
                return unreadable(Some(&value), damaged(format!("its format is {form}")));
            }
        }
        match Self::from_value(value.clone()) {
            Ok(record) if uuid_of_name(path) == Some(record.uuid) => Found::Read(Box::new(record)),
            Ok(record) => {
                let why = format!("it contains the guest {}, which does not match its name", record.uuid);
                unreadable(Some(&value), damaged(why))
            }
            Err(error) => unreadable(Some(&value), damaged(error.to_string())),
        }
    }
}

fn uuid_of_name(path: &Path) -> Option<Uuid> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Reads each value on its own, so that a damaged one does not hide the others.
fn outer_part(path: &Path, value: Option<&Value>, cause: Cause) -> UnreadableRecord {
    fn part<T: for<'a> Deserialize<'a>>(value: Option<&Value>, key: &str) -> Option<T> {
        serde_json::from_value(value?.get(key)?.clone()).ok()
    }
    UnreadableRecord {
        path: path.to_owned(),
        uuid: part(value, "uuid").or_else(|| uuid_of_name(path)),
        name: part(value, "name"),
        domid: part(value, "domid"),
        boot: part(value, "boot"),
        disks: disks(value),
        cause,
    }
}

fn disks(value: Option<&Value>) -> Vec<DiskRecord> {
    let all = value.and_then(|value| value.get("disks")?.as_array());
    all.into_iter().flatten().filter_map(|disk| serde_json::from_value(disk.clone()).ok()).collect()
}

fn state_files(host: &dyn HostDevices, paths: &Paths) -> Result<Vec<PathBuf>, Cause> {
    let mut files = host.list_files(&paths.guests())?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    Ok(files)
}

impl Toolstack {
    /// Reads all state files.
    pub(crate) fn records(&self) -> Result<Records, Cause> {
        let now = self.host.boot_id()?;
        let mut records = Records::default();
        for path in state_files(&*self.host, &self.paths)? {
            self.add(&path, now, &mut records)?;
        }
        records.separate_copies();
        Ok(records)
    }

    fn add(&self, path: &Path, now: BootId, records: &mut Records) -> Result<(), Cause> {
        match GuestRecord::load(&*self.host, path) {
            Found::Read(record) => self.sort(*record, now, path, records)?,
            Found::Unreadable(file) => records.unreadable.push(file),
            Found::Nothing => {}
        }
        Ok(())
    }

    /// Sorts a record by the boot of the host in which it was made.
    fn sort(
        &self,
        mut record: GuestRecord,
        now: BootId,
        path: &Path,
        records: &mut Records,
    ) -> Result<(), Cause> {
        match record.boot {
            Some(boot) if boot == now => records.guests.push(record),
            Some(_) => records.past.push(record),
            // A stubdomain's UUID is random, so the domain that has it was made with this record.
            None if record.stub_domain(self)?.is_some() => {
                record.boot = Some(now);
                records.guests.push(record);
            }
            None => {
                let uuid = *record.uuid.as_bytes();
                if self.hypervisor.list_domains()?.iter().any(|info| info.uuid == uuid && !info.state.dying) {
                    let value = serde_json::to_value(&record).unwrap_or_default();
                    let cause = Cause::RecordUncertain { path: path.to_owned(), uuid: record.uuid };
                    records.unreadable.push(outer_part(path, Some(&value), cause));
                } else {
                    records.past.push(record);
                }
            }
        }
        Ok(())
    }

    /// The record of a guest of this boot.
    pub(crate) fn record_of(&self, id: GuestId) -> Result<GuestRecord, Cause> {
        let mut records = Records::default();
        self.add(&GuestRecord::path(&self.paths, id.0), self.host.boot_id()?, &mut records)?;
        match (records.guests.pop(), records.unreadable.pop()) {
            (Some(record), _) => Ok(record),
            (None, Some(file)) => Err(file.cause),
            (None, None) => Err(Cause::NoGuest(format!("with the UUID {id} that Outrigger made"))),
        }
    }

    /// Identifies the current boot of the host.
    ///
    /// # Errors
    /// When the kernel's boot ID cannot be read.
    pub fn boot_id(&self) -> Result<BootId, Cause> {
        Ok(self.host.boot_id()?)
    }

    /// The state files that cannot be read, whose guests are left alone, and copies of state files.
    ///
    /// # Errors
    /// When the folder or Xen cannot be read.
    pub fn unreadable(&self) -> Result<Vec<UnreadableRecord>, Cause> {
        let Records { mut unreadable, copies, .. } = self.records()?;
        unreadable.extend(copies);
        Ok(unreadable)
    }
}
