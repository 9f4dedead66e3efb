//! Claims on disks: which guest may use which disk.
//!
//! A disk is identified by [`DiskId`], not by its name. It is opened and checked, and the open file is attached. It is
//! compared with the disks in our records, with every PV disk of the host and every disk of a QEMU in dom0, from any
//! toolstack, with all loop devices, and with dom0's mounts. The rules are those of Xen's script for block devices
//! (`check_sharing` in `tools/hotplug/Linux/block`): a writer excludes all others, readers share.
//!
//! A record counts from the moment that it is written, and [`Toolstack::lock_disks`] is held from the check until then:
//! if two guests claim a disk at the same time, one of them gets it. A block device that is opened for writing stays
//! claimed (`O_EXCL`) until the backends have it.
//!
//! A hotplug script checks the disks that it makes. Once they exist, other disks are compared with them.

mod backends;

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use config::{Disk, DiskSource, Uuid, Vdev};
use xen::{DomainInfo, ShutdownReason};
use xen_types::DomId;

use crate::Toolstack;
use crate::device::describe;
use crate::dom0::{BlockNumber, BootId, DiskAccess, DiskId, DiskUsers, HostError, HostLoop, OpenDisk};
use crate::error::{Cause, DiskUser};
use crate::phase::Phase;
use crate::record::{DiskRecord, GuestRecord, LOOP_TAG, Records, UnreadableRecord};

/// Disks that are held open until their backends have them.
pub(crate) type OpenDisks = BTreeMap<Vdev, OpenDisk>;

/// The lock that a thread holds while it claims disks.
pub(crate) struct DisksLock<'a> {
    _guard: MutexGuard<'a, ()>,
}

impl Toolstack {
    /// Waits until no other thread is claiming a disk.
    pub(crate) fn lock_disks(&self) -> DisksLock<'_> {
        // It guards no data that a panic could leave half changed.
        DisksLock { _guard: self.disks.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// Opens a disk for its guest; `None` unless it is a file or a block device.
pub(crate) fn open_disk(ts: &Toolstack, disk: &Disk) -> Result<Option<OpenDisk>, Cause> {
    let DiskSource::Path(path) = &disk.source else { return Ok(None) };
    let access = if disk.is_writable() { DiskAccess::Writable } else { DiskAccess::ReadOnly };
    Ok(Some(ts.host.open_disk(path.as_ref(), access)?))
}

/// Opens disks for a guest and adds them to its record, unless one of them is in use. The caller saves the record before
/// it releases the lock.
///
/// The guest's other disks are compared too, except the one with the same virtual device: that is the disc that a CD
/// drive had before.
pub(crate) fn claim(
    ts: &Toolstack,
    _lock: &DisksLock<'_>,
    record: &mut GuestRecord,
    disks: &[Disk],
) -> Result<OpenDisks, Cause> {
    // All are opened before the checks begin, so that dom0 cannot mount one that will be written.
    let mut wanted = Vec::new();
    for disk in disks {
        wanted.extend(Wanted::open(ts, disk).map_err(|cause| cause.about(describe(disk)))?);
    }
    if wanted.is_empty() {
        return Ok(OpenDisks::new());
    }
    let host = Host::look(ts, record)?;
    let mut own = own_disks(ts, record, disks)?;
    let mut opened = OpenDisks::new();
    for Wanted { disk, record: mut fresh, open } in wanted {
        fresh.id = host.users.with_backing(std::mem::take(&mut fresh.id));
        let free = host.check(&fresh, &own).and_then(|()| open.map_err(Cause::from));
        opened.insert(disk.vdev, free.map_err(|cause| cause.about(describe(disk)))?);
        own.push(fresh);
    }
    record.disks.extend(own.into_iter().filter(|disk| opened.contains_key(&disk.vdev)));
    Ok(opened)
}

/// The guest's disks except those that are being claimed.
fn own_disks(ts: &Toolstack, record: &GuestRecord, claimed: &[Disk]) -> Result<Vec<DiskRecord>, Cause> {
    let others = |vdev: Vdev| claimed.iter().all(|disk| disk.vdev != vdev);
    let mut own: Vec<_> = record.disks.iter().filter(|disk| others(disk.vdev)).cloned().collect();
    for disk in record.config.disks.iter().filter(|disk| others(disk.vdev)) {
        let DiskSource::Path(path) = &disk.source else { continue };
        // An earlier release did not record the identity of disks.
        if own.iter().all(|known| known.vdev != disk.vdev)
            && let Some(id) = ts.host.disk_at(path.as_ref())?
        {
            own.push(DiskRecord { vdev: disk.vdev, path: path.clone(), id, writable: disk.is_writable() });
        }
    }
    Ok(own)
}

/// A disk that is being claimed for a guest.
struct Wanted<'a> {
    disk: &'a Disk,
    record: DiskRecord,
    /// A busy block device is compared all the same: the error can then name its user.
    open: Result<OpenDisk, HostError>,
}

impl<'a> Wanted<'a> {
    fn open(ts: &Toolstack, disk: &'a Disk) -> Result<Option<Self>, Cause> {
        let DiskSource::Path(path) = &disk.source else { return Ok(None) };
        let (open, id) = match open_disk(ts, disk) {
            Ok(Some(open)) => {
                let id = open.id();
                (Ok(open), id)
            }
            Ok(None) => return Ok(None),
            Err(Cause::Host(HostError::DiskBusy { path, id })) => {
                let known = DiskId::clone(&id);
                (Err(HostError::DiskBusy { path, id }), known)
            }
            Err(cause) => return Err(cause),
        };
        let record = DiskRecord { vdev: disk.vdev, path: path.clone(), id, writable: disk.is_writable() };
        Ok(Some(Self { disk, record, open }))
    }
}

impl DiskRecord {
    /// Whether the two disks must not be used at the same time.
    fn conflicts(&self, id: &DiskId, writable: bool) -> bool {
        (self.writable || writable) && self.id.overlaps(id)
    }
}

/// Every possible user of a disk, as seen from the guest `uuid`.
struct Host<'a> {
    ts: &'a Toolstack,
    name: String,
    uuid: Uuid,
    users: DiskUsers,
    /// The domids of its domains.
    own: Vec<DomId>,
    records: Records,
    boot: BootId,
    domains: BTreeMap<DomId, DomainInfo>,
}

