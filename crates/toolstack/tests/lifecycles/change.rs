//! Changes of a running guest, with a failure at every point: the guest is as before or as wanted, and when it is
//! destroyed nothing is left.

use config::{CpuSet, Disk, DiskSource, Nic, Vdev};
use toolstack::operation::{Faults, Side};
use toolstack::{Cause, Detach, Error, Event, Guest, GuestId, Pins, Toolstack};
use xen_types::{DomId, KiB};

use crate::world::{Drivers, Picture, Stubs, World};

pub(crate) type Run = fn(&Toolstack, GuestId, &mut dyn FnMut(Event)) -> Result<Guest, Error>;

/// One kind of change.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) name: &'static str,
    pub(crate) steps: fn() -> Vec<&'static str>,
    pub(crate) run: Run,
    /// The first step from which there is only forward.
    forward_from: Option<&'static str>,
    /// What the guest is like.
    pub(crate) guest: fn() -> (World, Guest),
}

pub(crate) const CHANGES: [Change; 18] = [
    Change {
        name: "attach an image",
        steps: Toolstack::attach_disk_steps,
        run: |ts, id, events| ts.attach_disk(id, &disk("/srv/extra.img,raw,xvdc,rw"), events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "attach what a script makes",
        steps: Toolstack::attach_disk_steps,
        run: |ts, id, events| ts.attach_disk(id, &disk("script=block-x,vdev=xvdf,target=v:2"), events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "detach an image",
        steps: Toolstack::detach_disk_steps,
        run: |ts, id, events| ts.detach_disk(id, vdev("hda"), Detach::Ask, events),
        forward_from: Some("unplug-emulated"),
        guest: with_guest,
    },
    Change {
        name: "detach what a script made",
        steps: Toolstack::detach_disk_steps,
        run: |ts, id, events| ts.detach_disk(id, vdev("xvde"), Detach::Ask, events),
        forward_from: Some("unplug-emulated"),
        guest: with_guest,
    },
    Change {
        name: "attach a network interface",
        steps: Toolstack::attach_nic_steps,
        run: |ts, id, events| ts.attach_nic(id, &nic("bridge=xenbr1"), events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "detach a network interface",
        steps: Toolstack::detach_nic_steps,
        run: |ts, id, events| ts.detach_nic(id, 0, Detach::Ask, events),
        forward_from: Some("remove-device"),
        guest: with_guest,
    },
    Change {
        name: "move a network interface",
        steps: Toolstack::set_bridge_steps,
        run: |ts, id, events| ts.set_bridge(id, 0, "xenbr1", events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "change the disc",
        steps: Toolstack::change_medium_steps,
        run: |ts, id, events| ts.change_medium(id, vdev("hdc"), &file("/srv/new.iso"), Detach::Ask, events),
        forward_from: Some("detach-image"),
        guest: with_guest,
    },
    Change {
        name: "take the disc out",
        steps: Toolstack::change_medium_steps,
        run: |ts, id, events| ts.change_medium(id, vdev("hdc"), &DiskSource::Empty, Detach::Ask, events),
        forward_from: Some("detach-image"),
        guest: with_guest,
    },
    Change {
        name: "give an empty drive a disc",
        steps: Toolstack::change_medium_steps,
        run: |ts, id, events| ts.change_medium(id, vdev("hdd"), &file("/srv/new.iso"), Detach::Ask, events),
        forward_from: Some("detach-image"),
        guest: with_guest,
    },
    Change {
        name: "change the memory",
        steps: Toolstack::set_memory_steps,
        run: |ts, id, events| ts.set_memory(id, KiB::from_mib(48), events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "change the processors",
        steps: Toolstack::set_vcpus_steps,
        run: |ts, id, events| ts.set_vcpus(id, 2, events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "limit the memory",
        steps: Toolstack::set_max_memory_steps,
        run: |ts, id, events| ts.set_max_memory(id, KiB::from_mib(64), events),
        forward_from: None,
        guest: with_room,
    },
    Change {
        name: "choose the processors",
        steps: Toolstack::pin_vcpus_steps,
        run: |ts, id, events| ts.pin_vcpus(id, pins(None, Some("1"), Some("0")), events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "rename",
        steps: Toolstack::rename_steps,
        run: |ts, id, events| ts.rename(id, "other", events),
        forward_from: None,
        guest: with_guest,
    },
    Change {
        name: "attach an emulated disk",
        steps: Toolstack::attach_disk_steps,
        run: |ts, id, events| ts.attach_disk(id, &disk("script=block-x,vdev=sda,target=v:3"), events),
        forward_from: None,
        guest: without_drivers,
    },
    Change {
        name: "detach an emulated disk",
        steps: Toolstack::detach_disk_steps,
        run: |ts, id, events| ts.detach_disk(id, vdev("sdb"), Detach::Force, events),
        forward_from: Some("unplug-emulated"),
        guest: without_drivers,
    },
    Change {
        name: "attach an emulated card",
        steps: Toolstack::attach_nic_steps,
        run: |ts, id, events| ts.attach_nic(id, &nic("bridge=xenbr1,model=e1000"), events),
        forward_from: None,
        guest: without_drivers,
    },
];

pub(crate) fn disk(text: &str) -> Disk {
    config::load_disk("disk", text).device.unwrap()
}

pub(crate) fn nic(text: &str) -> Nic {
    config::load_nic("vif", text, 2).device.unwrap()
}

fn file(path: &str) -> DiskSource {
    DiskSource::Path(path.to_owned())
}

pub(crate) fn vdev(text: &str) -> Vdev {
    config::device_name(text).unwrap()
}

/// A host with a guest whose PV drivers are at work.
pub(crate) fn with_guest() -> (World, Guest) {
    guest_with("")
}

/// The same with a guest that may be given more memory than it has.
fn with_room() -> (World, Guest) {
    guest_with("maxmem=128")
}

/// The same with more in its configuration.
pub(crate) fn guest_with(more: &str) -> (World, Guest) {
    let world = World::new(Stubs::Work);
    let drives = "disk += ['/srv/old.iso,raw,hdc,ro,cdrom', ',raw,hdd,ro,cdrom']";
    let text = format!("{}\nvcpus=1\nmaxvcpus=2\nvideoram=8\n{drives}\n{more}\n", crate::world::CONFIG);
    let config = config::load_str("hello.cfg", &text).config.unwrap();
    let guest = world.toolstack.create(&config, toolstack::CreateOptions::default(), &mut |_| ()).unwrap();
    world.qemu.add_tray("ide-5632", true);
    world.qemu.add_tray("ide-5696", false);
    world.give_drivers(guest.domid, Drivers::Polite);
    for device in ["vbd/768", "vbd/51728", "vif/0"] {
        world.wait_for_state(&format!("/local/domain/{}/device/{device}/state", guest.domid), b"4");
    }
    (world, guest)
}

/// The same with a guest that has no PV drivers, and an emulated disk that was plugged in.
pub(crate) fn without_drivers() -> (World, Guest) {
    let (world, guest) = with_guest();
    world.give_drivers(guest.domid, Drivers::None);
    world.toolstack.attach_disk(guest.id(), &disk("/srv/extra.img,raw,sdb,ro"), &mut |_| ()).unwrap();
    (world, guest)
}

/// What is to be chosen, as a person writes it.
pub(crate) fn pins(vcpu: Option<u32>, hard: Option<&str>, soft: Option<&str>) -> Pins {
    let set = |text: &str| text.parse::<CpuSet>().unwrap();
    Pins { vcpu, hard: hard.map(set), soft: soft.map(set) }
}

/// The host as it was before a change, and as it is after it.
pub(crate) fn pictures(change: &Change) -> (Picture, Picture) {
    let (world, guest) = (change.guest)();
    let before = world.picture();
    (change.run)(&world.toolstack, guest.id(), &mut |_| ()).unwrap();
    let after = world.picture();
    destroy(&world, &guest, change.name);
    (before, after)
}

pub(crate) fn destroy(world: &World, guest: &Guest, case: &str) {
    world.successor().destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean(case);
}

#[test]
fn each_change_is_made_and_leaves_nothing_when_the_guest_is_destroyed() {
    for change in CHANGES {
        let (before, after) = pictures(&change);
        assert_ne!(before, after, "{} changes nothing", change.name);
    }
}

#[test]
fn each_change_may_be_asked_for_twice() {
    for change in CHANGES {
        let (world, guest) = (change.guest)();
        (change.run)(&world.toolstack, guest.id(), &mut |_| ()).unwrap();
        let after = world.picture();
        let again = (change.run)(&world.toolstack, guest.id(), &mut |_| ());
        assert_eq!(again.is_err(), change.name.starts_with("detach"), "{}: {again:?}", change.name);
        world.picture().check_same(&after, &format!("{} twice", change.name));
        destroy(&world, &guest, change.name);
    }
}

#[test]
fn a_failure_at_any_step_leaves_the_guest_as_before() {
    for change in CHANGES {
        let (before, after) = pictures(&change);
        let steps = (change.steps)();
        let forward = change.forward_from.and_then(|name| steps.iter().position(|step| *step == name));
        for (index, step) in steps.iter().enumerate() {
            for side in [Side::Before, Side::After] {
                let case = format!("{}: a failure {side:?} \"{step}\"", change.name);
                let (world, guest) = (change.guest)();
                let faulty = world.toolstack.clone().with_faults(Faults::none().at(step, side));
                let result = (change.run)(&faulty, guest.id(), &mut |_| ());
                if forward.is_some_and(|forward| index >= forward) {
                    result.unwrap();
                    world.picture().check_same(&after, &case);
                } else {
                    let Err(Error::Step(failure)) = result else { panic!("{case}: {result:?}") };
                    assert!(failure.undo.is_empty(), "{case}: {failure:?}");
                    world.picture().check_same(&before, &case);
                }
                destroy(&world, &guest, &case);
            }
        }
    }
}

/// The changes are checked in so many tests, for machines with many processors.
const PARTS: usize = 4;

/// Runs each change with its `n`th call failing, for every `n`, and the change again.
fn check_calls(part: usize, fail: fn(&World, u64), heal: fn(&World), count: fn(&World) -> u64) {
    for (index, change) in CHANGES.into_iter().enumerate() {
        if index % PARTS != part {
            continue;
        }
        let (before, after) = pictures(&change);
        for n in 1.. {
            let case = format!("{}: failure of call {n}", change.name);
            let (world, guest) = (change.guest)();
            let calls = count(&world);
            fail(&world, n);
            let result = (change.run)(&world.toolstack, guest.id(), &mut |_| ());
            let done = count(&world) - calls < n;
            heal(&world);
            match result {
                Ok(_) => world.picture().check_same(&after, &case),
                Err(error) => {
                    world.picture().check_same(&before, &format!("{case}: {}", error.report()));
                    (change.run)(&world.toolstack, guest.id(), &mut |_| ()).unwrap();
                    world.picture().check_same(&after, &format!("{case}, and again"));
                }
            }
            destroy(&world, &guest, &case);
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_failure_of_any_hypervisor_call_leaves_the_guest_as_before() {
    for part in 0..PARTS {
        check_calls(
            part,
            |world, n| world.hypervisor.fail_nth_call(n),
            |world| world.hypervisor.heal(),
            |world| world.hypervisor.operations().len() as u64,
        );
    }
}

#[test]
fn a_failure_of_any_command_to_qemu_leaves_the_guest_as_before() {
    for part in 0..PARTS {
        check_calls(
            part,
            |world, n| world.qemu.fail_nth(n),
            |world| world.qemu.fail_nth(0),
            |world| world.qemu.asked(),
        );
    }
}

#[test]
fn a_locked_tray_is_respected_and_said_unless_forced() {
    let (world, guest) = with_guest();
    world.qemu.lock_tray("ide-5632", true);
    let before = world.picture();
    let change =
        |how| world.toolstack.change_medium(guest.id(), vdev("hdc"), &file("/srv/new.iso"), how, &mut |_| ());
    let report = change(Detach::Ask).unwrap_err().report();
    assert!(report.contains("has locked the tray of hdc"), "{report}");
    world.picture().check_same(&before, "a locked tray");
    change(Detach::Force).unwrap();
    assert_eq!(world.host.state().loops.values().filter(|(file, ..)| file.ends_with("new.iso")).count(), 1);
    for (which, words) in [("hda", "not a CD drive"), ("hdb", "has no CD drive hdb")] {
        let empty = DiskSource::Empty;
        let report = world
            .toolstack
            .change_medium(guest.id(), vdev(which), &empty, Detach::Ask, &mut |_| ())
            .unwrap_err()
            .report();
        assert!(report.contains(words), "{report}");
    }
    destroy(&world, &guest, "a locked tray");
}

#[test]
fn a_failure_of_any_host_call_leaves_the_guest_as_before() {
    for part in 0..PARTS {
        check_calls(
            part,
            |world, n| world.host.fail_at(n),
            |world| world.host.fail_at(0),
            |world| world.host.state().calls,
        );
    }
}

fn check_requests(part: usize) {
    check_calls(part, |world, n| world.link.fail_nth(n), |_| (), |world| world.link.seen());
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_the_guest_as_before_0() {
    check_requests(0);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_the_guest_as_before_1() {
    check_requests(1);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_the_guest_as_before_2() {
    check_requests(2);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_the_guest_as_before_3() {
    check_requests(3);
}

/// A daemon that dies in the middle of a change: nothing is undone.
fn die_at(toolstack: &Toolstack, id: GuestId, change: &Change, step: &str, side: Side) {
    let toolstack = toolstack.clone().with_faults(Faults::none().at(step, side));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = (change.run)(&toolstack, id, &mut |event| {
            // The failed step is reported before its undo begins.
            if let Event::StepFailed { .. } = event {
                std::panic::resume_unwind(Box::new(()));
            }
        });
    }));
}

#[test]
fn a_change_that_was_cut_off_anywhere_is_put_back_or_finished_and_can_be_repeated() {
    for change in CHANGES {
        let (before, after) = pictures(&change);
        for step in (change.steps)() {
            for side in [Side::Before, Side::After] {
                let case = format!("{}: cut off {side:?} \"{step}\"", change.name);
                let (world, guest) = (change.guest)();
                die_at(&world.toolstack, guest.id(), &change, step, side);
                let successor = world.successor();
                let recovered = successor.recover(&mut |_| ()).unwrap();
                assert!(recovered.troubles.is_empty(), "{case}: {:?}", recovered.troubles);
                assert_eq!(recovered.guests, [world.toolstack.info(guest.id()).unwrap().guest], "{case}");
                if change.name.contains("disc") || change.name.contains("emulated") {
                    // Put back by QEMU, before the guest's next change.
                    successor.set_bridge(guest.id(), 0, "xenbr0", &mut |_| ()).unwrap();
                }
                let now = world.picture();
                assert!(now == before || now == after, "{case}: {now:#?}");
                if now == before {
                    (change.run)(&successor, guest.id(), &mut |_| ()).unwrap();
                    world.picture().check_same(&after, &format!("{case}, and repeated"));
                }
                destroy(&world, &guest, &case);
            }
        }
    }
}

#[test]
fn a_guest_that_does_not_let_go_keeps_its_devices() {
    let (mut world, guest) = with_guest();
    world.toolstack = world.toolstack.clone().with_deadlines(toolstack::Deadlines::default().scaled(0.02));
    world.give_drivers(guest.domid, Drivers::Stubborn);
    let before = world.picture();
    let asked = |change: &&Change| change.name.starts_with("detach") && !change.name.contains("emulated");
    for change in CHANGES.iter().filter(asked) {
        let error = (change.run)(&world.toolstack, guest.id(), &mut |_| ()).unwrap_err();
        assert!(error.report().contains("did not release the device"), "{}", error.report());
        world.picture().check_same(&before, change.name);
    }
    world.wait_for_state(&format!("/local/domain/0/backend/vbd/{}/768/state", guest.domid), b"4");
    world.toolstack.detach_disk(guest.id(), vdev("hda"), Detach::Force, &mut |_| ()).unwrap();
    world.toolstack.detach_nic(guest.id(), 0, Detach::Force, &mut |_| ()).unwrap();
    assert!(world.host.state().loops.values().all(|(file, ..)| file.ends_with("old.iso")));
    destroy(&world, &guest, "taken by force");
}

#[test]
fn a_move_takes_both_users_of_the_interface_along() {
    let (world, guest) = with_guest();
    world.toolstack.set_bridge(guest.id(), 0, "xenbr1", &mut |_| ()).unwrap();
    let on = |bridge: &str| world.host.state().ports.values().filter(|port| *port == bridge).count();
    assert_eq!((on("xenbr0"), on("xenbr1")), (0, 2));
    let error = world.toolstack.set_bridge(guest.id(), 0, "xenbr9", &mut |_| ()).unwrap_err();
    assert!(error.report().contains("There is no bridge xenbr9"), "{}", error.report());
    let error = world.toolstack.set_bridge(guest.id(), 1, "xenbr0", &mut |_| ()).unwrap_err();
    assert!(error.report().contains("its script vif-route connects it"), "{}", error.report());
    destroy(&world, &guest, "moved");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let (world, guest) = with_guest();
    let ts = &world.toolstack;
    let before = world.picture();
    let refused = |result: Result<Guest, Error>, words: &str| {
        let report = result.unwrap_err().report();
        assert!(report.contains(words), "{report}");
        world.picture().check_same(&before, words);
    };
    let attach = |text: &str| ts.attach_disk(guest.id(), &disk(text), &mut |_| ());
    refused(attach("/srv/extra.img,raw,xvdb,rw"), "already has Disk xvdb (/dev/vg/b)");
    refused(
        attach("/srv/none.img,raw,xvdc,rw"),
        "Disk xvdc (/srv/none.img): The disk image /srv/none.img is missing",
    );
    refused(attach("/srv/a.img,raw,xvdc,rw"), "/srv/a.img is in use by the guest hello");
    refused(attach("/srv/extra.img,raw,hdb,ro,cdrom"), "use cd-insert to change the disc");
    refused(ts.attach_nic(guest.id(), &nic("bridge=none"), &mut |_| ()), "There is no bridge none");
    refused(ts.attach_nic(guest.id(), &nic("devid=1"), &mut |_| ()), "already has a network interface 1");
    refused(ts.detach_disk(guest.id(), vdev("xvdz"), Detach::Ask, &mut |_| ()), "has no disk xvdz");
    refused(ts.set_memory(guest.id(), KiB::from_mib(65), &mut |_| ()), "at most 64 MiB (maxmem)");
    refused(ts.set_memory(guest.id(), KiB::from_mib(8), &mut |_| ()), "needs at least");
    refused(ts.set_vcpus(guest.id(), 3, &mut |_| ()), "1 to 2 (maxvcpus)");
    refused(ts.rename(guest.id(), "a/b", &mut |_| ()), "contains a slash");
    world.give_drivers(guest.domid, Drivers::None);
    refused(ts.detach_disk(guest.id(), vdev("hda"), Detach::Ask, &mut |_| ()), "cannot be unplugged");
    assert!(ts.sysrq(guest.id(), 'h').unwrap_err().report().contains("has no PV drivers"));
    destroy(&world, &guest, "refused");
}

#[test]
fn a_taken_name_is_refused_also_when_it_is_a_stubdomains() {
    let (world, guest) = with_guest();
    let other = config::load_str("o", "type=\"hvm\"\nname=\"other\"\nmemory=64").config.unwrap();
    let second = world.toolstack.create(&other, toolstack::CreateOptions::default(), &mut |_| ()).unwrap();
    for name in ["other", "other-dm"] {
        let error = world.toolstack.rename(guest.id(), name, &mut |_| ()).unwrap_err();
        assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::NameTaken { .. })), "{error:?}");
    }
    world.toolstack.rename(guest.id(), "hello-dm", &mut |_| ()).unwrap();
    assert_eq!(
        world.toolstack.find_domain("hello-dm-dm").unwrap(),
        DomId::new(guest.domid.get() + 1).unwrap()
    );
    world.toolstack.destroy(second.id(), &mut |_| ()).unwrap();
    destroy(&world, &guest, "renamed");
}

#[test]
fn signals_reach_the_guest_and_a_key_is_taken_back_when_nobody_reads_it() {
    let (mut world, guest) = with_guest();
    world.toolstack = world.toolstack.clone().with_deadlines(toolstack::Deadlines::default().scaled(0.02));
    world.toolstack.trigger(guest.id(), xen::Trigger::Nmi, 0).unwrap();
    assert_eq!(world.hypervisor.triggers(guest.domid), [xen::Trigger::Nmi]);
    assert!(world.toolstack.sysrq(guest.id(), 'h').unwrap_err().report().contains("not acknowledge"));
    assert!(world.toolstack.sysrq(guest.id(), '\n').is_err());
    destroy(&world, &guest, "signals");
}

/// A world whose QEMU draws a picture of one pixel, and its guest.
pub(crate) fn with_screen() -> (World, Guest) {
    let (world, guest) = with_guest();
    let host = world.host.clone();
    world.qemu.on_screendump(move |name| {
        assert_eq!(name, "/dev/xvdz");
        let state = host.state();
        let screen = |path: &&std::path::PathBuf| path.to_string_lossy().contains("/screens/");
        let path = state.loops.values().map(|(path, ..)| path).find(screen).unwrap();
        host.put_file(path, b"P6\n1 1\n255\n\x01\x02\x03");
    });
    (world, guest)
}

#[test]
fn a_picture_is_taken_and_leaves_nothing_whatever_fails() {
    let (world, guest) = with_screen();
    let before = world.picture();
    let png = world.toolstack.screenshot(guest.id(), &mut |_| ()).unwrap().png;
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut frame = [0; 3];
    reader.next_frame(&mut frame).unwrap();
    assert_eq!(frame, [1, 2, 3]);
    world.picture().check_same(&before, "a picture");
    for step in Toolstack::screenshot_steps() {
        for side in [Side::Before, Side::After] {
            let faulty = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            let taken = faulty.screenshot(guest.id(), &mut |_| ());
            assert_eq!(taken.is_ok(), step == "clear", "{step}: {taken:?}");
            world.picture().check_same(&before, step);
            // And a daemon that is killed there.
            let dying = faulty.clone();
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = dying.screenshot(guest.id(), &mut |event| {
                    if let Event::StepFailed { .. } = event {
                        std::panic::resume_unwind(Box::new(()));
                    }
                });
            }));
            let recovered = world.successor().recover(&mut |_| ()).unwrap();
            assert!(recovered.troubles.is_empty(), "{:?}", recovered.troubles);
            world.picture().check_same(&before, step);
        }
    }
    world.qemu.on_screendump(|_| ());
    assert!(
        world.toolstack.screenshot(guest.id(), &mut |_| ()).unwrap_err().report().contains("valid picture")
    );
    world.picture().check_same(&before, "no picture");
    destroy(&world, &guest, "pictures");
}
