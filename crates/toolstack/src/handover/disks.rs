//! Whether both hosts have the same disks: a guest that finds others is lost.
//!
//! A writable disk has to be the same storage. A block device is known by an identity that its storage has. An image file
//! is known by a file that the sender puts beside it for the time of the migration, which the receiver has to find. Of
//! what is only read, a copy will do: its size has to be the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Disk, DiskSource, GuestConfig};
use migration::MigrationId;
use xen_types::DomId;

use super::error::HandoverError as Error;
use crate::Toolstack;
use crate::dom0::FileKind;
use crate::error::Cause;
use crate::operation::StepResult;

/// The most that a marker may have, in bytes.
const MARKER: u64 = 64;
/// How the description of a block device begins.
const STORAGE: &str = "storage";

/// What describes the disks to the other host, in their order. Puts markers beside image files; [`remove_markers`]
/// removes them.
pub(crate) fn describe(ts: &Toolstack, config: &GuestConfig, id: MigrationId) -> Result<Vec<String>, Cause> {
    let described =
        config.disks.iter().map(|disk| describe_one(ts, disk, id)).collect::<Result<Vec<_>, _>>()?;
    check_distinct(config, &described)?;
    Ok(described)
}

/// Fails if two disks that the guest can write to say the same of themselves: makers give serial numbers twice, and the
/// other host could have the disks the other way round.
fn check_distinct(config: &GuestConfig, described: &[String]) -> StepResult {
    let storage = config.disks.iter().zip(described).filter(|(_, text)| text.starts_with(STORAGE));
    let mut known = BTreeMap::new();
    for (disk, text) in storage {
        if let Some(first) = known.insert(text, disk) {
            let identity = text.trim_start_matches(STORAGE).trim_start().to_owned();
            let (first, second) = (name_of(first), name_of(disk));
            return Err(Error::SameIdentity { first, second, identity }.into());
        }
    }
    Ok(())
}

fn name_of(disk: &Disk) -> String {
    match &disk.source {
        DiskSource::Empty | DiskSource::Script { .. } => disk.vdev.to_string(),
        DiskSource::Path(path) => path.clone(),
    }
}

fn describe_one(ts: &Toolstack, disk: &Disk, id: MigrationId) -> Result<String, Cause> {
    let path = match &disk.source {
        DiskSource::Empty => return Ok("empty".to_owned()),
        DiskSource::Script { script, target } => return Ok(format!("script {script} {target}")),
        // Not the link's folder, but the file's own has to be shared.
        DiskSource::Path(path) => &ts.host.real_path(Path::new(path))?,
    };
    if !disk.is_writable() {
        return Ok(format!("read-only {}", size(ts, path)?));
    }
    if let Some(identity) = ts.host.storage_of(path)? {
        return Ok(format!("{STORAGE} {identity}"));
    }
    let marker = marker(path, id);
    match ts.host.file_kind(path)? {
        FileKind::Regular { bytes } => {
            ts.host.write_file(&marker, id.to_string().as_bytes())?;
            Ok(format!("image file of {bytes} bytes"))
        }
        FileKind::Missing => {
            Err(Error::OtherDisk { disk: path.display().to_string(), why: "it is missing".to_owned() }.into())
        }
        _ => Err(Error::NoIdentity { disk: path.display().to_string() }.into()),
    }
}

/// Fails unless this host's disks are those that another host has described. They are only read.
pub(crate) fn check(
    ts: &Toolstack,
    config: &GuestConfig,
    described: &[String],
    id: MigrationId,
) -> StepResult {
    if config.disks.len() != described.len() {
        let why = "its number of disks is not that of their descriptions".to_owned();
        return Err(Error::Offer { why }.into());
    }
    check_distinct(config, described)?;
    for (disk, theirs) in config.disks.iter().zip(described) {
        let name = name_of(disk);
        let ours = describe_here(ts, disk, id)?;
        if ours != *theirs {
            let theirs = theirs.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
            let why = format!("here it is \"{ours}\", there \"{theirs}\"");
            return Err(Error::OtherDisk { disk: name, why }.into());
        }
    }
    Ok(())
}

/// What the description of this disk would be if it was the sender's.
fn describe_here(ts: &Toolstack, disk: &Disk, id: MigrationId) -> Result<String, Cause> {
    let path = match &disk.source {
        DiskSource::Path(path) if disk.is_writable() => Path::new(path),
        _ => return describe_one(ts, disk, id),
    };
    let bytes = match ts.host.file_kind(path)? {
        FileKind::Regular { bytes } if ts.host.storage_of(path)?.is_none() => bytes,
        FileKind::Missing => return Ok("missing".to_owned()),
        _ => return describe_one(ts, disk, id),
    };
    let marker = marker(&ts.host.real_path(path)?, id);
    if ts.host.file_kind(&marker)? == FileKind::Missing {
        return Ok("image file in another folder".to_owned());
    }
    let found = ts.host.read_file(&marker, MARKER)?;
    Ok(if found == id.to_string().as_bytes() {
        format!("image file of {bytes} bytes")
    } else {
        "image file with another marker".to_owned()
    })
}

/// Removes the markers that [`describe`] has put beside image files.
pub(crate) fn remove_markers(ts: &Toolstack, config: &GuestConfig, id: MigrationId) -> StepResult {
    for path in writable(config) {
        if let Ok(path) = ts.host.real_path(path) {
            ts.host.remove_file(&marker(&path, id))?;
        }
    }
    Ok(())
}

