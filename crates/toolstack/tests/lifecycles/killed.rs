//! A daemon that is killed at any step or call of any operation: its successor undoes or completes the operation, from
//! its entry in the state file.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use toolstack::operation::{Faults, Side};
use toolstack::{AfterSave, CreateOptions, Event, GuestId, RestoreOptions, Toolstack, Turn};

use xen::Hypervisor as _;

use crate::change::{CHANGES, Change, destroy, pictures, with_guest};
use crate::world::{Picture, World, guest_config};

/// Where the daemon is killed: before its nth call to one of its three edges, or beside one of its steps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Host(u64),
    Hypervisor(u64),
    Store(u64),
    Step(&'static str, Side),
}

/// Lets a daemon work on the world until it is killed; returns whether it was.
pub(crate) fn is_killed(
    world: &World,
    place: Place,
    work: impl FnOnce(&Toolstack, &mut dyn FnMut(Event)),
) -> bool {
    let mut toolstack = world.toolstack.clone();
    let requests = world.link.seen();
    match place {
        Place::Host(n) => world.host.die_at(n),
        Place::Hypervisor(n) => world.hypervisor.die_at_nth_call(n),
        Place::Store(n) => world.link.end_at_nth(n),
        Place::Step(step, side) => toolstack = toolstack.with_faults(Faults::none().at(step, side)),
    }
    let end = catch_unwind(AssertUnwindSafe(|| {
        work(&toolstack, &mut |event| {
            // The failed step is reported before its undo begins.
            if let Event::StepFailed { .. } = event {
                resume_unwind(Box::new(()));
            }
        });
    }));
    world.host.die_at(0);
    world.hypervisor.die_at_nth_call(0);
    world.link.end_at_nth(u64::MAX / 2);
    // Where the connection ends, a request may fail outside of the steps.
    end.is_err() || matches!(place, Place::Store(n) if world.link.seen() >= requests + n)
}

/// Kills a daemon at each step, and before each call of one kind, until there are no more.
fn at_each_place(steps: &[&'static str], kill: impl FnMut(Place) -> bool) {
    at_places(steps, 1, kill);
}

/// The same, but of the calls only one in so many: an operation of hundreds of calls takes long.
pub(crate) fn at_places(steps: &[&'static str], every: usize, mut kill: impl FnMut(Place) -> bool) {
    for step in steps {
        for side in [Side::Before, Side::After] {
            assert!(kill(Place::Step(step, side)), "{step} was not reached");
        }
    }
    // Requests to xenstore are many; that each of them can fail is tested with the changes.
    for (place, times) in [(Place::Host as fn(u64) -> Place, 1), (Place::Hypervisor, 1), (Place::Store, 5)] {
        let kills = (1..).step_by(every * times).take_while(|n| kill(place(*n))).count();
        // An operation may need nothing of xenstore.
        assert!(kills > 0 || matches!(place(0), Place::Store(_)), "no call to {:?}", place(0));
    }
}

/// What the successor finds and does; nothing may be left that troubles it.
pub(crate) fn recover(world: &World, case: &str) -> (Toolstack, Vec<GuestId>) {
    let successor = world.successor();
    let recovered = successor.recover(&mut |_| ()).unwrap();
    assert!(recovered.troubles.is_empty(), "{case}: {:?}", recovered.troubles);
    let guests = recovered.guests.iter().map(toolstack::Guest::id).collect();
    (successor, guests)
}

fn check_change(change: &Change) {
    let (before, after) = pictures(change);
    at_each_place(&(change.steps)(), |place| {
        let case = format!("{}: killed at {place:?}", change.name);
        let (world, guest) = (change.guest)();
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = (change.run)(toolstack, guest.id(), events);
        });
        let (successor, _) = recover(&world, &case);
        if change.name.contains("disc") || change.name.contains("emulated") {
            // Undone by QEMU, before the guest's next change.
            successor.set_bridge(guest.id(), 0, "xenbr0", &mut |_| ()).unwrap();
        }
        let now = world.picture();
        if now != after {
            now.check_same(&before, &case);
            (change.run)(&successor, guest.id(), &mut |_| ()).unwrap();
            world.picture().check_same(&after, &format!("{case}, and repeated"));
        }
        destroy(&world, &guest, &case);
        killed
    });
}

/// The changes are checked in so many tests, for machines with many processors.
const PARTS: usize = 8;

