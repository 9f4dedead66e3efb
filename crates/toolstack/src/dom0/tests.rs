//! Behaviour with disks that the real and the simulated host share.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use linux_loop::LoopError;

use super::{BlockNumber, DiskAccess, DiskId, FileKind, HostDevices, HostError, HostLoop, RealHost, SimHost};

/// A tag that is unique to a test.
fn tag(case: &str) -> String {
    format!("outrigger-test/{case}-{}", std::process::id())
}

/// Files in a folder, under several names.
struct Names {
    folder: PathBuf,
}

impl Names {
    const FILE: &str = "a.img";
    const SAME: [&str; 5] = ["link.img", "second-link.img", "hard.img", "./a.img", "inner/../a.img"];

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn real() -> (tempfile::TempDir, Self) {
        let folder = tempfile::tempdir().unwrap();
        let names = Self { folder: folder.path().canonicalize().unwrap() };
        for name in [Self::FILE, "b.img"] {
            fs::write(names.path(name), [0; 1 << 16]).unwrap();
        }
        fs::create_dir(names.path("inner")).unwrap();
        std::os::unix::fs::symlink("a.img", names.path("link.img")).unwrap();
        std::os::unix::fs::symlink(names.path("link.img"), names.path("second-link.img")).unwrap();
        fs::hard_link(names.path(Self::FILE), names.path("hard.img")).unwrap();
        (folder, names)
    }

    fn simulated(host: &SimHost) -> Self {
        let names = Self { folder: "/srv".into() };
        for name in [Self::FILE, "b.img"] {
            host.put_file(names.path(name), &[0; 1 << 16]);
        }
        host.put_link("/srv/link.img", "a.img");
        host.put_link("/srv/second-link.img", "/srv/link.img");
        host.put_hard_link("/srv/hard.img", "/srv/a.img".as_ref());
        names
    }
}

fn check_names(host: &dyn HostDevices, names: &Names) {
    let at = |name: &str| host.disk_at(&names.path(name)).unwrap();
    let file = at(Names::FILE).unwrap();
    assert!(file.file.is_some() && file.block.is_none() && file.whole.is_none());
    for name in Names::SAME {
        assert_eq!(at(name), Some(file.clone()), "{name}");
        for access in [DiskAccess::ReadOnly, DiskAccess::Writable] {
            let open = host.open_disk(&names.path(name), access).unwrap();
            assert_eq!((open.id(), open.block_device()), (file.clone(), None), "{name}");
        }
        assert_eq!(host.file_kind(&names.path(name)).unwrap(), FileKind::Regular { bytes: 1 << 16 });
    }
    assert!(!at("b.img").unwrap().overlaps(&file));
    assert_eq!(at("none.img"), None);
    let missing = host.open_disk(&names.path("none.img"), DiskAccess::ReadOnly);
    assert!(matches!(missing, Err(HostError::File { .. })), "{missing:?}");
}

#[test]
fn a_file_has_one_identity_under_all_its_names() {
    let (_folder, names) = Names::real();
    check_names(&RealHost, &names);
    let host = SimHost::new();
    let names = Names::simulated(&host);
    check_names(&host, &names);
}

/// Attaches a file, reads how the host lists it, and detaches it in any case.
fn check_loops(host: &dyn HostDevices, names: &Names, replace: impl FnOnce(&Path)) {
    let (path, tag) = (names.path(Names::FILE), tag("loops"));
    let disk = host.open_disk(&path, DiskAccess::Writable).unwrap();
    let file = disk.id();
    // The opened file is attached, although its name leads to another file by then.
    replace(&path);
    let attachment = match host.attach_loop(&disk, false, &tag) {
        Ok(attachment) => attachment,
        // Without root, or without the module, there is nothing to test.
        Err(error) => {
            return assert!(matches!(error, HostError::Loop(LoopError::NoFree { .. })), "{error}");
        }
    };
    let number = BlockNumber { major: attachment.device.major, minor: attachment.device.minor };
    let (users, at) = (host.disk_users(), host.disk_at(&attachment.device.path));
    let opened = host.open_disk(&attachment.device.path, DiskAccess::Writable);
    let again = host.open_disk(&attachment.device.path, DiskAccess::Writable);
    let reader = host.open_disk(&attachment.device.path, DiskAccess::ReadOnly);
    let opened = opened.map(|disk| (disk.id(), disk.block_device()));
    let later = host.open_disk(&attachment.device.path, DiskAccess::Writable).map(drop);
    host.detach_loop(&attachment).unwrap();

    let users = users.unwrap();
    let entry: &HostLoop = users.loops.iter().find(|entry| entry.tag == tag).expect("it is listed");
    assert_eq!((entry.number(), entry.backing.clone(), entry.read_only), (number, file.clone(), false));
    let over = DiskId { file: file.file, ..DiskId::of_block(number, None) };
    assert_eq!(at.unwrap(), Some(over.clone()));
    assert_eq!(users.with_backing(host.block_disk(number).unwrap()), over);
    assert_eq!(opened.unwrap(), (over.clone(), Some(attachment.device.clone())));
    // One exclusive writer; readers are not affected.
    assert!(matches!(again, Err(HostError::DiskBusy { id, .. }) if *id == over));
    assert_eq!(reader.unwrap().id(), over);
    later.unwrap();
    assert_ne!(host.disk_at(&path).unwrap(), Some(file));
}

