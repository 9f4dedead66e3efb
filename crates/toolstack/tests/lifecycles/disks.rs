//! Which guest may use which disk: under any name, with any other user, and in any order.

use config::{Access, DiskSource};
use toolstack::host::HostDevices;
use toolstack::{Cause, CreateOptions, Detach, DiskUser, Error, Guest, GuestId, Phase, Toolstack, Turn};
use xen::{DomainKind, DomainSpec, Hypervisor, ShutdownReason};
use xen_types::DomId;
use xenstore::{Store as _, XsPath};

use crate::change::{disk, vdev, with_guest};
use crate::world::{Stubs, World};

fn config(name: &str, disks: &[&str]) -> config::GuestConfig {
    let disks: Vec<_> = disks.iter().map(|disk| format!("\"{disk}\"")).collect();
    let text = format!("type=\"hvm\"\nname=\"{name}\"\nmemory=64\ndisk=[{}]", disks.join(", "));
    let loaded = config::load_str(name, &text);
    assert_eq!(loaded.errors(), 0, "{}", loaded.render(false));
    loaded.config.unwrap()
}

fn create(world: &World, name: &str, disks: &[&str]) -> Result<Guest, Error> {
    world.toolstack.create(&config(name, disks), CreateOptions::default(), &mut |_| ())
}

/// The user of the disk, which the error names.
fn user(result: Result<Guest, Error>) -> DiskUser {
    let mut cause = match result {
        Err(Error::Step(failure)) => {
            assert!(failure.undo.is_empty(), "{failure:?}");
            failure.cause
        }
        Err(Error::NotRestarted { cause, .. }) => cause,
        other => panic!("not refused: {other:?}"),
    };
    while let Cause::Device { source, .. } = cause {
        cause = *source;
    }
    match cause {
        Cause::DiskInUse { by, .. } => by,
        other => panic!("refused for another reason: {}", other.chain()),
    }
}

fn is_guest(user: &DiskUser, wanted: &Guest) -> bool {
    *user == DiskUser::Guest { name: wanted.name.clone(), domid: Some(wanted.domid), phase: Phase::Running }
}

/// Another toolstack's guest with one disk of some backend.
fn stranger(world: &World, kind: &str, disk: &[(&str, &str)]) -> DomId {
    let domains = world.hypervisor.list_domains().unwrap().len();
    let uuid = [u8::try_from(domains).unwrap() + 100; 16];
    let domid = world.hypervisor.create_domain(&DomainSpec::new(DomainKind::Pv, uuid, 1)).unwrap();
    world.hypervisor.unpause_domain(domid).unwrap();
    write(world, &format!("/local/domain/{domid}/name"), "stranger");
    for (key, value) in disk {
        write(world, &format!("/local/domain/0/backend/{kind}/{domid}/51712/{key}"), value);
    }
    domid
}

fn write(world: &World, path: &str, value: &str) {
    world.server.connect(DomId::DOM0).write(&XsPath::new(path).unwrap(), value.as_bytes()).unwrap();
}

fn is_stranger(user: &DiskUser, domid: DomId) -> bool {
    *user == DiskUser::Guest { name: "stranger".to_owned(), domid: Some(domid), phase: Phase::Running }
}

#[test]
fn a_device_under_another_name_is_the_same_device() {
    let world = World::new(Stubs::Work);
    world.host.put_block("/dev/dm-7", 253, 7);
    let first = world.create().unwrap(); // has /dev/vg/b (253:7), rw
    assert!(is_guest(&user(create(&world, "other", &["/dev/dm-7,raw,xvda,rw"])), &first));
}

#[test]
fn a_disk_is_the_same_under_all_its_names() {
    let world = World::new(Stubs::Work);
    let first = world.create().unwrap();
    world.host.put_link("/srv/link.img", "a.img");
    world.host.put_link("/images", "/srv/deep/../");
    world.host.put_hard_link("/srv/hard.img", "/srv/a.img".as_ref());
    world.host.put_link("/dev/mapper/b", "../vg/b");
    let minor = world.host.state().loops.iter().find(|(_, (file, ..))| file.ends_with("a.img")).map(|l| *l.0);
    let own_loop = format!("/dev/loop{}", minor.unwrap());
    for path in [
        "/srv/link.img",
        "/srv/hard.img",
        "/srv//a.img",
        "/srv/../srv/./a.img",
        "/images/link.img",
        "/dev/mapper/b",
        &own_loop,
    ] {
        for access in ["rw", "ro"] {
            let refused = user(create(&world, "other", &[&format!("{path},raw,xvda,{access}")]));
            assert!(is_guest(&refused, &first), "{path} {access}: {refused:?}");
        }
    }
    create(&world, "other", &["/srv/extra.img,raw,xvda,rw"]).unwrap();
}

