//! Saving guests and restoring them, with a failure at every point.

use std::path::Path;

use toolstack::operation::{Faults, Side};
use toolstack::{AfterSave, Cause, CreateOptions, Error, Event, Guest, RestoreOptions, Toolstack};
use xen::{DomainState, HvmParam, Hypervisor as _, ShutdownReason};
use xen_types::DomId;

use crate::qemu::STATE;
use crate::world::{Drivers, Stubs, World};

const FILE: &str = "/srv/hello.save";

fn file() -> &'static Path {
    Path::new(FILE)
}

fn with_guest(drivers: Drivers) -> (World, Guest) {
    let world = World::new(Stubs::Work);
    let guest = world.create_small().unwrap();
    world.give_drivers(guest.domid, drivers);
    (world, guest)
}

/// A world with a saved guest, and nothing else.
fn with_file() -> World {
    let (world, guest) = with_guest(Drivers::Polite);
    assert_eq!(save(&world, &guest, AfterSave::Destroy).unwrap(), None);
    world
}

fn save(world: &World, guest: &Guest, after: AfterSave) -> Result<Option<Guest>, Error> {
    world.toolstack.save(guest.id(), file(), after, &mut |_| ())
}

fn restore(toolstack: &Toolstack) -> Result<Guest, Error> {
    let saved = toolstack.open_saved(file())?;
    toolstack.restore(saved, &RestoreOptions::default(), &mut |_| ())
}

fn state(world: &World, guest: DomId) -> DomainState {
    world.hypervisor.domain_info(guest).unwrap().unwrap().state
}

fn check_runs(world: &World, guest: &Guest, case: &str) {
    let state = state(world, guest.domid);
    assert!(!state.paused && state.shutdown.is_none() && world.qemu.runs(), "{case}: {state:?}");
}

/// Destroys the guest and removes its file: then nothing is left.
fn destroy(world: &World, guest: &Guest, case: &str) {
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.forget_file(file());
    world.check_clean(case);
}

fn is_there(world: &World) -> bool {
    world.host.state().files.keys().any(|path| path.to_string_lossy().starts_with(FILE))
}

#[test]
fn guest_is_saved_destroyed_and_goes_on_where_it_is_restored() {
    for drivers in [Drivers::None, Drivers::Polite] {
        let (world, guest) = with_guest(drivers);
        let mut finished = Vec::new();
        let gone = world.toolstack.save(guest.id(), file(), AfterSave::Destroy, &mut |event| {
            if let Event::StepFinished { id, .. } = event {
                finished.push(id);
            }
        });
        assert_eq!(gone.unwrap(), None);
        let steps = Toolstack::save_steps(AfterSave::Destroy);
        assert_eq!(finished[..steps.len()], steps);
        assert!(world.toolstack.guests().unwrap().is_empty());
        let restored = restore(&world.toolstack).unwrap();
        assert_eq!((restored.uuid, &restored.name), (guest.uuid, &guest.name), "{drivers:?}");
        assert_eq!(restored.config, guest.config);
        assert_eq!(world.qemu.loaded().as_deref(), Some(STATE));
        check_runs(&world, &restored, "restored");
        destroy(&world, &restored, "saved and restored");
    }
}

#[test]
fn restored_guest_gets_a_new_generation_id_where_it_asks_for_one() {
    for (asks, params) in [(true, 0x10_0000), (true, 0), (false, 0x10_0000)] {
        let (world, guest) = with_guest(Drivers::None);
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        let mut config = guest.config;
        config.platform.vm_generation_id = asks;
        let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
        assert_eq!(world.hypervisor.written_memory(guest.domid), [], "hvmloader does that");
        world.hypervisor.set_hvm_param(guest.domid, HvmParam::VmGenerationIdAddr, params).unwrap();
        save(&world, &guest, AfterSave::Destroy).unwrap();
        let restored = restore(&world.toolstack).unwrap();
        let written = world.hypervisor.written_memory(restored.domid);
        let shape: Vec<_> = written.iter().map(|(address, bytes)| (*address, bytes.len())).collect();
        let expected = if asks && params != 0 { vec![(params, 16)] } else { Vec::new() };
        assert_eq!(shape, expected, "{asks} {params:#x}");
        destroy(&world, &restored, "restored");
    }
}