#[test]
fn a_loop_device_is_listed_with_the_file_that_was_opened() {
    let (_folder, names) = Names::real();
    check_loops(&RealHost, &names, |path| fs::rename(names.path("b.img"), path).unwrap());
    let host = SimHost::new();
    let names = Names::simulated(&host);
    check_loops(&host, &names, |path| {
        host.remove_file(path).unwrap();
        host.put_file(path, b"another");
    });
}

/// A disk with two partitions, one of them mounted.
struct Parts {
    whole: PathBuf,
    parts: [PathBuf; 2],
    at: String,
}

fn check_partitions(host: &dyn HostDevices, disk: &Parts, mount: impl FnOnce(), unmount: impl FnOnce()) {
    let at = |path: &Path| host.disk_at(path).unwrap().expect("there is a disk");
    let (whole, [one, two]) = (at(&disk.whole), [at(&disk.parts[0]), at(&disk.parts[1])]);
    assert_eq!((whole.whole, one.whole, two.whole), (None, whole.block, whole.block));
    assert!(whole.overlaps(&one) && two.overlaps(&whole) && !one.overlaps(&two));
    let busy =
        |path: &Path| matches!(host.open_disk(path, DiskAccess::Writable), Err(HostError::DiskBusy { .. }));
    let all = [disk.whole.as_path(), &disk.parts[0], &disk.parts[1]];
    assert_eq!(all.map(&busy), [false; 3]);
    let open = host.open_disk(&disk.parts[0], DiskAccess::Writable).unwrap();
    assert_eq!(open.id(), one);
    assert_eq!(all.map(&busy), [true, true, false]);
    drop(open);
    assert_eq!(all.map(&busy), [false; 3]);
    mount();
    let (busy, readers) = (all.map(busy), all.map(|path| host.open_disk(path, DiskAccess::ReadOnly).is_ok()));
    let users = host.disk_users();
    unmount();
    assert_eq!((busy, readers), ([true, true, false], [true; 3]));
    let mounts = users.unwrap().mounts;
    let mounted: Vec<_> = mounts.iter().filter(|mount| mount.at == disk.at).collect();
    assert!(
        !mounted.is_empty() && mounted.iter().all(|mount| mount.id == one && mount.read_only),
        "{mounted:?}"
    );
}

#[test]
fn a_partition_is_identified_with_its_disk_and_a_mount_with_its_device() {
    let host = SimHost::new();
    host.put_block("/dev/sda", 8, 0);
    let parts = ["/dev/sda1", "/dev/sda2"].map(PathBuf::from);
    host.put_partition(&parts[0], (8, 1), (8, 0));
    host.put_partition(&parts[1], (8, 2), (8, 0));
    let disk = Parts { whole: "/dev/sda".into(), parts, at: "/mnt".to_owned() };
    let mount = || host.put_mount("/dev/sda1", "/mnt", true);
    check_partitions(&host, &disk, mount, || ());
    with_real_partitions(|disk| {
        let (device, at) = (&disk.parts[0], &disk.at);
        let run = |program: &str, words: &[&str]| {
            assert!(Command::new(program).args(words).status().unwrap().success(), "{program} {words:?}");
        };
        run("mkfs.ext4", &["-q", &device.display().to_string()]);
        let mount = || run("mount", &["-r", &device.display().to_string(), at]);
        check_partitions(&RealHost, disk, mount, || run("umount", &[at]));
    });
}

/// Runs a check on a loop device with two partitions, if the rights and programs for it are available.
fn with_real_partitions(check: impl FnOnce(&Parts) + std::panic::UnwindSafe) {
    let has =
        |program: &str| Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success());
    // A process is owned by the user that runs it.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root || !["losetup", "addpart", "mkfs.ext4", "umount"].into_iter().all(has) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, at) = (folder.path().join("disk.img"), folder.path().join("mnt"));
    fs::create_dir(&at).unwrap();
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let attach = Command::new("losetup").args(["--show", "-Pf"]).arg(&image).output().unwrap();
    if !attach.status.success() {
        return;
    }
    let whole = PathBuf::from(String::from_utf8(attach.stdout).unwrap().trim());
    // Added directly, so that the kernel needs no support for partition tables.
    for (number, start) in [("1", "2048"), ("2", "10240")] {
        let _ = Command::new("addpart").arg(&whole).args([number, start, "8192"]).status();
    }
    let parts = [1, 2].map(|number| PathBuf::from(format!("{}p{number}", whole.display())));
    let disk = Parts { whole, parts, at: at.display().to_string() };
    // Without partitions of loop devices in the kernel, there is nothing to check.
    let outcome =
        disk.parts.iter().all(|part| part.exists()).then(|| std::panic::catch_unwind(|| check(&disk)));
    let detached = Command::new("losetup").arg("-d").arg(&disk.whole).status();
    if let Some(Err(panic)) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert!(detached.unwrap().success());
}

#[test]
fn line_from_elsewhere_cannot_look_like_another() {
    let line = "a\u{202e}b\u{200b}c\x1b[2J\tü\u{feff} \n".as_bytes();
    assert_eq!(super::harmless_line(line), "abc[2J\tü");
}