fn check_changes(part: usize) {
    CHANGES
        .iter()
        .enumerate()
        .filter(|(index, _)| index % PARTS == part)
        .for_each(|(_, change)| check_change(change));
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_0() {
    check_changes(0);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_1() {
    check_changes(1);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_2() {
    check_changes(2);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_3() {
    check_changes(3);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_4() {
    check_changes(4);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_5() {
    check_changes(5);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_6() {
    check_changes(6);
}

#[test]
fn change_of_a_killed_daemon_is_undone_or_completed_7() {
    check_changes(7);
}

#[test]
fn create_of_a_killed_daemon_is_undone_or_completed() {
    let mut completed = 0;
    at_places(&Toolstack::create_steps(), 2, |place| {
        let case = format!("create, killed at {place:?}");
        let world = World::new(crate::world::Stubs::Work);
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = toolstack.create(&guest_config(), CreateOptions::default(), events);
        });
        let (successor, guests) = recover(&world, &case);
        for id in guests {
            completed += 1;
            let info = successor.info(id).unwrap();
            assert!(!info.domain.unwrap().state.paused, "{case}: recovered and not started");
            successor.destroy(id, &mut |_| ()).unwrap();
        }
        world.check_clean(&case);
        killed
    });
    assert!(completed >= 3, "also those that only had to be started");
}

#[test]
fn destroy_of_a_killed_daemon_is_completed_once_it_has_begun() {
    at_each_place(&Toolstack::destroy_steps(), |place| {
        let case = format!("destroy, killed at {place:?}");
        let (world, guest) = with_guest();
        let before = world.picture();
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = toolstack.destroy(guest.id(), events);
        });
        let (_, guests) = recover(&world, &case);
        if guests.is_empty() {
            world.check_clean(&case);
        } else {
            world.picture().check_same(&before, &case);
            destroy(&world, &guest, &case);
        }
        killed
    });
}

#[test]
fn restart_of_a_killed_daemon_goes_on_once_it_has_begun() {
    let steps: Vec<_> = Toolstack::destroy_steps();
    at_places(&steps, 5, |place| {
        let case = format!("restart, killed at {place:?}");
        let (world, guest) = with_guest();
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = toolstack.restart(guest.id(), Turn::default(), events);
        });
        let (successor, guests) = recover(&world, &case);
        assert_eq!(guests, [guest.id()], "{case}");
        let info = successor.info(guest.id()).unwrap();
        assert_eq!(info.guest.name, guest.name, "{case}");
        assert!(!info.domain.unwrap().state.paused, "{case}: not started");
        destroy(&world, &info.guest, &case);
        killed
    });
}

#[test]
fn guest_that_follows_a_preserved_one_is_created_also_by_the_next_daemon() {
    at_places(&[], 5, |place| {
        let case = format!("preserved and restarted, killed at {place:?}");
        let (world, guest) = with_guest();
        // It has ended: its disks are free for the next one.
        for domid in [guest.stub_domid, guest.domid] {
            world.hypervisor.destroy_domain(domid).unwrap();
        }
        let killed = is_killed(&world, place, |toolstack, events| {
            if let Ok((_, next)) = toolstack.preserve_and_restart(guest.id(), "preserved", Turn::default()) {
                let _ = toolstack.finish_restart(next, events);
            }
        });
        let (successor, guests) = recover(&world, &case);
        let named = |name: &str| {
            let known = successor.guests().unwrap().into_iter().map(|info| info.guest);
            known.filter(|guest| guest.name == name).map(|guest| guest.id()).collect::<Vec<_>>()
        };
        match guests.len() {
            // Killed before anything was written.
            1 => assert_eq!(named("hello"), [guest.id()], "{case}"),
            _ => {
                assert_eq!(named("preserved"), [guest.id()], "{case}");
                assert_eq!(named("hello").len(), 1, "{case}");
            }
        }
        for id in guests {
            successor.destroy(id, &mut |_| ()).unwrap();
        }
        world.check_clean(&case);
        killed
    });
}

#[test]
fn screenshot_of_a_killed_daemon_leaves_nothing() {
    at_each_place(&Toolstack::screenshot_steps(), |place| {
        let case = format!("screenshot, killed at {place:?}");
        let (world, guest) = crate::change::with_screen();
        let before: Picture = world.picture();
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = toolstack.screenshot(guest.id(), events);
        });
        recover(&world, &case);
        world.picture().check_same(&before, &case);
        destroy(&world, &guest, &case);
        killed
    });
}

/// A guest that can be saved.
fn with_small_guest() -> (World, toolstack::Guest) {
    let world = World::new(crate::world::Stubs::Work);
    let guest = world.create_small().unwrap();
    world.give_drivers(guest.domid, crate::world::Drivers::Polite);
    (world, guest)
}