#[test]
fn readers_share_and_a_writer_is_exclusive() {
    let world = World::new(Stubs::Work);
    let reading = ["/srv/a.img,raw,xvda,ro", "/dev/vg/b,raw,xvdb,ro"];
    let first = create(&world, "first", &reading).unwrap();
    let second = create(&world, "second", &reading).unwrap();
    for disk in ["/srv/a.img,raw,xvda,rw", "/dev/vg/b,raw,xvdb,rw"] {
        let refused = user(create(&world, "third", &[disk]));
        assert!(is_guest(&refused, &first) || is_guest(&refused, &second), "{disk}: {refused:?}");
    }
    for guest in [first, second] {
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    }
    let third = create(&world, "third", &["/srv/a.img,raw,xvda,rw", "/dev/vg/b,raw,xvdb,rw"]).unwrap();
    world.toolstack.destroy(third.id(), &mut |_| ()).unwrap();
    world.check_clean("readers and a writer");
}

#[test]
fn one_disk_twice_in_one_configuration_is_refused_if_it_is_writable() {
    let world = World::new(Stubs::Work);
    world.host.put_link("/srv/link.img", "a.img");
    world.host.put_block("/dev/dm-7", 253, 7);
    let same = |vdev_name: &str| DiskUser::SameGuest { name: "x".to_owned(), vdev: vdev(vdev_name) };
    for disks in [
        ["/srv/a.img,raw,xvda,rw", "/srv/link.img,raw,xvdb,ro"],
        ["/srv/a.img,raw,xvda,ro", "/srv/link.img,raw,xvdb,rw"],
        ["/dev/vg/b,raw,xvda,rw", "/dev/dm-7,raw,xvdb,rw"],
        ["/dev/vg/b,raw,xvda,ro", "/dev/dm-7,raw,xvdb,rw"],
    ] {
        assert_eq!(user(create(&world, "x", &disks)), same("xvda"), "{disks:?}");
    }
    world.check_clean("one disk twice");
    create(&world, "x", &["/srv/a.img,raw,xvda,ro", "/srv/link.img,raw,xvdb,ro"]).unwrap();
}

#[test]
fn partitions_conflict_with_their_disk_and_not_with_each_other() {
    let world = World::new(Stubs::Work);
    world.host.put_block("/dev/sda", 8, 0);
    world.host.put_partition("/dev/sda1", (8, 1), (8, 0));
    world.host.put_partition("/dev/sda2", (8, 2), (8, 0));
    let one = create(&world, "one", &["/dev/sda1,raw,xvda,rw"]).unwrap();
    assert!(is_guest(&user(create(&world, "all", &["/dev/sda,raw,xvda,ro"])), &one));
    let two = create(&world, "two", &["/dev/sda2,raw,xvda,rw"]).unwrap();
    world.toolstack.destroy(one.id(), &mut |_| ()).unwrap();
    world.host.put_mount("/dev/sda1", "/boot", false);
    let mounted = DiskUser::Mounted { at: "/boot".to_owned() };
    world.toolstack.destroy(two.id(), &mut |_| ()).unwrap();
    assert_eq!(user(create(&world, "all", &["/dev/sda,raw,xvda,ro"])), mounted);
}

#[test]
fn disk_mounted_in_dom0_is_refused_unless_both_only_read() {
    let world = World::new(Stubs::Work);
    let mounted = DiskUser::Mounted { at: "/mnt".to_owned() };
    let attempt = |read_only, access: &str| {
        let world = World::new(Stubs::Work);
        world.host.put_mount("/dev/vg/b", "/mnt", read_only);
        create(&world, "x", &[&format!("/dev/vg/b,raw,xvda,{access}")])
    };
    assert_eq!(user(attempt(false, "rw")), mounted);
    assert_eq!(user(attempt(false, "ro")), mounted);
    assert_eq!(user(attempt(true, "rw")), mounted);
    attempt(true, "ro").unwrap();
    // A file that is mounted through a loop device.
    let minor = world.host.put_loop("/srv/a.img".as_ref(), false, "");
    world.host.put_mount(format!("/dev/loop{minor}"), "/mnt", false);
    assert_eq!(user(create(&world, "x", &["/srv/a.img,raw,xvda,ro"])), mounted);
}