#[test]
fn guest_that_is_saved_twice_while_it_goes_on_is_restored_from_the_second() {
    let (world, guest) = with_guest(Drivers::Polite);
    let before = world.picture();
    for _ in 0..2 {
        assert_eq!(save(&world, &guest, AfterSave::Run).unwrap().unwrap().uuid, guest.uuid);
        check_runs(&world, &guest, "saved");
    }
    world.picture().check_same(&before, "saved twice");
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    let restored = restore(&world.toolstack).unwrap();
    destroy(&world, &restored, "restored");
}

#[test]
fn guest_that_is_saved_and_paused_does_not_run() {
    let (world, guest) = with_guest(Drivers::None);
    assert!(save(&world, &guest, AfterSave::Pause).unwrap().is_some());
    let found = state(&world, guest.domid);
    assert!(found.paused && found.shutdown.is_none(), "{found:?}");
    world.toolstack.unpause(guest.id()).unwrap();
    check_runs(&world, &guest, "unpaused");
    destroy(&world, &guest, "saved and paused");
}

#[test]
fn guest_runs_on_after_a_save_that_fails_at_any_step() {
    for after in [AfterSave::Destroy, AfterSave::Run, AfterSave::Pause] {
        for step in Toolstack::save_steps(after) {
            for side in [Side::Before, Side::After] {
                let case = format!("{after:?}, {step} {side:?}");
                let (world, guest) = with_guest(Drivers::Polite);
                let before = world.picture();
                let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
                let saved = toolstack.save(guest.id(), file(), after, &mut |_| ());
                if step == "give-up-guest" {
                    // The file is whole, and the guest is in it.
                    assert_eq!(saved.unwrap(), None, "{case}");
                    assert!(is_there(&world), "{case}");
                    continue;
                }
                assert!(saved.is_err(), "{case}");
                world.picture().check_same(&before, &case);
                check_runs(&world, &guest, &case);
                assert!(!is_there(&world), "{case}: a part of a file");
                // And it can be saved now.
                assert!(save(&world, &guest, AfterSave::Run).is_ok(), "{case}");
                destroy(&world, &guest, &case);
            }
        }
    }
}

#[test]
fn restore_that_fails_at_any_step_leaves_only_the_file() {
    for step in Toolstack::restore_steps() {
        for side in [Side::Before, Side::After] {
            let case = format!("{step} {side:?}");
            let world = with_file();
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            assert!(restore(&toolstack).is_err(), "{case}");
            assert!(world.toolstack.guests().unwrap().is_empty(), "{case}");
            let restored = restore(&world.toolstack).unwrap();
            check_runs(&world, &restored, &case);
            destroy(&world, &restored, &case);
        }
    }
}

#[test]
fn guest_with_a_device_that_has_no_state_is_refused_before_anything_is_done() {
    let world = World::new(Stubs::Work);
    let text = format!("{}usb = 1\nusbdevice = [\"wacom-tablet\"]\n", crate::world::SMALL_CONFIG);
    let config = config::load_str("x", &text).config.unwrap();
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    let before = world.hypervisor.operations().len();
    let error = save(&world, &guest, AfterSave::Run).unwrap_err();
    assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::Unsavable { .. })), "{error}");
    let done: Vec<_> = world.hypervisor.operations().into_iter().skip(before).map(|o| o.name).collect();
    assert!(!done.contains(&"shutdown_domain") && !done.contains(&"pause_domain"), "{done:?}");
    destroy(&world, &guest, "refused");
}