/// A guest whose drivers have taken notice of a dead daemon's request suspends itself whenever it comes to that.
fn let_go_on(world: &World, successor: &Toolstack, guest: &toolstack::Guest) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let store = world.server.connect(xen_types::DomId::DOM0);
    let asked = xenstore::XsPath::new(format!("/libxl/{}/suspend-asked", guest.domid)).unwrap();
    while xenstore::Store::read(&store, &asked).unwrap().is_some() {
        assert!(Instant::now() < deadline, "the guest does not suspend itself");
        if successor.is_suspended_late(guest).unwrap() {
            successor.settle_change(guest.id(), &mut |_| ()).unwrap();
        }
        std::thread::yield_now();
    }
}

#[test]
fn save_of_a_killed_daemon_leaves_a_running_guest_or_a_whole_file() {
    let file = std::path::Path::new("/srv/hello.save");
    for after in [AfterSave::Destroy, AfterSave::Run, AfterSave::Pause] {
        at_places(&Toolstack::save_steps(after), 3, |place| {
            let case = format!("save, {after:?}, killed at {place:?}");
            let (world, guest) = with_small_guest();
            let before = world.picture();
            let killed = is_killed(&world, place, |toolstack, events| {
                let _ = toolstack.save(guest.id(), file, after, events);
            });
            let (successor, guests) = recover(&world, &case);
            let files = world.host.state().files;
            assert!(!files.keys().any(|path| path.to_string_lossy().contains("partial")), "{case}");
            if guests.is_empty() {
                let saved = successor.open_saved(file).unwrap_or_else(|error| panic!("{case}: {error}"));
                let restored = successor.restore(saved, &RestoreOptions::default(), &mut |_| ()).unwrap();
                successor.destroy(restored.id(), &mut |_| ()).unwrap();
            } else {
                let_go_on(&world, &successor, &guest);
                let state = world.hypervisor.domain_info(guest.domid).unwrap().unwrap().state;
                assert!(state.shutdown.is_none() && world.qemu.runs(), "{case}: {state:?}");
                assert_eq!(state.paused, !killed && after == AfterSave::Pause, "{case}");
                world.picture().check_same(&before, &case);
                successor.destroy(guest.id(), &mut |_| ()).unwrap();
            }
            world.forget_file(file);
            world.check_clean(&case);
            killed
        });
    }
}

#[test]
fn dump_of_a_killed_daemon_leaves_a_running_guest_and_no_part_of_a_file() {
    let file = std::path::Path::new("/srv/hello.core");
    at_places(&Toolstack::dump_core_steps(), 3, |place| {
        let case = format!("dump, killed at {place:?}");
        let (world, guest) = with_small_guest();
        let before = world.picture();
        let killed = is_killed(&world, place, |toolstack, events| {
            let _ = toolstack.dump_core(guest.id(), file, toolstack::WhileDumped::Paused, events);
        });
        let (successor, _) = recover(&world, &case);
        let files = world.host.state().files;
        assert!(!files.keys().any(|path| path.to_string_lossy().contains("partial")), "{case}");
        let state = world.hypervisor.domain_info(guest.domid).unwrap().unwrap().state;
        assert!(!state.paused && state.shutdown.is_none(), "{case}: {state:?}");
        world.picture().check_same(&before, &case);
        successor.destroy(guest.id(), &mut |_| ()).unwrap();
        world.forget_file(file);
        world.check_clean(&case);
        killed
    });
}

#[test]
fn restore_of_a_killed_daemon_is_undone_or_completed() {
    let file = std::path::Path::new("/srv/hello.save");
    at_places(&Toolstack::restore_steps(), 3, |place| {
        let case = format!("restore, killed at {place:?}");
        let (world, guest) = with_small_guest();
        assert_eq!(world.toolstack.save(guest.id(), file, AfterSave::Destroy, &mut |_| ()).unwrap(), None);
        let killed = is_killed(&world, place, |toolstack, events| {
            if let Ok(saved) = toolstack.open_saved(file) {
                let _ = toolstack.restore(saved, &RestoreOptions::default(), events);
            }
        });
        let (successor, guests) = recover(&world, &case);
        for id in guests {
            let info = successor.info(id).unwrap();
            assert!(!info.domain.unwrap().state.paused, "{case}: recovered and not started");
            successor.destroy(id, &mut |_| ()).unwrap();
        }
        world.forget_file(file);
        world.check_clean(&case);
        killed
    });
}