#[test]
fn disk_claimed_by_another_program_of_dom0_is_refused_to_a_writer() {
    let world = World::new(Stubs::Work);
    world.host.put_claim("/dev/vg/b");
    let error = create(&world, "x", &["/dev/vg/b,raw,xvda,rw"]).unwrap_err();
    assert!(error.report().contains("/dev/vg/b is in use in dom0"), "{}", error.report());
    world.check_clean("a claimed device");
    // As with Xen's own script: it is not known whether the program writes.
    create(&world, "x", &["/dev/vg/b,raw,xvda,ro"]).unwrap();
}

#[test]
fn guests_of_other_toolstacks_count_by_their_backends() {
    let check = |disk: &[(&str, &str)], kind: &str, ours: &str, refused: bool| {
        let world = World::new(Stubs::Work);
        world.host.put_loop("/srv/a.img".as_ref(), false, "");
        let domid = stranger(&world, kind, disk);
        let created = create(&world, "x", &[ours]);
        match refused {
            true => assert!(is_stranger(&user(created), domid), "{disk:?} {ours}"),
            false => drop(created.unwrap_or_else(|error| panic!("{disk:?} {ours}: {}", error.report()))),
        }
    };
    let (write, read) = ("/dev/vg/b,raw,xvda,rw", "/dev/vg/b,raw,xvda,ro");
    for (mode, reader_refused) in [("w", true), ("r", false), ("w!", true), ("", true)] {
        let disk = [("physical-device", "fd:7"), ("mode", mode)];
        check(&disk, "vbd", write, true);
        check(&disk, "vbd", read, reader_refused);
    }
    check(&[("physical-device", "fd:8"), ("mode", "w")], "vbd", write, false);
    // Its script has not run yet.
    check(&[("params", "/dev/vg/b"), ("mode", "w")], "vbd", read, true);
    // An image behind the loop device of a script.
    check(&[("physical-device", "7:0"), ("mode", "w")], "vbd", "/srv/a.img,raw,xvda,ro", true);
    check(&[("physical-device", "7:0"), ("mode", "r")], "vbd", "/srv/a.img,raw,xvda,ro", false);
    for (params, refused) in [("aio:/srv/extra.img", true), ("qcow2:/srv/old.iso", false), ("aio:", false)] {
        check(&[("params", params), ("mode", "w")], "qdisk", "/srv/extra.img,raw,xvda,ro", refused);
    }
    for hostile in ["", ":", "fd", "fd:-7", "+fd:7", "fd:7:", "\u{1}", &"f".repeat(4000)] {
        check(&[("physical-device", hostile), ("params", hostile), ("mode", "w")], "vbd", write, false);
    }
}

#[test]
fn guests_that_are_gone_or_have_ended_do_not_count() {
    let disk = [("physical-device", "fd:7"), ("mode", "w")];
    let ours = ["/dev/vg/b,raw,xvda,rw"];
    for (reason, free) in [
        (ShutdownReason::PowerOff, true),
        (ShutdownReason::Crash, true),
        // It is being saved, and may go on.
        (ShutdownReason::Suspend, false),
    ] {
        let world = World::new(Stubs::Work);
        let guest = stranger(&world, "vbd", &[]);
        let stub = stranger(&world, "vbd", &disk);
        write(&world, &format!("/local/domain/{stub}/target"), &guest.to_string());
        assert!(is_stranger(&user(create(&world, "x", &ours)), guest), "a stubdomain's disk is its guest's");
        world.hypervisor.guest_shuts_down(guest, reason);
        let created = create(&world, "x", &ours);
        assert_eq!(created.is_ok(), free, "{reason:?}: {created:?}");
    }
    let world = World::new(Stubs::Work);
    let gone = stranger(&world, "vbd", &disk);
    world.hypervisor.destroy_domain(gone).unwrap();
    create(&world, "x", &ours).unwrap();
}