impl<'a> Host<'a> {
    fn look(ts: &'a Toolstack, record: &GuestRecord) -> Result<Self, Cause> {
        let mut records = ts.records()?;
        records.guests.retain(|other| other.uuid != record.uuid);
        // Copies of the guest's own file: any other was refused with the UUID.
        records.unreadable.retain(|file| file.uuid != Some(record.uuid));
        let domains = ts.hypervisor.list_domains()?;
        Ok(Self {
            ts,
            name: record.name.clone(),
            uuid: record.uuid,
            users: ts.host.disk_users()?,
            own: record.own_numbers(ts)?,
            records,
            boot: ts.boot_id()?,
            domains: domains.into_iter().map(|info| (info.domid, info)).collect(),
        })
    }

    /// Fails when the disk has a user that conflicts with the claim.
    fn check(&self, wanted: &DiskRecord, own: &[DiskRecord]) -> Result<(), Cause> {
        let same = own.iter().find(|disk| wanted.conflicts(&disk.id, disk.writable));
        let same = same.map(|disk| DiskUser::SameGuest { name: self.name.clone(), vdev: disk.vdev });
        let recorded = || self.find_record(wanted).or_else(|| self.find_unreadable(wanted));
        let user = match same.or_else(recorded) {
            Some(user) => Some(user),
            None => match self.find_backend(wanted)? {
                Some(domid) => Some(self.guest(domid)?),
                None => {
                    self.find_mount(wanted).map_or_else(|| self.find_loop(wanted), |user| Ok(Some(user)))?
                }
            },
        };
        user.map_or(Ok(()), |by| Err(Cause::DiskInUse { path: wanted.path.clone(), by }))
    }

