mod disks;
mod storage;
mod streams;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use linux_loop::LoopDevice;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use xen_types::DomId;

use super::netlink::{IFF_MULTICAST, IFF_NOARP, IFF_UP, LinkChange};
use super::{
    BlockDevice, BlockNumber, BootId, DiskAccess, DiskId, DiskUsers, FileKind, HostDevices, HostError,
    LoopAttachment, OpenDisk, PortRequest, ScriptCall, ScriptProcess, VifId, harmless_line, script,
};

/// The address of a bridge's port on dom0's side, as Xen's own scripts give it: the highest, so that the bridge
/// never takes it for its own.
const PORT_ADDRESS: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
/// dom0's time zone.
const LOCAL_TIME: &str = "/etc/localtime";
/// The random UUID of this boot (`random(4)`); dom0 and Xen boot together.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How much of a log's end is read for its last lines, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

/// dom0 itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealHost;

impl HostDevices for RealHost {
    fn file_kind(&self, path: &Path) -> Result<FileKind, HostError> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(FileKind::Missing);
            }
            Err(source) => return Err(file("look at", path)(source)),
        };
        let kind = meta.file_type();
        Ok(if kind.is_file() {
            FileKind::Regular { bytes: meta.len() }
        } else if kind.is_block_device() {
            FileKind::Block { major: linux_loop::major(meta.rdev()), minor: linux_loop::minor(meta.rdev()) }
        } else if kind.is_fifo() {
            FileKind::Pipe
        } else {
            FileKind::Other
        })
    }

    fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, HostError> {
        let mut content = Vec::new();
        let handle = File::open(path).map_err(file("open", path))?;
        handle.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(file("read", path))?;
        if content.len() as u64 > limit {
            return Err(HostError::TooLong { path: path.to_owned(), limit });
        }
        Ok(content)
    }

    fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(file("make the folder", folder))?;
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut handle = options.open(&fresh).map_err(file("make", &fresh))?;
        handle.write_all(content).map_err(file("write", &fresh))?;
        handle.sync_all().map_err(file("write to disk", &fresh))?;
        fs::rename(&fresh, path).map_err(file("put in place", path))?;
        sync_folder(folder)
    }

    fn make_sparse(&self, path: &Path, bytes: u64) -> Result<(), HostError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(file("make the folder", folder))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let handle = options.open(path).map_err(file("make", path))?;
        handle.set_len(bytes).map_err(file("size", path))
    }

    fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
            _ => Ok(()),
        }
    }

    fn create_file(&self, path: &Path) -> Result<File, HostError> {
        streams::create(path)
    }

    fn modified(&self, path: &Path) -> Result<Option<SystemTime>, HostError> {
        streams::modified(path)
    }

    fn room_beside(&self, path: &Path) -> Result<u64, HostError> {
        streams::room_beside(path)
    }

    fn open_stream(&self, path: &Path, patience: Duration) -> Result<File, HostError> {
        streams::open(path, patience)
    }

    fn open_pipe(&self, path: &Path) -> Result<File, HostError> {
        streams::open_pipe(path)
    }

    fn put_in_place(&self, from: &Path, to: &Path) -> Result<(), HostError> {
        streams::put_in_place(from, to)
    }

    fn list_files(&self, folder: &Path) -> Result<Vec<PathBuf>, HostError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(file("list", folder)(source)),
        };
        let mut paths: Vec<_> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(file("list", folder))?;
        paths.sort();
        Ok(paths)
    }

    fn write_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        storage::write_at(path, offset, bytes)
    }

    fn storage_of(&self, path: &Path) -> Result<Option<String>, HostError> {
        storage::identity(path)
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf, HostError> {
        storage::real_path(path)
    }

    fn settle_backends(&self, frontends: &[DomId], patience: Duration) -> Result<(), HostError> {
        storage::settle(Path::new(storage::BACKENDS), frontends, patience)
    }

    fn sync_disk(&self, path: &Path) -> Result<(), HostError> {
        File::open(path).and_then(|handle| handle.sync_all()).map_err(file("write to disk", path))
    }

    fn forget_cached(&self, path: &Path) -> Result<(), HostError> {
        storage::forget_cached(path)
    }

    fn tail(&self, path: &Path, lines: usize) -> Vec<String> {
        let mut end = Vec::new();
        let read = File::open(path).and_then(|mut handle| {
            let length = handle.metadata()?.len();
            handle.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            handle.take(TAIL_BYTES).read_to_end(&mut end)
        });
        if read.is_err() {
            return Vec::new();
        }
        let all: Vec<_> =
            end.split(|byte| *byte == b'\n').map(harmless_line).filter(|l| !l.is_empty()).collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().to_vec()
    }

    fn open_disk(&self, path: &Path, access: DiskAccess) -> Result<OpenDisk, HostError> {
        disks::open(path, access)
    }

    fn disk_at(&self, path: &Path) -> Result<Option<DiskId>, HostError> {
        disks::at(path)
    }

    fn block_disk(&self, number: BlockNumber) -> Result<DiskId, HostError> {
        disks::of_block(number)
    }

    fn disk_users(&self) -> Result<DiskUsers, HostError> {
        disks::users()
    }

    fn attach_loop(&self, disk: &OpenDisk, read_only: bool, tag: &str) -> Result<LoopAttachment, HostError> {
        let file = disks::descriptor(disk)?;
        Ok(attachment(linux_loop::attach(file, disk.path(), read_only, tag)?))
    }

    fn detach_loop(&self, attachment: &LoopAttachment) -> Result<(), HostError> {
        let BlockDevice { path, major, minor } = attachment.device.clone();
        linux_loop::detach(&LoopDevice { path, major, minor, tag: attachment.tag.clone() })?;
        Ok(())
    }

    fn find_loops(&self, prefix: &str) -> Result<Vec<LoopAttachment>, HostError> {
        Ok(linux_loop::find(prefix)?.into_iter().map(attachment).collect())
    }

    fn is_bridge(&self, name: &str) -> Result<bool, HostError> {
        Ok(interface_folder(name)?.join("bridge").is_dir())
    }

    fn has_interface(&self, of: VifId) -> Result<bool, HostError> {
        is_of(&of.first_name(), of)
    }

    fn add_port(&self, request: &PortRequest) -> Result<(), HostError> {
        if !self.is_bridge(&request.bridge)? {
            return Err(HostError::NoBridge(request.bridge.clone()));
        }
        let bridge = interface_index(&request.bridge)?;
        let interface = request.vif.first_name();
        let index = interface_index(&interface)?;
        let failed = |operation| network(operation, &interface);
        if !is_of(&interface, request.vif)? {
            return Err(failed("find")(Errno::ENODEV.into()));
        }
        if let Some(name) = &request.rename {
            interface_folder(name)?;
            LinkChange::of(index).name(name).send().map_err(failed("rename"))?;
        }
        // As Xen's scripts do it: the port itself sends nothing.
        let mut quiet =
            LinkChange::of(index).flags(IFF_NOARP, IFF_NOARP | IFF_MULTICAST).address(PORT_ADDRESS);
        if let Some(mtu) = request.mtu {
            quiet = quiet.mtu(mtu);
        }
        quiet.send().map_err(failed("set up"))?;
        LinkChange::of(index).master(bridge).send().map_err(failed("add to its bridge"))?;
        LinkChange::of(index).flags(IFF_UP, IFF_UP).send().map_err(failed("bring up"))
    }

    fn move_port(&self, interface: &str, of: VifId, bridge: &str) -> Result<(), HostError> {
        if !self.is_bridge(bridge)? {
            return Err(HostError::NoBridge(bridge.to_owned()));
        }
        let index = interface_index(interface)?;
        if !is_of(interface, of)? {
            return Err(network("find", interface)(Errno::ENODEV.into()));
        }
        let master = interface_index(bridge)?;
        LinkChange::of(index).master(master).send().map_err(network("move to another bridge", interface))
    }

    fn bridge_of(&self, interface: &str, of: VifId) -> Result<Option<String>, HostError> {
        if !is_of(interface, of)? {
            return Ok(None);
        }
        let bridge = fs::read_link(interface_folder(interface)?.join("master")).ok();
        let name = bridge.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        Ok(name.map(str::to_owned))
    }

    fn remove_port(&self, interface: &str, of: VifId) -> Result<(), HostError> {
        let index = match interface_index(interface) {
            Ok(index) => index,
            Err(HostError::Network { source, .. }) if is_gone(&source) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !is_of(interface, of)? {
            return Ok(());
        }
        match LinkChange::of(index).flags(0, IFF_UP).master(0).send() {
            Err(error) if !is_gone(&error) => Err(network("take from its bridge", interface)(error)),
            _ => Ok(()),
        }
    }

    fn run_script(&self, call: &ScriptCall) -> Result<(), HostError> {
        script::run(call)
    }

    fn script_runs(&self, process: ScriptProcess) -> bool {
        script::runs(process)
    }

    fn boot_id(&self) -> Result<BootId, HostError> {
        let path = Path::new(BOOT_ID);
        let text = self.read_file(path, 64)?;
        let uuid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        uuid.map(BootId).ok_or_else(|| HostError::BootId { path: path.to_owned() })
    }

    fn utc_offset(&self) -> Result<i32, HostError> {
        let failed = |error: &dyn std::fmt::Display| HostError::TimeZone { why: error.to_string() };
        // As the C library has it: TZ first, and UTC where nothing is set.
        if std::env::var_os("TZ").is_none() && !Path::new(LOCAL_TIME).exists() {
            return Ok(0);
        }
        let zone = tz::TimeZone::local().map_err(|error| failed(&error))?;
        let now = zone.find_current_local_time_type().map_err(|error| failed(&error))?;
        Ok(now.ut_offset())
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), HostError> {
        let path = Path::new("/dev/urandom");
        File::open(path).and_then(|mut source| source.read_exact(bytes)).map_err(file("read", path))
    }
}

fn file(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::File { operation, path: path.clone(), source }
}

fn network(operation: &'static str, interface: &str) -> impl Fn(io::Error) -> HostError {
    let interface = interface.to_owned();
    move |source| HostError::Network { operation, interface: interface.clone(), source }
}

/// Whether an interface belongs to this backend: its device is the backend's xenbus device.
fn is_of(interface: &str, backend: VifId) -> Result<bool, HostError> {
    let link = interface_folder(interface)?.join("device");
    let device = fs::read_link(link).ok();
    let name = device.as_deref().and_then(Path::file_name);
    Ok(name.is_some_and(|name| name == backend.device_name().as_str()))
}

fn sync_folder(folder: &Path) -> Result<(), HostError> {
    // A file system that cannot do this for a folder (EINVAL) loses nothing by it.
    match File::open(folder).and_then(|handle| handle.sync_all()) {
        Err(error) if error.raw_os_error() != Some(22) => Err(file("write to disk", folder)(error)),
        _ => Ok(()),
    }
}

fn attachment(device: LoopDevice) -> LoopAttachment {
    let LoopDevice { path, major, minor, tag } = device;
    LoopAttachment { device: BlockDevice { path, major, minor }, tag }
}

/// Whether the kernel has no such interface, or none any more: it goes with its backend.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// The interface's folder in sysfs; its name is checked, as it becomes a part of a path.
fn interface_folder(name: &str) -> Result<PathBuf, HostError> {
    let good = (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if good {
        Ok(Path::new("/sys/class/net").join(name))
    } else {
        Err(HostError::InterfaceName(name.chars().take(40).collect()))
    }
}

/// The interface's index, by the kernel's socket interface: sysfs answers EINVAL for one that is just going.
fn interface_index(name: &str) -> Result<i32, HostError> {
    interface_folder(name)?;
    let failed = network("find", name);
    let index = if_nametoindex(name).map_err(|errno| failed(errno.into()))?;
    index.try_into().map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_removed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        RealHost.write_file(&path, b"one").unwrap();
        RealHost.write_file(&path, b"two").unwrap();
        assert_eq!(RealHost.read_file(&path, 3).unwrap(), b"two");
        assert!(matches!(RealHost.read_file(&path, 2), Err(HostError::TooLong { .. })));
        assert_eq!(RealHost.list_files(&folder.path().join("a")).unwrap(), std::slice::from_ref(&path));
        RealHost.remove_file(&path).unwrap();
        RealHost.remove_file(&path).unwrap();
        assert_eq!(RealHost.file_kind(&path).unwrap(), FileKind::Missing);
        RealHost.make_sparse(&path, 1 << 30).unwrap();
        assert_eq!(RealHost.file_kind(&path).unwrap(), FileKind::Regular { bytes: 1 << 30 });
    }

    #[test]
    fn the_end_of_a_log_is_shown_without_escapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, b"one\ntwo\x1b[31m\n\nthree\r\n").unwrap();
        assert_eq!(RealHost.tail(&path, 2), ["two[31m", "three"]);
        assert!(RealHost.tail(&folder.path().join("none"), 2).is_empty());
    }

    #[test]
    fn the_boot_id_is_constant() {
        assert_eq!(RealHost.boot_id().unwrap(), RealHost.boot_id().unwrap());
    }

    #[test]
    fn names_that_are_no_interface_are_refused() {
        for bad in ["", "..", "a/b", "abcdefghijklmnop", "a b"] {
            assert!(matches!(RealHost.is_bridge(bad), Err(HostError::InterfaceName(_))), "{bad:?}");
        }
        assert!(!RealHost.is_bridge("lo").unwrap());
        let vif = VifId::of_backend("backend/vif/999/0").unwrap();
        RealHost.remove_port("vif999.0", vif).unwrap();
        // An interface that no backend made.
        assert!(!is_of("lo", vif).unwrap() && !RealHost.has_interface(vif).unwrap());
        RealHost.remove_port("lo", vif).unwrap();
        assert!(RealHost.move_port("lo", vif, "none").is_err());
        assert!(interface_index("lo").unwrap() > 0);
    }
}