#[test]
fn loop_devices_of_others_count_and_those_of_guests_that_are_gone_do_not() {
    let attempt = |read_only, tag: &str, access: &str| {
        let world = World::new(Stubs::Work);
        world.host.put_loop("/srv/a.img".as_ref(), read_only, tag);
        create(&world, "x", &[&format!("/srv/a.img,raw,xvda,{access}")])
    };
    let stranger = DiskUser::Loop { device: "/dev/loop0".into(), file: "/srv/a.img".to_owned() };
    for tag in ["", "/srv/a.img", "outrigger/nobody"] {
        assert_eq!(user(attempt(false, tag, "ro")), stranger, "{tag}");
        assert_eq!(user(attempt(true, tag, "rw")), stranger, "{tag}");
        attempt(true, tag, "ro").unwrap();
    }
    attempt(false, "outrigger/6a0b4d5e-0000-4000-8000-000000000001", "rw").unwrap();
    // The disk's own loop device is no other user of it.
    let world = World::new(Stubs::Work);
    world.host.put_loop("/srv/a.img".as_ref(), false, "");
    create(&world, "x", &["/dev/loop0,raw,xvda,rw"]).unwrap();
}

#[test]
fn two_creates_at_once_give_the_disk_to_one() {
    for round in 0..40 {
        let world = World::new(Stubs::Work);
        world.host.put_block("/dev/dm-7", 253, 7);
        world.host.put_link("/srv/link.img", "a.img");
        let names = match round % 2 {
            0 => ["/dev/vg/b", "/dev/dm-7"],
            _ => ["/srv/a.img", "/srv/link.img"],
        };
        let start = std::sync::Barrier::new(2);
        let outcomes = std::thread::scope(|scope| {
            let threads = [("one", names[0]), ("two", names[1])].map(|(name, path)| {
                let (world, start) = (&world, &start);
                scope.spawn(move || {
                    let disk = format!("{path},raw,xvda,rw");
                    start.wait();
                    create(world, name, &[&disk])
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let (mut won, mut lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1), "round {round}: {won:?} {lost:?}");
        let (winner, loser) = (won.remove(0).unwrap(), user(lost.remove(0)));
        // It may have been refused at any point of the other's creation.
        assert!(matches!(&loser, DiskUser::Guest { name, .. } if *name == winner.name), "{loser:?}");
        world.toolstack.destroy(winner.id(), &mut |_| ()).unwrap();
        world.check_clean(&format!("round {round}"));
    }
}

#[test]
fn a_guest_that_is_being_created_has_its_disks_before_it_has_a_domain() {
    let world = World::new(Stubs::Work);
    let mut other = None;
    let first = world.toolstack.create(
        &config("one", &["/dev/vg/b,raw,xvda,rw"]),
        CreateOptions::default(),
        &mut |event| {
            if let toolstack::Event::StepFinished { id: "write-record", .. } = event {
                other = Some(create(&world, "two", &["/dev/vg/b,raw,xvda,ro"]));
            }
        },
    );
    let by = user(other.unwrap());
    assert_eq!(by, DiskUser::Guest { name: "one".to_owned(), domid: None, phase: Phase::Creating });
    // The name is taken at the same time.
    first.unwrap();
}

#[test]
fn a_name_is_taken_from_the_moment_that_it_is_recorded() {
    let world = World::new(Stubs::Work);
    let mut other = None;
    let first = world.toolstack.create(&config("one", &[]), CreateOptions::default(), &mut |event| {
        if let toolstack::Event::StepStarted { id: "write-record", .. } = event
            && other.is_none()
        {
            other = Some(create(&world, "one", &[]).map(drop));
        }
    });
    other.unwrap().unwrap();
    let Err(Error::Step(failure)) = first else { panic!("{first:?}") };
    assert!(matches!(failure.cause, Cause::NameTaken { .. }), "{failure:?}");
}

#[test]
fn a_preserved_guests_disks_are_free() {
    for reason in [ShutdownReason::Crash, ShutdownReason::Reboot, ShutdownReason::SoftReset] {
        let world = World::new(Stubs::Work);
        let old = world.create().unwrap();
        world.hypervisor.guest_shuts_down(old.domid, reason);
        world.toolstack.preserve_as(old.id(), "hello-1").unwrap();
        let new = world.create().unwrap();
        assert!(is_guest(&user(create(&world, "x", &["/dev/vg/b,raw,xvda,ro"])), &new));
        for guest in [old, new] {
            world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        }
        world.check_clean("a preserved guest and its successor");
    }
}

#[test]
fn a_restarted_guest_gets_its_disks_back_unless_they_are_in_use() {
    let world = World::new(Stubs::Work);
    world.host.put_block("/dev/dm-7", 253, 7);
    let guest = world.create().unwrap();
    let guest = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
    // A guest of another toolstack gets the disk in between, without a check.
    let domid = stranger(&world, "vbd", &[("physical-device", "fd:7"), ("mode", "r")]);
    assert!(is_stranger(&user(world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ())), domid));
    world.hypervisor.destroy_domain(domid).unwrap();
    world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
}

#[test]
fn a_disk_that_another_guest_uses_is_not_attached() {
    let (world, guest) = with_guest();
    let other = create(&world, "other", &["/srv/extra.img,raw,xvda,ro"]).unwrap();
    let xl = stranger(&world, "vbd", &[("physical-device", "fd:9"), ("mode", "w")]);
    world.host.put_block("/dev/c", 253, 9);
    let before = world.picture();
    let attach = |text: &str| world.toolstack.attach_disk(guest.id(), &disk(text), &mut |_| ());
    assert!(is_guest(&user(attach("/srv/extra.img,raw,xvdc,rw")), &other));
    assert!(is_stranger(&user(attach("/dev/c,raw,xvdc,ro")), xl));
    world.host.put_link("/srv/link.img", "a.img");
    let own = DiskUser::SameGuest { name: "hello".to_owned(), vdev: vdev("hda") };
    assert_eq!(user(attach("/srv/link.img,raw,xvdc,ro")), own);
    world.picture().check_same(&before, "refused");
    attach("/srv/extra.img,raw,xvdc,ro").unwrap();
    // From now on it is recorded, and once detached it is free.
    world.toolstack.destroy(other.id(), &mut |_| ()).unwrap();
    let hello = world.toolstack.info(guest.id()).unwrap().guest;
    assert!(is_guest(&user(create(&world, "third", &["/srv/extra.img,raw,xvda,rw"])), &hello));
    world.toolstack.detach_disk(guest.id(), vdev("xvdc"), Detach::Force, &mut |_| ()).unwrap();
    create(&world, "third", &["/srv/extra.img,raw,xvda,rw"]).unwrap();
}

#[test]
fn the_disks_of_a_guest_from_an_earlier_release_are_compared_too() {
    let (world, guest) = with_guest();
    let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
    let text = world.host.read_file(path.as_ref(), 1 << 20).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert!(record.as_object_mut().unwrap().remove("disks").is_some());
    world.host.put_file(&path, record.to_string().as_bytes());
    let own = DiskUser::SameGuest { name: "hello".to_owned(), vdev: vdev("hda") };
    let attached = world.toolstack.attach_disk(guest.id(), &disk("/srv/a.img,raw,xvdc,ro"), &mut |_| ());
    assert_eq!(user(attached), own);
    for disk in ["/srv/a.img,raw,xvda,ro", "/dev/vg/b,raw,xvda,rw"] {
        assert!(is_guest(&user(create(&world, "other", &[disk])), &guest), "{disk}");
    }
}

#[test]
fn the_disks_of_a_guest_whose_record_cannot_be_read_are_not_free() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
    world.host.put_file(&path, b"{");
    for disk in ["/srv/a.img,raw,xvda,rw", "/dev/vg/b,raw,xvda,ro"] {
        assert!(is_guest(&user(create(&world, "other", &[disk])), &guest), "{disk}");
    }
}

fn insert(toolstack: &Toolstack, id: GuestId, path: &str) -> Result<Guest, Error> {
    let disc = DiskSource::Path(path.to_owned());
    toolstack.change_medium(id, vdev("hdc"), &disc, Detach::Ask, &mut |_| ())
}

#[test]
fn a_disc_with_a_writer_is_not_inserted_and_an_ejected_one_is_free() {
    let (world, guest) = with_guest();
    let writer = create(&world, "writer", &["/srv/new.iso,raw,xvda,rw"]).unwrap();
    let before = world.picture();
    assert!(is_guest(&user(insert(&world.toolstack, guest.id(), "/srv/new.iso")), &writer));
    world.picture().check_same(&before, "refused");
    world.toolstack.destroy(writer.id(), &mut |_| ()).unwrap();
    insert(&world.toolstack, guest.id(), "/srv/new.iso").unwrap();
    let hello = world.toolstack.info(guest.id()).unwrap().guest;
    assert!(is_guest(&user(create(&world, "writer", &["/srv/new.iso,raw,xvda,rw"])), &hello));
    create(&world, "writer", &["/srv/old.iso,raw,xvda,rw"]).unwrap();
}

#[test]
fn the_checked_disk_is_attached_even_if_its_name_was_reused() {
    let world = World::new(Stubs::Work);
    world.host.put_link("/srv/link.img", "/srv/extra.img");
    let config = config("x", &["/srv/link.img,raw,hda,rw"]);
    assert_eq!(config.disks[0].access, Access::ReadWrite);
    let created = world.toolstack.create(&config, CreateOptions::default(), &mut |event| {
        if let toolstack::Event::StepFinished { id: "write-record", .. } = event {
            world.host.put_link("/srv/link.img", "/srv/a.img");
        }
    });
    created.unwrap();
    let attached: Vec<_> = world.host.state().loops.values().map(|(file, ..)| file.clone()).collect();
    assert_eq!(attached, [std::path::PathBuf::from("/srv/extra.img")]);
    create(&world, "y", &["/srv/a.img,raw,hda,rw"]).unwrap();
}

#[test]
fn loop_devices_on_one_disk_have_one_writer() {
    // The disk of a loop device, and another disk, which is on loop 1 if it is a loop device.
    for (below, other, loop_on) in [
        ("/dev/vg/b", "/dev/loop1", "/dev/vg/b"),
        ("/dev/sda", "/dev/sda1", ""),
        ("/dev/sda1", "/dev/sda", ""),
        ("/dev/sda1", "/dev/loop1", "/dev/sda"),
        ("/srv/a.img", "/dev/loop1", "/dev/loop0"),
    ] {
        let world = World::new(Stubs::Work);
        world.host.put_block("/dev/sda", 8, 0);
        world.host.put_partition("/dev/sda1", (8, 1), (8, 0));
        world.host.put_loop(below.as_ref(), false, "");
        let first = create(&world, "one", &["/dev/loop0,raw,xvda,rw"]).unwrap();
        if !loop_on.is_empty() {
            world.host.put_loop(loop_on.as_ref(), false, "");
        }
        let second = user(create(&world, "two", &[&format!("{other},raw,xvda,rw")]));
        assert!(is_guest(&second, &first), "{below} {other}: {second:?}");
    }
}

/// `mount -o loop x.iso /mnt` makes a loop device that could be written, and mounts it read-only.
#[test]
fn an_iso_that_dom0_has_mounted_read_only_can_be_read_by_a_guest() {
    let world = World::new(Stubs::Work);
    let minor = world.host.put_loop("/srv/old.iso".as_ref(), false, "");
    world.host.put_mount(format!("/dev/loop{minor}"), "/mnt", true);
    if let Err(error) = create(&world, "x", &["/srv/old.iso,raw,hdc,cdrom,ro"]) {
        panic!("{}", error.report());
    }
}

/// Between its shutdown for a reboot and its restart nobody else gets its disk.
#[test]
fn a_guest_that_reboots_keeps_its_disks_against_others() {
    use ShutdownReason::{PowerOff, Reboot, SoftReset, Watchdog};
    for (reason, kept) in [(Reboot, true), (SoftReset, true), (PowerOff, false), (Watchdog, false)] {
        let world = World::new(Stubs::Work);
        let first = create(&world, "one", &["/dev/vg/b,raw,xvda,rw"]).unwrap();
        world.hypervisor.guest_shuts_down(first.domid, reason);
        // Before its daemon has restarted it.
        let second = create(&world, "two", &["/dev/vg/b,raw,xvda,rw"]);
        assert_eq!(second.is_err(), kept, "{reason:?}");
        if kept {
            assert!(is_guest(&user(second), &first), "{reason:?}");
            world.toolstack.restart(first.id(), Turn::default(), &mut |_| ()).unwrap();
        }
    }
}

#[test]
fn an_image_that_cannot_be_looked_at_is_compared_by_its_path() {
    let world = World::new(Stubs::Work);
    world.host.put_failure("/srv/a.img");
    let domid = stranger(&world, "qdisk", &[("params", "aio:/srv/a.img"), ("mode", "w")]);
    assert!(is_stranger(&user(create(&world, "x", &["/srv/a.img,raw,xvda,ro"])), domid));
    create(&world, "y", &["/srv/extra.img,raw,xvda,rw"]).unwrap();
}
