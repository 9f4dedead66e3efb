//! Daemons that are killed, and those that follow.

use api::types::{Guest, Refusal, State};
use serde_json::{Value, json};
use toolstack::CreateOptions;
use toolstack::host::Scripts;
use xen::ShutdownReason;

use super::world::{Mode, Service, World, config, eventually, failure, named, parameters};

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
    service.settle();
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
    let check = |service: &Service| {
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
fn restart_that_was_cut_off_before_its_last_step_is_ended() {
    let world = World::new();
    let shared = world.shared();
    let guest_config = config::load_str("hello.cfg", &config("")).config.unwrap();
    let options = CreateOptions { paused: true, ..CreateOptions::default() };
    let guest = shared.toolstack.create(&guest_config, options, &mut |_| ()).unwrap();
    let path = shared.toolstack.paths().guests().join(format!("{}.json", guest.uuid));
    let mut record: Value = serde_json::from_slice(&world.host.state().files[&path]).unwrap();
    let restart = json!({ "turn": { "row": 0, "due_ms": 0 }, "stage": "creating", "predecessor": null });
    record["operation"] =
        json!({ "kind": { "restart": restart }, "cursor": { "step": "start-guest", "way": "back" } });
    world.host.put_file(&path, record.to_string().as_bytes());
    let service = world.start();
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn paused_guest_stays_paused() {
    let world = World::new();
    let service = world.start();
    service.create("").unwrap();
    service.client().call::<_, serde_json::Value>("Pause", &named("hello")).unwrap();
    service.kill().unwrap();
    assert_eq!(world.start().get("hello").unwrap().state, State::Paused);
}

#[test]
fn destroy_that_was_cut_off_is_ended() {
    let world = World::new();
    let service = world.start();
    service.create("").unwrap();
    world.hypervisor.fail_operation("destroy_domain", xen::Errno::EIO);
    assert!(matches!(failure(service.destroy("hello")), Refusal::Failed { .. }));
    service.kill().unwrap();
    world.hypervisor.heal();
    let service = world.start();
    service.settle();
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

/// Kills the daemon after each call to Xen of a lifecycle, until that ends with the event `last`.
///
/// `prepare` comes before the lifecycle, `begin` starts it, `check` looks at the next daemon.
fn killed_after_each_call<T>(
    last: &str,
    prepare: impl Fn(&Service) -> T,
    begin: impl Fn(&World, &Service, &T),
    check: impl Fn(&mut Service, &T),
) {
    for n in 1.. {
        let world = World::new();
        let mut service = world.start();
        let prepared = prepare(&service);
        // What has happened so far.
        while service.events.heard(last) {}
        world.stubs.cut_at(n);
        begin(&world, &service, &prepared);
        let mut ended = false;
        eventually("the lifecycle is cut off or ends", || {
            ended = service.events.heard(last);
            ended || world.stubs.has_cut()
        });
        if ended {
            assert!(n > 4, "ended after {n} calls");

            return;
        }
        service.kill().unwrap();
        let mut service = world.start();
        service.settle();
        check(&mut service, &prepared);
        for guest in service.list() {
            service.destroy(&guest.name).unwrap();
        }
        world.check_clean();
    }
}

#[test]
fn create_that_is_cut_off_anywhere_leaves_a_guest_or_nothing() {
    let begin = |_: &World, service: &Service, (): &()| {
        let mut client = service.client();
        client.begin("Create", &parameters(&config(""))).unwrap();
    };
    killed_after_each_call("created", |_| (), begin, |service, ()| assert!(service.list().len() <= 1));
}

#[test]
fn destroy_that_is_cut_off_anywhere_is_ended() {
    let prepare = |service: &Service| {
        service.create("").unwrap();
    };
    let begin = |_: &World, service: &Service, (): &()| {
        service.client().begin("Destroy", &named("hello")).unwrap();
    };
    killed_after_each_call("destroyed", prepare, begin, |service, ()| assert_eq!(service.list(), []));
}

#[test]
fn restart_that_is_cut_off_anywhere_loses_no_guest() {
    let prepare = |service: &Service| service.create("on_reboot = \"restart\"").unwrap();
    let begin = |world: &World, _: &Service, guest: &Guest| world.end(guest.domid, ShutdownReason::Reboot);
    killed_after_each_call("created", prepare, begin, |service, guest| {
        eventually("the guest runs again", || {
            service.get("hello").is_ok_and(|again| again.state == State::Running && again.uuid == guest.uuid)
        });
    });
}

#[test]
fn rename_restart_that_is_cut_off_anywhere_loses_no_guest() {
    let prepare = |service: &Service| service.create("on_reboot = \"rename-restart\"").unwrap();
    let begin = |world: &World, _: &Service, guest: &Guest| world.end(guest.domid, ShutdownReason::Reboot);
    killed_after_each_call("created", prepare, begin, |service, guest| {
        eventually("a new guest runs", || {
            service.get("hello").is_ok_and(|new| new.state == State::Running && new.domid != guest.domid)
        });
        assert_eq!(service.get(&format!("hello-{}", guest.domid)).unwrap().uuid, guest.uuid);
    });
}

#[test]
fn script_that_hangs_in_recovery_does_not_delay_the_daemon() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    let other = config::load_str("o", "type=\"hvm\"\nname=\"other\"\nmemory=64").config.unwrap();
    let toolstack = service.shared.toolstack.clone();
    toolstack.create(&other, CreateOptions::default(), &mut |_| ()).unwrap();
    service.kill().unwrap();
    // The earlier daemon was killed while it destroyed a guest with a script.
    let path = toolstack.paths().guests().join(format!("{}.json", guest.uuid));
    let mut record: Value = serde_json::from_slice(&world.host.state().files[&path]).unwrap();
    record["operation"] = json!({ "kind": "destroy", "cursor": { "step": "", "way": "forward" } });
    let backend = format!("backend/vif/{}/0", guest.domid);
    record["scripts"] = json!([{ "script": "/s", "backend": backend, "args": ["offline"], "env": {} }]);
    world.host.put_file(&path, record.to_string().as_bytes());
    world.host.scripts(Scripts::Hang);
    let service = world.start();
    eventually("the script hangs", || !world.host.state().scripts.is_empty());
    let shown = |name: &str| service.get(name).map(|guest| (guest.domid, guest.state)).unwrap();
    assert_eq!(shown("hello"), (guest.domid, State::Destroying));
    assert_eq!(shown("other").1, State::Running);
    assert_eq!(service.list().len(), 2);
    assert!(matches!(failure(service.destroy("hello")), Refusal::Busy { .. }));
    world.host.scripts(Scripts::Run);
    service.settle();
    service.destroy("other").unwrap();
    world.check_clean();
}

#[test]
fn daemon_takes_guests_up_when_xen_answers_again() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    world.end(guest.domid, ShutdownReason::PowerOff);
    world.hypervisor.fail_operation("domain_info", xen::Errno::EAGAIN);
    let mut service = world.start();
    assert_eq!(service.list().len(), 1);
    service.events.expect_nothing();
    world.hypervisor.heal();
    service.events.expect(&["powered-off", "destroyed"]);
    world.check_clean();
}
