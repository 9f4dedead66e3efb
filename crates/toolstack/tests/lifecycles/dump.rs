//! Dumping guests, with a failure at every point.

use std::path::Path;

use toolstack::operation::{Faults, Side};
use toolstack::{Cause, Error, Event, Guest, Toolstack, WhileDumped};
use xen::{DomainState, Hypervisor as _, ShutdownReason};

use crate::world::{Stubs, World};

const FILE: &str = "/srv/hello.core";

fn file() -> &'static Path {
    Path::new(FILE)
}

fn with_guest() -> (World, Guest) {
    let world = World::new(Stubs::Work);
    let guest = world.create_small().unwrap();
    (world, guest)
}

fn dump(toolstack: &Toolstack, guest: &Guest, meanwhile: WhileDumped) -> Result<Guest, Error> {
    toolstack.dump_core(guest.id(), file(), meanwhile, &mut |_| ())
}

fn state(world: &World, guest: &Guest) -> DomainState {
    world.hypervisor.domain_info(guest.domid).unwrap().unwrap().state
}

/// What there is of the file: whether it is whole, and whether there is a part.
fn found(world: &World) -> (bool, bool) {
    let files = world.host.state().files;
    let is_part =
        |path: &&std::path::PathBuf| path.as_path() != file() && path.to_string_lossy().starts_with(FILE);
    (
        files.get(file()).is_some_and(|content| content.starts_with(b"\x7fELF")),
        files.keys().any(|path| is_part(&path)),
    )
}

fn destroy(world: &World, guest: &Guest, case: &str) {
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.forget_file(file());
    world.check_clean(case);
}

#[test]
fn guest_is_paused_while_it_is_dumped_unless_asked_not_to_be() {
    for (meanwhile, expected) in [(WhileDumped::Paused, true), (WhileDumped::Runs, false)] {
        let (world, guest) = with_guest();
        let before = world.picture();
        let (mut was_paused, mut moved) = (None, None);
        world
            .toolstack
            .dump_core(guest.id(), file(), meanwhile, &mut |event| {
                if let Event::Progress { done, total } = event {
                    moved = Some((done, total));
                    was_paused = Some(state(&world, &guest).paused);
                }
            })
            .unwrap();
        assert_eq!((was_paused, found(&world)), (Some(expected), (true, false)), "{meanwhile:?}");
        assert!(moved.is_some_and(|(done, total)| done == total && total > 0), "{moved:?}");
        assert!(!state(&world, &guest).paused, "{meanwhile:?}");
        world.picture().check_same(&before, "dumped");
        destroy(&world, &guest, "dumped");
    }
}

#[test]
fn guest_that_is_paused_or_has_ended_is_dumped_and_stays_so() {
    let (world, guest) = with_guest();
    world.toolstack.pause(guest.id()).unwrap();
    dump(&world.toolstack, &guest, WhileDumped::Paused).unwrap();
    assert!(state(&world, &guest).paused);
    world.forget_file(file());
    world.toolstack.unpause(guest.id()).unwrap();
    world.hypervisor.guest_shuts_down(guest.domid, ShutdownReason::Crash);
    dump(&world.toolstack, &guest, WhileDumped::Paused).unwrap();
    let found_state = state(&world, &guest);
    assert_eq!((found_state.shutdown, found_state.paused), (Some(ShutdownReason::Crash), false));
    assert_eq!(found(&world), (true, false));
    destroy(&world, &guest, "dumped after its end");
}

#[test]
fn dump_that_fails_at_any_step_leaves_the_guest_running_and_no_part_of_a_file() {
    let steps = Toolstack::dump_core_steps();
    for step in &steps {
        for side in [Side::Before, Side::After] {
            let case = format!("{step} {side:?}");
            let (world, guest) = with_guest();
            let before = world.picture();
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            assert!(dump(&toolstack, &guest, WhileDumped::Paused).is_err(), "{case}");
            world.picture().check_same(&before, &case);
            assert!(!state(&world, &guest).paused, "{case}");
            // One that is whole may stay.
            let is_whole = *step == "put-in-place" && side == Side::After;
            assert_eq!(found(&world), (is_whole, false), "{case}");
            world.forget_file(file());
            assert!(dump(&world.toolstack, &guest, WhileDumped::Paused).is_ok(), "{case}");
            destroy(&world, &guest, &case);
        }
    }
}

#[test]
fn dump_is_given_up_at_any_step_before_its_file_has_its_name() {
    let steps = Toolstack::dump_core_steps();
    let last = steps.iter().position(|step| *step == "put-in-place").unwrap();
    for step in &steps[..last] {
        let (world, guest) = with_guest();
        let dumped = world.toolstack.dump_core(guest.id(), file(), WhileDumped::Paused, &mut |event| {
            if matches!(event, Event::StepStarted { id, .. } if id == *step) {
                assert!(world.toolstack.cancel(guest.id()), "{step}");
            }
        });
        let error = dumped.unwrap_err();
        let is_cancelled = matches!(&error, Error::Step(f) if matches!(f.cause, Cause::DumpCancelled { .. }));
        assert!(is_cancelled, "{step}: {error}");
        assert_eq!((found(&world), state(&world, &guest).paused), ((false, false), false), "{step}");
    }
}

#[test]
fn files_that_exist_and_full_disks_are_refused_before_the_guest_is_paused() {
    let refused = |world: &World, guest: &Guest| {
        let error = dump(&world.toolstack, guest, WhileDumped::Paused).unwrap_err();
        let operations = world.hypervisor.operations();
        assert!(operations.iter().all(|operation| operation.name != "pause_domain"), "{error}");
        let Error::Step(failure) = error else { panic!("{error}") };
        failure.cause
    };
    let (world, guest) = with_guest();
    world.host.put_file(FILE, b"somebody's letters");
    assert!(matches!(refused(&world, &guest), Cause::NotACoreFile { .. }));
    assert_eq!(world.host.state().files[file()], b"somebody's letters");
    let (world, guest) = with_guest();
    world.host.put_room(1 << 20);
    assert!(matches!(refused(&world, &guest), Cause::NoRoom { .. }));
}
