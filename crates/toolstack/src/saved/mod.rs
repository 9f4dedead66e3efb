//! A saved guest: what it consists of besides its memory, and its file.

mod file;
mod header;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use config::{Access, Disk, DiskKind, DiskSource, GuestConfig, Uuid};
use migration_stream::header::Header;
use migration_stream::metadata::Metadata;
use migration_stream::{libxl, libxl_json};
use xen::Cancel;

use crate::Toolstack;
use crate::error::{Cause, ToolstackError as Error};
use crate::operation::StepResult;
use crate::states::STATE_LIMIT;

use file::Within;
pub(crate) use file::{check_room, check_target, is_of, partial, write_within};
pub(crate) use header::{check_places, describe, json};

/// A saved guest whose file was opened, and read as far as its memory.
#[derive(Debug)]
pub struct Saved {
    /// Its configuration.
    pub config: GuestConfig,
    /// Its UUID.
    pub uuid: Uuid,
    /// Of which the next byte is the first of libxenguest's stream.
    pub(crate) file: File,
    path: PathBuf,
    /// The machine type of its QEMU.
    machine: String,
    /// How many processors its QEMU had.
    pub(crate) processors: u32,
    /// QEMU can start before the memory has arrived ([`Metadata::starts_early`]).
    pub(crate) starts_early: bool,
    /// Gives the reading of its memory up.
    pub(crate) cancel: Cancel,
}

impl Toolstack {
    /// Opens the file of a saved guest, or a named pipe with one, and reads what it says of the guest.
    ///
    /// # Errors
    /// When it cannot be read, is none, or its guest is none that Outrigger can run.
    pub fn open_saved(&self, path: &Path) -> Result<Saved, Error> {
        let file = self.host.open_stream(path, self.deadlines.state).map_err(Cause::from)?;
        let about = |cause: Cause| cause.about(path.display().to_string());
        let read = |file: &File| -> Result<_, Cause> {
            let file = &mut Within { from: file, deadline: Instant::now() + self.deadlines.state };
            let Header { json, tail } = Header::read(file)?;
            let found = match Metadata::decode(&tail)? {
                Some(metadata) => {
                    check_config(&metadata)?;
                    (metadata.config, metadata.uuid, metadata.machine, metadata.vcpus_online)
                }
                // Stock xl wrote it.
                None => {
                    let decoded = libxl_json::decode(&json)?;
                    let uuid = decoded.config.uuid.map_or_else(|| self.random_uuid(), Ok)?;
                    let processors = u32::try_from(decoded.online_vcpus.len()).unwrap_or(1);
                    (decoded.config, uuid, XL_MACHINE.to_owned(), processors)
                }
            };
            libxl::read_begin(file)?;
            Ok(found)
        };
        let (config, uuid, machine, processors) = read(&file).map_err(about)?;
        let cancel = Cancel::new();
        let starts_early = false;
        Ok(Saved { config, uuid, file, path: path.to_owned(), machine, processors, starts_early, cancel })
    }
}

/// What the language of xl.cfg(5) would have refused: a file may come from anyone.
fn check_config(metadata: &Metadata) -> StepResult {
    let Metadata { config, vcpus_online, .. } = metadata;
    let bad = |why: String| {
        Err(Cause::Unsupported { what: "Restoring the configuration in the file".to_owned(), why })
    };
    if let Err(why) = config::check_name(&config.name) {
        return bad(format!("the name is not valid: {why}"));
    }
    let fits = (1..=MAX_VCPUS).contains(&config.max_vcpus)
        && (1..=config.max_vcpus).contains(&config.vcpus)
        && (1..=config.max_vcpus).contains(vcpus_online);
    if !fits {
        return bad("its vCPU counts are out of range or contradict each other".to_owned());
    }
    if config.memory > config.max_memory || config.display.video_memory >= config.memory {
        return bad("its sizes of memory contradict each other".to_owned());
    }
    let vdevs: BTreeSet<_> = config.disks.iter().map(|disk| disk.vdev).collect();
    let devids: BTreeSet<_> = config.nics.iter().map(|nic| nic.devid).collect();
    if vdevs.len() != config.disks.len() || devids.len() != config.nics.len() {
        return bad("two disks or two network interfaces have the same number".to_owned());
    }
    if config.serials.len() > GuestConfig::MAX_SERIALS || config.channels.len() > GuestConfig::MAX_CHANNELS {
        return bad("it has too many consoles".to_owned());
    }
    Ok(())
}

/// The most vCPUs of an HVM guest (`HVM_MAX_VCPUS`).
const MAX_VCPUS: u32 = 128;

/// What stock xl calls `xenfv`: the same machine from QEMU 7.2 to 10.0.
const XL_MACHINE: &str = "xenfv-3.1";

impl Saved {
    /// A guest that comes from another host, whose stream is read from `file`. `from` names it in messages.
    ///
    /// # Errors
    /// When its configuration is none that Outrigger can run.
    pub(crate) fn incoming(
        metadata: Metadata,
        (file, cancel): (File, &Cancel),
        from: &str,
    ) -> Result<Self, Cause> {
        check_config(&metadata)?;
        let Metadata { config, uuid, machine, vcpus_online: processors, starts_early, .. } = metadata;
        let cancel = cancel.clone();
        Ok(Self { config, uuid, file, path: PathBuf::from(from), machine, processors, starts_early, cancel })
    }

    /// The same under another name, unless that is empty.
    ///
    /// # Errors
    /// When it cannot be a name.
    pub fn named(mut self, name: &str) -> Result<Self, Error> {
        if name.is_empty() {
            return Ok(self);
        }
        config::check_name(name)
            .map_err(|why| Cause::Unsupported { what: format!("The name \"{name}\""), why })?;
        self.config.name = name.to_owned();
        Ok(self)
    }

    /// A state of another machine type may be taken for loaded with parts of it missing, so it is never tried.
    pub(crate) fn check_machine(&self, ours: &str) -> StepResult {
        if self.machine == ours {
            return Ok(());
        }
        let (path, saved, ours) = (self.path.clone(), self.machine.clone(), ours.to_owned());
        Err(Cause::OtherMachine { path, saved, ours })
    }

    /// Fails if a disk was written to after the guest was saved, as far as that can be seen: of files, by their times.
    pub(crate) fn check_disks(&self, ts: &Toolstack) -> StepResult {
        let Some(saved) = ts.host.modified(&self.path)? else { return Ok(()) };
        let is_writable = |disk: &&Disk| disk.access == Access::ReadWrite && disk.kind == DiskKind::Disk;
        for disk in self.config.disks.iter().filter(is_writable) {
            let DiskSource::Path(path) = &disk.source else { continue };
            if ts.host.modified(Path::new(path))?.is_some_and(|changed| changed > saved) {
                return Err(Cause::DiskChanged { disk: path.clone(), path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// Reads what is before libxenguest's stream, of a guest that comes from another host.
    pub(crate) fn read_begin(&self, patience: Duration) -> StepResult {
        let from = &mut Within { from: &self.file, deadline: Instant::now() + patience };
        Ok(libxl::read_begin(from)?)
    }

    /// Reads what follows libxenguest's stream: the state of QEMU's devices.
    pub(crate) fn read_state(&self, patience: Duration) -> Result<Vec<u8>, Cause> {
        let from = &mut Within { from: &self.file, deadline: Instant::now() + patience };
        let rest = libxl::read_rest(from, STATE_LIMIT)?;
        migration_stream::qemu::check(&rest.emulator)?;
        Ok(rest.emulator)
    }
}