#[test]
fn guest_whose_disk_was_written_to_since_is_restored_only_by_force() {
    let world = with_file();
    world.host.change_file("/srv/a.img", 5);
    let error = restore(&world.toolstack).unwrap_err();
    assert!(matches!(&error, Error::Cause(Cause::DiskChanged { .. })), "{error}");
    let options = RestoreOptions { force: true, ..RestoreOptions::default() };
    let saved = world.toolstack.open_saved(file()).unwrap();
    let restored = world.toolstack.restore(saved, &options, &mut |_| ()).unwrap();
    destroy(&world, &restored, "by force");
}

#[test]
fn guest_whose_devices_would_be_elsewhere_is_refused_before_it_is_suspended() {
    // The machine's own, and the planned SCSI controller of a guest that has one: both fit.
    for (slot, class, fits) in [(1, 0x0601, true), (2, 0xff80, true), (3, 0x0200, false), (9, 0x0200, false)]
    {
        let (world, guest) = with_guest(Drivers::None);
        world.qemu.put_device(slot, class);
        let saved = save(&world, &guest, AfterSave::Run);
        if fits {
            assert!(saved.is_ok(), "{slot}");
            continue;
        }
        let error = saved.unwrap_err();
        assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::Replugged { .. })), "{error}");
        assert!(world.hypervisor.operations().iter().all(|operation| operation.name != "shutdown_domain"));
    }
}

#[test]
fn guest_that_must_not_migrate_is_not_saved() {
    let world = World::new(Stubs::Work);
    let config =
        config::load_str("x", &format!("{}nomigrate = 1\n", crate::world::SMALL_CONFIG)).config.unwrap();
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    let error = save(&world, &guest, AfterSave::Run).unwrap_err();
    assert!(error.report().contains("nomigrate"), "{}", error.report());
}

#[test]
fn qemu_of_a_restored_guest_has_the_processors_of_its_state() {
    let world = World::new(Stubs::Work);
    let text = format!("{}vcpus = 1\nmaxvcpus = 2\n", crate::world::SMALL_CONFIG);
    let config = config::load_str("x", &text).config.unwrap();
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    // QEMU keeps the second one.
    world.toolstack.set_vcpus(guest.id(), 2, &mut |_| ()).unwrap();
    world.toolstack.set_vcpus(guest.id(), 1, &mut |_| ()).unwrap();
    save(&world, &guest, AfterSave::Destroy).unwrap();
    let restored = restore(&world.toolstack).unwrap();
    let path = format!("/vm/{}/image/dmargs", restored.uuid);
    let arguments = world.server.dump().remove(&path).unwrap().0;
    assert!(String::from_utf8_lossy(&arguments).contains("2,maxcpus=2"), "{arguments:?}");
    assert_eq!(restored.config.vcpus, 1);
    destroy(&world, &restored, "restored");
}

#[test]
fn guest_is_not_suspended_for_a_file_that_has_no_room() {
    let (world, guest) = with_guest(Drivers::None);
    world.host.put_room(1 << 20);
    let error = save(&world, &guest, AfterSave::Run).unwrap_err();
    assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::NoRoom { .. })), "{error}");
    let operations = world.hypervisor.operations();
    assert!(operations.iter().all(|operation| operation.name != "shutdown_domain"));
    destroy(&world, &guest, "refused");
}

#[test]
fn other_files_are_not_overwritten() {
    let (world, guest) = with_guest(Drivers::None);
    world.host.put_file(FILE, b"somebody's letters");
    let error = save(&world, &guest, AfterSave::Run).unwrap_err();
    assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::NotASaveFile { .. })), "{error}");
    assert_eq!(world.host.state().files[file()], b"somebody's letters");
    check_runs(&world, &guest, "refused");
}