    /// Another guest of ours that uses the disk, from the moment that it has a record.
    fn find_record(&self, wanted: &DiskRecord) -> Option<DiskUser> {
        let uses = |record: &&GuestRecord| {
            let counts = record.phase() != Phase::Running || self.living(record.uuid).is_some();
            counts && record.disks.iter().any(|disk| wanted.conflicts(&disk.id, disk.writable))
        };
        self.records.guests.iter().find(uses).map(|record| DiskUser::Guest {
            name: record.name.clone(),
            domid: self.living(record.uuid).or(record.domid),
            phase: record.phase(),
        })
    }

    /// A guest of this boot of the host whose state file cannot be read, except for its list of disks.
    fn find_unreadable(&self, wanted: &DiskRecord) -> Option<DiskUser> {
        let uses = |file: &&UnreadableRecord| {
            file.boot.is_none_or(|boot| boot == self.boot)
                && file.disks.iter().any(|disk| wanted.conflicts(&disk.id, disk.writable))
        };
        let file = self.records.unreadable.iter().find(uses)?;
        Some(DiskUser::Unreadable { file: file.path.clone() })
    }

    fn find_mount(&self, wanted: &DiskRecord) -> Option<DiskUser> {
        let mut mounts = self.users.mounts.iter();
        let found = mounts.find(|mount| wanted.conflicts(&mount.id, !mount.read_only))?;
        Some(DiskUser::Mounted { at: found.at.clone() })
    }

    /// A loop device that uses the disk and is not the disk itself.
    fn find_loop(&self, wanted: &DiskRecord) -> Result<Option<DiskUser>, Cause> {
        let own = wanted.id.numbers();
        for entry in self.users.loops.iter().filter(|entry| !own.contains(&entry.number())) {
            let backing = self.users.with_backing(entry.backing.clone());
            let writable = !entry.read_only && !self.only_read(entry.number());
            if !wanted.conflicts(&backing, writable) {
                continue;
            }
            let user = match tagged(entry) {
                Some(uuid) if uuid == self.uuid => None,
                Some(uuid) => self.living(uuid).map(|domid| self.guest(domid)).transpose()?,
                // It is a domain's PV disk, which was checked above.
                None if self.has_backend(entry.number())? => None,
                None => Some(DiskUser::Loop { device: entry.device.path.clone(), file: entry.file.clone() }),
            };
            if user.is_some() {
                return Ok(user);
            }
        }
        Ok(None)
    }

    /// Whether the only use of a block device is a mount that is read-only: `mount -o loop,ro` makes a writable device.
    fn only_read(&self, number: BlockNumber) -> bool {
        let mut mounts =
            self.users.mounts.iter().filter(|mount| mount.id.numbers().contains(&number)).peekable();
        mounts.peek().is_some() && mounts.all(|mount| mount.read_only)
    }

    /// The domain of this UUID, unless it has ended.
    fn living(&self, uuid: Uuid) -> Option<DomId> {
        let mut domains = self.domains.values();
        domains.find(|info| info.uuid == *uuid.as_bytes() && !self.has_ended(info)).map(|info| info.domid)
    }

    /// Whether a domain that still exists will not write any more.
    fn has_ended(&self, info: &DomainInfo) -> bool {
        match info.state.shutdown {
            // A suspended one may continue.
            None | Some(ShutdownReason::Suspend) => false,
            // Its toolstack creates it again, unless we have preserved it beside its successor.
            Some(ShutdownReason::Reboot | ShutdownReason::SoftReset) => {
                let mut guests = self.records.guests.iter();
                guests.any(|record| record.is_preserved() && info.uuid == *record.uuid.as_bytes())
            }
            Some(_) => true,
        }
    }

    fn guest(&self, domid: DomId) -> Result<DiskUser, Cause> {
        let name = self.ts.domain_name(domid)?.unwrap_or_else(|| "(null)".to_owned());
        Ok(DiskUser::Guest { name, domid: Some(domid), phase: Phase::Running })
    }
}

/// The UUID of the guest of ours that the loop device belongs to, if any.
fn tagged(entry: &HostLoop) -> Option<Uuid> {
    entry.tag.strip_prefix(LOOP_TAG)?.parse().ok()
}