/// Waits until all that the domains wrote is on the storage: neither sends requests any more, but the backends may
/// still have some.
pub(crate) fn settle(ts: &Toolstack, config: &GuestConfig, frontends: &[DomId]) -> StepResult {
    ts.host.settle_backends(frontends, ts.deadlines.state)?;
    for path in writable(config) {
        ts.host.sync_disk(path)?;
    }
    Ok(())
}

/// Forgets what this host knows of disks to which the other host has written.
pub(crate) fn forget_cached(ts: &Toolstack, config: &GuestConfig) -> StepResult {
    for path in writable(config) {
        ts.host.forget_cached(path)?;
    }
    Ok(())
}

/// The disks that the guest can write to.
fn writable(config: &GuestConfig) -> impl Iterator<Item = &Path> {
    config.disks.iter().filter(|disk| disk.is_writable()).filter_map(|disk| match &disk.source {
        DiskSource::Path(path) => Some(Path::new(path)),
        DiskSource::Empty | DiskSource::Script { .. } => None,
    })
}

fn marker(path: &Path, id: MigrationId) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{id}.migrating"));
    PathBuf::from(name)
}

fn size(ts: &Toolstack, path: &Path) -> Result<String, Cause> {
    Ok(match ts.host.file_kind(path)? {
        FileKind::Regular { bytes } => bytes.to_string(),
        FileKind::Missing => "missing".to_owned(),
        // Its number is this host's alone.
        FileKind::Block { .. } => match ts.host.storage_of(path)? {
            Some(identity) => identity,
            None => return Err(Error::NoIdentity { disk: path.display().to_string() }.into()),
        },
        FileKind::Pipe | FileKind::Other => "other".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use xen::SimHypervisor;
    use xenstore::server::Server;

    use super::*;
    use crate::dom0::SimHost;

    const ID: MigrationId = MigrationId([3; 16]);

    fn host() -> (Arc<SimHost>, Toolstack) {
        let host = Arc::new(SimHost::new());
        host.put_file("/srv/a.img", &[0; 512]);
        host.put_file("/srv/cd.iso", &[0; 2048]);
        host.put_block("/dev/vg/b", 253, 7);
        host.put_storage("/srv/a.img", None);
        let store = Server::start().connect(DomId::DOM0);
        let ts = Toolstack::new(Arc::new(SimHypervisor::new()), store, host.clone());
        (host, ts)
    }

    fn config() -> GuestConfig {
        let text = "name='x'\ntype='hvm'\nmemory=32\ndisk=['/srv/a.img,raw,hda,rw','/dev/vg/b,raw,xvdb,rw',\
                    '/srv/cd.iso,raw,hdc,ro,cdrom','script=block-x,vdev=xvde,target=vol:1']\n";
        config::load_str("x.cfg", text).config.expect("a configuration")
    }

    #[test]
    fn same_disks_are_known_on_the_other_host() {
        let (a, there) = host();
        let (b, here) = host();
        let config = config();
        let described = describe(&there, &config, ID).unwrap();
        let error = check(&here, &config, &described, ID).unwrap_err().chain();
        assert!(error.contains("another folder"), "{error}");
        // The folder is shared.
        let marker = marker(Path::new("/srv/a.img"), ID);
        b.put_file(&marker, &a.state().files[&marker]);
        check(&here, &config, &described, ID).unwrap();
        settle(&here, &config, &[]).unwrap();
        forget_cached(&here, &config).unwrap();
        remove_markers(&there, &config, ID).unwrap();
        assert!(!a.state().files.contains_key(&marker));
    }

    #[test]
    fn other_disks_are_refused() {
        let (_, there) = host();
        let (b, here) = host();
        let config = config();
        let described = describe(&there, &config, ID).unwrap();
        b.put_file(marker(Path::new("/srv/a.img"), ID), ID.to_string().as_bytes());
        check(&here, &config, &described, ID).unwrap();
        b.put_file("/srv/a.img", &[0; 1024]);
        assert!(check(&here, &config, &described, ID).is_err(), "another size");
        b.put_file("/srv/a.img", &[0; 512]);
        b.put_storage("/dev/vg/b", Some("wwid=other"));
        assert!(check(&here, &config, &described, ID).is_err(), "another device");
        b.put_storage("/dev/vg/b", None);
        assert!(check(&here, &config, &described, ID).is_err(), "no identity");
        assert!(check(&here, &config, &described[1..], ID).is_err());
    }

    #[test]
    fn disks_that_identify_themselves_alike_are_refused_and_both_are_named() {
        let (a, there) = host();
        a.put_block("/dev/vg/c", 253, 8);
        let mut config = config();
        let path = DiskSource::Path("/dev/vg/c".to_owned());
        let twin = config.disks.iter().find(|disk| name_of(disk) == "/dev/vg/b").unwrap().clone();
        config.disks.push(Disk { vdev: config::device_name("xvdz").unwrap(), source: path, ..twin });
        let identity = there.host.storage_of(Path::new("/dev/vg/b")).unwrap().unwrap();
        a.put_storage("/dev/vg/c", Some(&identity));
        let text = describe(&there, &config, ID).unwrap_err().to_string();
        assert!(["/dev/vg/b", "/dev/vg/c", &identity].iter().all(|part| text.contains(part)), "{text}");
        a.put_storage("/dev/vg/c", Some("another"));
        describe(&there, &config, ID).unwrap();
    }

    #[test]
    fn device_without_an_identity_is_refused() {
        let (a, there) = host();
        a.put_storage("/dev/vg/b", None);
        let error = describe(&there, &config(), ID).unwrap_err();
        assert!(matches!(error, Cause::Handover(Error::NoIdentity { .. })), "{error:?}");
    }
}