#[test]
fn guest_that_takes_no_notice_or_never_suspends_runs_on() {
    let (world, guest) = with_guest(Drivers::Stubborn);
    let toolstack = world.toolstack.clone().with_deadlines(world.toolstack.deadlines().scaled(0.002));
    let error = toolstack.save(guest.id(), file(), AfterSave::Destroy, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::NotAcknowledged { .. })), "{error}");
    check_runs(&world, &guest, "asked in vain");
    assert!(!is_there(&world));
}

#[test]
fn guest_that_suspends_itself_after_the_deadline_goes_on() {
    let (world, guest) = with_guest(Drivers::Slow);
    let toolstack = world.toolstack.clone().with_deadlines(world.toolstack.deadlines().scaled(0.002));
    let error = toolstack.save(guest.id(), file(), AfterSave::Destroy, &mut |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Step(f) if matches!(f.cause, Cause::NotSuspended { .. })), "{error}");
    assert!(!toolstack.is_suspended_late(&guest).unwrap());
    world.hypervisor.suspend_guest(guest.domid);
    assert!(toolstack.is_suspended_late(&guest).unwrap());
    toolstack.settle_change(guest.id(), &mut |_| ()).unwrap();
    assert!(!toolstack.is_suspended_late(&guest).unwrap());
    check_runs(&world, &guest, "suspended late");
}

#[test]
fn save_is_given_up_at_any_step_before_its_file_has_its_name_and_at_none_later() {
    for after in [AfterSave::Destroy, AfterSave::Run, AfterSave::Pause] {
        let steps = Toolstack::save_steps(after);
        let last = steps.iter().position(|step| *step == "put-in-place").unwrap();
        for (at, step) in steps.iter().enumerate() {
            let case = format!("{after:?}, {step}");
            let (world, guest) = with_guest(Drivers::Polite);
            let (mut before, mut beyond) = (false, None);
            let saved = world.toolstack.save(guest.id(), file(), after, &mut |event| match event {
                Event::StepStarted { id, .. } if id == *step && at < last => {
                    before = world.toolstack.cancel(guest.id());
                }
                Event::StepFinished { id, .. } if id == *step && at >= last => {
                    beyond = Some(world.toolstack.cancel(guest.id()));
                }
                _ => {}
            });
            if at < last {
                let error = saved.unwrap_err();
                assert!(before, "{case}");
                assert!(
                    matches!(&error, Error::Step(f) if matches!(f.cause, Cause::Cancelled { .. })),
                    "{case}: {error}"
                );
                check_runs(&world, &guest, &case);
                assert!(!is_there(&world), "{case}: a part of a file");
            } else {
                assert_eq!((beyond, saved.is_ok(), is_there(&world)), (Some(false), true, true), "{case}");
            }
        }
    }
}

#[test]
fn suspended_guest_stays_and_goes_on() {
    for drivers in [Drivers::None, Drivers::Polite] {
        let (world, guest) = with_guest(drivers);
        world.toolstack.suspend(guest.id(), &mut |_| ()).unwrap();
        assert_eq!(state(&world, guest.domid).shutdown, Some(ShutdownReason::Suspend));
        assert!(!world.qemu.runs());
        assert!(save(&world, &guest, AfterSave::Run).is_err(), "it cannot be suspended twice");
        world.toolstack.resume(guest.id(), &mut |_| ()).unwrap();
        check_runs(&world, &guest, "resumed");
        assert!(world.toolstack.resume(guest.id(), &mut |_| ()).is_err(), "it is not suspended");
        destroy(&world, &guest, "suspended and resumed");
    }
}

#[test]
fn suspension_that_fails_at_any_step_is_undone() {
    for step in Toolstack::suspend_steps() {
        for side in [Side::Before, Side::After] {
            let case = format!("{step} {side:?}");
            let (world, guest) = with_guest(Drivers::Polite);
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            assert!(toolstack.suspend(guest.id(), &mut |_| ()).is_err(), "{case}");
            check_runs(&world, &guest, &case);
            destroy(&world, &guest, &case);
        }
    }
}
