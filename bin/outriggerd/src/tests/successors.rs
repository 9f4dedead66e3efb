//! Daemons that are killed, and those that follow.

use api::types::{Failure, State};
use xen::ShutdownReason;

use super::world::{Mode, World, config, failure, parameters};

#[test]
fn running_guest_is_taken_up() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    let mut service = world.start();
    assert_eq!(service.list(), std::slice::from_ref(&guest));
    world.end(guest.domid, ShutdownReason::PowerOff);
    service.events.expect(&["powered-off", "destroyed"]);
    world.check_clean();
}

#[test]
fn end_while_there_was_no_daemon_is_acted_on() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    world.end(guest.domid, ShutdownReason::Reboot);
    let mut service = world.start();
    let last = service.events.expect(&["rebooted", "created"]);
    assert_eq!(service.get("hello").unwrap().domid, last.domid);
}

#[test]
fn half_made_guest_is_cleared() {
    let world = World::new();
    let service = world.start();
    world.stubs.set(Mode::Hold);
    let mut client = service.client();
    client.begin("Create", &parameters(&config(""))).unwrap();
    world.stubs.wait_started(1);
    service.kill().unwrap();
    world.stubs.abandon();
    let service = world.start();
    world.check_clean();
    assert_eq!(service.list(), []);
    service.create("").unwrap();
}

#[test]
fn restart_that_was_cut_off_goes_on() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    world.stubs.set(Mode::Hold);
    world.end(guest.domid, ShutdownReason::Reboot);
    world.stubs.wait_started(2);
    service.kill().unwrap();
    world.stubs.abandon();
    let mut service = world.start();
    service.events.expect(&["created"]);
    let again = service.get("hello").unwrap();
    assert_eq!((again.uuid, again.state), (guest.uuid, State::Running));
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn rename_restart_that_was_cut_off_goes_on_and_is_not_done_again() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("on_reboot = \"rename-restart\"").unwrap();
    world.stubs.set(Mode::Hold);
    world.end(guest.domid, ShutdownReason::Reboot);
    world.stubs.wait_started(2);
    service.kill().unwrap();
    world.stubs.abandon();
    let mut service = world.start();
    let last = service.events.expect(&["created"]);
    let kept = format!("hello-{}", guest.domid);
    let check = |service: &super::world::Service| {
        assert_eq!(service.get("hello").unwrap().domid, last.domid);
        let old = service.get(&kept).unwrap();
        assert_eq!((old.domid, old.state), (guest.domid, State::ShutDown));
        assert_eq!(service.list().len(), 2);
    };
    check(&service);
    // Neither by a later daemon.
    service.kill().unwrap();
    let mut service = world.start();
    check(&service);
    service.events.expect_nothing();
    service.destroy(&kept).unwrap();
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn destroy_that_was_cut_off_is_ended() {
    let world = World::new();
    let service = world.start();
    service.create("").unwrap();
    world.hypervisor.fail_operation("destroy_domain", xen::Errno::EIO);
    assert!(matches!(failure(service.destroy("hello")), Failure::Failed { .. }));
    service.kill().unwrap();
    world.hypervisor.heal();
    let service = world.start();
    assert_eq!(service.list(), []);
    world.check_clean();
}

#[test]
fn daemon_ends_with_an_error_when_xenstored_is_gone() {
    let world = World::new();
    let service = world.start();
    world.server.stop();
    let error = service.wait().unwrap_err();
    assert!(error.to_string().contains("connection to xenstored is lost"), "{error}");
}

#[test]
fn killed_daemon_leaves_a_socket_that_the_next_one_replaces() {
    let world = World::new();
    world.start().kill().unwrap();
    let service = world.start();
    assert_eq!(service.list(), []);
}
