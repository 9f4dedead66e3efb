use toolstack::operation::{Faults, Side};
use toolstack::{CreateOptions, Toolstack};

use crate::world::{Stubs, World, guest_config};

/// A daemon that dies in the middle of a create: nothing is undone.
fn die_at(world: &World, step: &'static str, side: Side) {
    let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
    let config = guest_config();
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = toolstack.create(&config, CreateOptions::default(), &mut |event| {
            // The failed step is reported before its undo begins.
            if let toolstack::Event::StepFailed { .. } = event {
                std::panic::resume_unwind(Box::new(()));
            }
        });
    }));
}

#[test]
fn a_running_guest_is_taken_up() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!(recovered.guests, std::slice::from_ref(&guest));
    assert!(recovered.cleaned.is_empty() && recovered.troubles.is_empty());
    world.successor().destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("taken up and destroyed");
}

#[test]
fn a_create_that_was_cut_off_anywhere_is_cleared() {
    let mut steps = Toolstack::create_steps();
    // After it the guest is complete, and after the next it runs.
    steps.retain(|step| *step != "start-guest");
    for step in steps {
        for side in [Side::Before, Side::After] {
            let world = World::new(Stubs::Work);
            die_at(&world, step, side);
            let recovered = world.successor().recover(&mut |_| ()).unwrap();
            assert!(recovered.guests.is_empty() && recovered.troubles.is_empty(), "{recovered:?}");
            world.check_clean(&format!("cut off {side:?} \"{step}\""));
        }
    }
}

#[test]
fn a_guest_that_was_recorded_as_running_is_taken_up_even_if_not_started() {
    let world = World::new(Stubs::Work);
    die_at(&world, "start-guest", Side::Before);
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!(recovered.guests.len(), 1);
    let info = world.toolstack.hypervisor().domain_info(recovered.guests[0].domid).unwrap().unwrap();
    assert!(!info.state.paused, "it was to run");
    world.successor().destroy(recovered.guests[0].id(), &mut |_| ()).unwrap();
    world.check_clean("taken up before its start");
}

/// Makes the state files of a world ones of the first form, which had a phase in the place of the operation.
fn to_first_form(world: &World, phase: &str) {
    let mut files = world.host.state().files;
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "json"));
    for (path, text) in files {
        let mut value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        (value["form"], value["phase"]) = (1.into(), phase.into());
        value.as_object_mut().unwrap().remove("operation");
        world.host.put_file(path, value.to_string().as_bytes());
    }
}

#[test]
fn a_create_that_a_release_of_the_first_form_left_is_cleared() {
    for step in ["make-guest", "build-guest", "await-device-model"] {
        let world = World::new(Stubs::Work);
        die_at(&world, step, Side::After);
        to_first_form(&world, "creating");
        let recovered = world.successor().recover(&mut |_| ()).unwrap();
        assert!(recovered.guests.is_empty() && recovered.troubles.is_empty(), "{recovered:?}");
        assert_eq!(recovered.cleaned, ["hello"], "{step}");
        world.check_clean(step);
    }
}

/// Its file said that it runs before it did, and did not say whether it was to stay paused.
#[test]
fn a_guest_that_a_release_of_the_first_form_did_not_start_stays_paused() {
    let world = World::new(Stubs::Work);
    die_at(&world, "start-guest", Side::Before);
    to_first_form(&world, "running");
    let successor = world.successor();
    let recovered = successor.recover(&mut |_| ()).unwrap();
    assert!(recovered.troubles.is_empty() && recovered.cleaned.is_empty(), "{recovered:?}");
    let [guest] = &recovered.guests[..] else { panic!("{recovered:?}") };
    let is_paused = || successor.hypervisor().domain_info(guest.domid).unwrap().unwrap().state.paused;
    assert!(is_paused());
    successor.unpause(guest.id()).unwrap();
    assert!(!is_paused());
    successor.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("a guest that was not started");
}

#[test]
fn a_loop_device_without_a_guest_is_detached() {
    let world = World::new(Stubs::Work);
    let host: &dyn toolstack::host::HostDevices = &*world.host;
    let disk = host.open_disk("/srv/a.img".as_ref(), toolstack::host::DiskAccess::Writable).unwrap();
    host.attach_loop(&disk, false, "outrigger/nobody").unwrap();
    host.attach_loop(&disk, false, "someone-else").unwrap();
    world.successor().recover(&mut |_| ()).unwrap();
    let left: Vec<_> = world.host.state().loops.values().map(|(_, _, tag)| tag.clone()).collect();
    assert_eq!(left, ["someone-else"]);
}

#[test]
fn a_broken_state_file_is_reported_and_stops_nothing() {
    let world = World::new(Stubs::Work);
    world.host.put_file("/var/lib/outrigger/guests/x.json", b"{");
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!(recovered.troubles.len(), 1);
}
