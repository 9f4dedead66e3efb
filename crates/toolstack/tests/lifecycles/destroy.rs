use toolstack::host::{HostError, Scripts};
use toolstack::operation::{Faults, Side};
use toolstack::{Cause, Error, Toolstack, Turn};

use crate::world::{Stubs, World};

#[test]
fn a_destroyed_guest_leaves_nothing() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("destroy");
    assert!(world.toolstack.destroy(guest.id(), &mut |_| ()).is_err(), "it is gone");
}

#[test]
fn destroying_one_of_two_leaves_the_other() {
    let world = World::new(Stubs::Work);
    let first = world.create().unwrap();
    let other = config::load_str("o", "type=\"hvm\"\nname=\"other\"\nmemory=64").config.unwrap();
    let second = world.toolstack.create(&other, toolstack::CreateOptions::default(), &mut |_| ()).unwrap();
    world.toolstack.destroy(first.id(), &mut |_| ()).unwrap();
    let left: Vec<_> = world.toolstack.list().unwrap().into_iter().map(|e| (e.domid, e.target)).collect();
    assert!(left.contains(&(second.domid, None)) && left.contains(&(second.stub_domid, Some(second.domid))));
    world.toolstack.destroy(second.id(), &mut |_| ()).unwrap();
    world.check_clean("both destroyed");
}

#[test]
fn a_restarted_guest_keeps_name_and_uuid() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let again = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
    assert_eq!((&again.name, again.uuid), (&guest.name, guest.uuid));
    assert_ne!(again.domid, guest.domid);
    world.toolstack.destroy(again.id(), &mut |_| ()).unwrap();
    world.check_clean("restart and destroy");
}

#[test]
fn a_renamed_guest_makes_room_for_its_name() {
    let world = World::new(Stubs::Work);
    let old = world.create().unwrap();
    world.hypervisor.guest_shuts_down(old.domid, xen::ShutdownReason::Reboot);
    world.toolstack.preserve_as(old.id(), "hello-1").unwrap();
    let new = world.create().unwrap();
    assert_eq!(world.toolstack.find_domain("hello-1").unwrap(), old.domid);
    assert_eq!(world.toolstack.find_domain("hello").unwrap(), new.domid);
    assert_eq!(world.toolstack.find_domain("hello-1-dm").unwrap(), old.stub_domid);
    assert!(world.toolstack.preserve_as(old.id(), "hello").is_err());
    for guest in [old, new] {
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    }
    world.check_clean("rename, second guest, both destroyed");
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    for step in Toolstack::destroy_steps() {
        for side in [Side::Before, Side::After] {
            let world = World::new(Stubs::Work);
            let guest = world.create().unwrap();
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
            world.check_clean(&format!("a failure {side:?} \"{step}\""));
        }
    }
}

#[test]
fn a_failure_of_any_hypervisor_call_leaves_nothing() {
    for n in 1.. {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        let before = world.hypervisor.operations().len() as u64;
        world.hypervisor.fail_nth_call(n);
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        let calls = world.hypervisor.operations().len() as u64 - before;
        world.hypervisor.heal();
        world.check_clean(&format!("failure of hypervisor call {n}"));
        if n > calls {
            return assert!(n > 4, "only {calls} calls");
        }
    }
}

#[test]
fn a_failure_of_any_host_call_leaves_nothing() {
    for n in 1.. {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        let before = world.host.state().calls;
        world.host.fail_at(n);
        // What fails before anything is done (finding the record) is tried again by whoever asked.
        if world.toolstack.destroy(guest.id(), &mut |_| ()).is_err() {
            world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        }
        world.check_clean(&format!("failure of host call {n}"));
        if n > world.host.state().calls - before {
            return assert!(n > 8, "only {n} calls");
        }
    }
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_nothing() {
    for n in 1.. {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        let before = world.link.seen();
        world.link.fail_nth(n);
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        world.check_clean(&format!("failure of xenstore request {n}"));
        if n > world.link.seen() - before {
            return assert!(n > 20, "only {n} requests");
        }
    }
}

#[test]
fn a_guest_that_someone_else_destroyed_is_cleared() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let hypervisor = world.toolstack.hypervisor();
    hypervisor.destroy_domain(guest.stub_domid).unwrap();
    hypervisor.destroy_domain(guest.domid).unwrap();
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("destroyed by someone else");
}

#[test]
fn a_script_that_cannot_be_killed_does_not_hold_up_the_rest() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let before = world.host.state().scripts.len();
    world.host.scripts(Scripts::Stick);
    let Err(Error::NotClean { left, .. }) = world.toolstack.destroy(guest.id(), &mut |_| ()) else {
        panic!("a script is left")
    };
    let [left] = &left[..] else { panic!("{left:?}") };
    let Cause::Host(HostError::ScriptStuck { .. }) = &left.cause else { panic!("{left:?}") };
    assert!(left.cause.to_string().contains("may still be running"), "{left:?}");
    // Not a second copy beside the first one.
    assert_eq!(world.host.state().scripts.len(), before + 1);
    let domains = world.toolstack.list().unwrap();
    assert!(domains.iter().all(|domain| domain.domid != guest.domid && domain.domid != guest.stub_domid));
    world.host.scripts(Scripts::Run);
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("destroyed again");
}

#[test]
fn a_script_that_still_runs_is_not_started_again() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let before = world.host.state().scripts.len();
    world.host.scripts(Scripts::Stick);
    for toolstack in [world.toolstack.clone(), world.toolstack.clone(), world.successor()] {
        let Err(Error::NotClean { left, .. }) = toolstack.destroy(guest.id(), &mut |_| ()) else {
            panic!("a script is left")
        };
        assert!(left[0].cause.to_string().contains("(process 4711)"), "{left:?}");
        assert_eq!(world.host.state().scripts.len(), before + 1, "scripts that were started");
    }
    world.host.scripts(Scripts::Run);
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("destroyed when the script had ended");
}
