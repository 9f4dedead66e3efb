//! How guests end, and what is done then.

use std::time::{Duration, Instant};

use api::types::{Guest, Refusal, State};
use serde_json::{Value, json};
use stubdom_abi::{DmKey, Feature};
use toolstack::Deadlines;
use xen::{Hypervisor, ShutdownReason};
use xen_types::DomId;
use xenstore::Store;

use super::world::{Service, World, eventually, failure, named};

/// A guest with this configuration, on its host.
fn running(more: &str) -> (World, Service, Guest) {
    let world = World::new();
    let mut service = world.start();
    let guest = service.create(more).unwrap();
    service.events.expect(&["created"]);
    (world, service, guest)
}

fn paused(world: &World, domid: DomId) -> bool {
    world.hypervisor.domain_info(domid).unwrap().unwrap().state.paused
}

#[test]
fn powered_off_guest_is_destroyed() {
    let (world, mut service, guest) = running("on_poweroff = \"destroy\"");
    world.end(guest.domid, ShutdownReason::PowerOff);
    let last = service.events.expect(&["powered-off", "destroyed"]);
    assert_eq!((last.name.as_str(), last.domid), ("hello", guest.domid));
    // Whoever hears of it finds it gone.
    assert_eq!(failure(service.get("hello")), Refusal::NoSuchGuest { guest: "hello".to_owned() });
    world.check_clean();
}

#[test]
fn rebooted_guest_is_made_again_with_its_uuid() {
    let (world, mut service, guest) = running("on_reboot = \"restart\"");
    world.end(guest.domid, ShutdownReason::Reboot);
    let last = service.events.expect(&["rebooted", "created"]);
    let again = service.get("hello").unwrap();
    assert_eq!((again.domid, again.state, &again.uuid), (last.domid, State::Running, &guest.uuid));
    assert_ne!(again.domid, guest.domid);
    assert_eq!(service.list().len(), 1);
    // And once more, after a second.
    world.end(again.domid, ShutdownReason::Reboot);
    service.events.expect(&["rebooted", "restart-delayed", "created"]);
    service.destroy("hello").unwrap();
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

/// A guest that has rebooted `times` times as soon as it ran. Its next restart waits.
fn rebooted(times: u32) -> (World, Service, Guest) {
    let (world, mut service, mut guest) = running("on_reboot = \"restart\"");
    for time in 1..=times {
        world.end(guest.domid, ShutdownReason::Reboot);
        let kinds = ["rebooted", "restart-delayed", "created"];
        match time {
            1 => service.events.expect(&["rebooted", "created"]),
            _ if time < times => service.events.expect(&kinds),
            _ => service.events.expect(&kinds[..2]),
        };
        guest = service.get("hello").unwrap();
    }
    (world, service, guest)
}

#[test]
fn guest_that_reboots_at_once_waits_for_its_restarts() {
    let begin = Instant::now();
    let (world, mut service, guest) = rebooted(3);
    // Without a wait, after one second, and after two.
    assert_eq!(guest.state, State::Restarting);
    assert_eq!(service.list()[0].state, State::Restarting);
    let last = service.events.expect(&["created"]);
    assert!(begin.elapsed() >= Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(service.get("hello").unwrap().domid, last.domid);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn guest_that_waits_for_its_restart_is_destroyed_at_once() {
    let (world, mut service, guest) = rebooted(3);
    let begin = Instant::now();
    let change = json!({ "guest": "hello", "vcpus": 1 });
    let refused = failure(service.client().call::<_, Value>("VcpuSet", &change));
    assert!(matches!(&refused, Refusal::Busy { lifecycle, .. } if lifecycle == "restart"), "{refused:?}");
    service.destroy("hello").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(service.events.expect(&["destroyed"]).domid, guest.domid);
    world.check_clean();
    // Its time comes, and nothing happens.
    std::thread::sleep(Duration::from_secs(3));
    service.events.expect_nothing();
    world.check_clean();
}

#[test]
fn guest_that_is_gone_while_it_waits_is_not_restarted() {
    let (world, mut service, guest) = rebooted(3);
    world.destroy_behind(&guest);
    service.events.expect(&["gone", "destroyed"]);
    world.check_clean();
}

#[test]
fn next_daemon_restarts_a_guest_that_waits_when_its_time_comes() {
    let (world, service, guest) = rebooted(3);
    let begin = Instant::now();
    let is_delayed = |text: &Vec<u8>| String::from_utf8_lossy(text).contains("\"delayed\"");
    eventually("the delay is recorded", || world.host.state().files.values().any(is_delayed));
    service.kill().unwrap();
    let mut service = world.start();
    service.events.expect(&["rebooted", "restart-delayed"]);
    assert_eq!(service.get("hello").unwrap().state, State::Restarting);
    let last = service.events.expect(&["created"]);
    // Two seconds since the guest ended, less what passed before `begin`; not two seconds once more after that.
    assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    let again = service.get("hello").unwrap();
    assert_eq!((again.domid, &again.uuid), (last.domid, &guest.uuid));
    world.end(again.domid, ShutdownReason::Reboot);
    let next = service.events.expect(&["rebooted", "restart-delayed"]);
    assert!(next.detail.starts_with("in 4 s"), "{}", next.detail);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn renamed_guest_is_kept_beside_its_successor() {
    let (world, mut service, guest) = running("on_crash = \"rename-restart\"");
    world.end(guest.domid, ShutdownReason::Crash);
    let last = service.events.expect(&["crashed", "preserved", "created"]);
    let kept = format!("hello-{}", guest.domid);
    let old = service.get(&kept).unwrap();
    assert_eq!((old.domid, old.state, old.uuid), (guest.domid, State::Crashed, guest.uuid));
    let new = service.get("hello").unwrap();
    assert_eq!((new.domid, new.state), (last.domid, State::Running));
    service.destroy(&kept).unwrap();
    assert_eq!(service.list(), [new]);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn preserved_guest_stays_until_it_is_destroyed() {
    let (world, mut service, guest) = running("on_poweroff = \"preserve\"");
    world.end(guest.domid, ShutdownReason::PowerOff);
    service.events.expect(&["powered-off", "preserved"]);
    assert_eq!(service.get("hello").unwrap().state, State::ShutDown);
    // Its name is not free, and news of other domains change nothing.
    assert!(matches!(failure(service.create("")), Refusal::NameTaken { .. }));
    world.end(guest.domid, ShutdownReason::PowerOff);
    service.destroy("hello").unwrap();
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

#[test]
fn preserved_guest_that_another_toolstack_destroys_is_cleared() {
    let (world, mut service, guest) = running("on_poweroff = \"preserve\"");
    world.end(guest.domid, ShutdownReason::PowerOff);
    service.events.expect(&["powered-off", "preserved"]);
    world.destroy_behind(&guest);
    service.events.expect(&["gone", "destroyed"]);
    assert_eq!(service.list(), []);
    world.check_clean();
}

#[test]
fn running_guest_that_another_toolstack_destroys_is_cleared() {
    let (world, mut service, guest) = running("");
    let stub = guest.stub_domid.unwrap();
    // The guest first: else it looks, rightly, as if its device model had died.
    for domid in [guest.domid, stub] {
        world.hypervisor.destroy_domain(domid).unwrap();
    }
    for domid in [guest.domid, stub] {
        world.server.destroy_domain(domid);
    }
    service.events.expect(&["gone", "destroyed"]);
    world.check_clean();
}

/// A guest whose stubdomain another program has destroyed. That program has `time` to destroy the guest too.
fn with_stub_destroyed(time: Duration, more: &str) -> (World, Service, DomId) {
    let world = World::new();
    let deadlines = Deadlines { orphaned: time, ..Deadlines::default() };
    let mut service = world.start_with(world.toolstack().with_deadlines(deadlines));
    let guest = service.create(more).unwrap();
    service.events.expect(&["created"]);
    let stub = guest.stub_domid.unwrap();
    world.hypervisor.destroy_domain(stub).unwrap();
    world.server.destroy_domain(stub);
    service.events.expect(&["dm-died"]);
    (world, service, guest.domid)
}

#[test]
fn other_toolstack_that_takes_the_stubdomain_first_may_take_the_guest() {
    let more = "on_device_model_crash = \"restart\"";
    let (world, mut service, guest) = with_stub_destroyed(Duration::from_secs(60), more);
    // Ours has not destroyed it, or this would fail as it would fail for `xl destroy`.
    world.hypervisor.destroy_domain(guest).unwrap();
    world.server.destroy_domain(guest);
    service.events.expect(&["gone", "destroyed"]);
    world.check_clean();
}

#[test]
fn other_toolstack_that_takes_the_guest_first_may_take_the_stubdomain() {
    let world = World::new();
    let deadlines = Deadlines { orphaned: Duration::from_secs(60), ..Deadlines::default() };
    let mut service = world.start_with(world.toolstack().with_deadlines(deadlines));
    let guest = service.create("").unwrap();
    service.events.expect(&["created"]);
    let destroy = |domid| {
        world.hypervisor.destroy_domain(domid).unwrap();
        world.server.destroy_domain(domid);
    };
    destroy(guest.domid);
    service.events.expect(&["gone"]);
    // Ours has not destroyed it, or this would fail as it would fail for `xl destroy`.
    destroy(guest.stub_domid.unwrap());
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

#[test]
fn guest_whose_stubdomain_alone_was_taken_is_not_left_without_one() {
    let (world, mut service, _) = with_stub_destroyed(Duration::from_millis(50), "");
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

#[test]
fn suspended_guest_is_told_once_and_left_alone() {
    let (world, mut service, guest) = running("");
    world.end(guest.domid, ShutdownReason::Suspend);
    service.events.expect(&["suspended"]);
    world.hypervisor.resume_domain(guest.domid, xen::ResumeWay::Cooperative).unwrap();
    world.end(DomId::DOM0, ShutdownReason::PowerOff);
    world.end(guest.domid, ShutdownReason::PowerOff);
    service.events.expect(&["powered-off", "destroyed"]);
}

#[test]
fn dead_device_model_destroys_the_guest_by_default() {
    let (world, mut service, guest) = running("");
    world.end(guest.stub_domid.unwrap(), ShutdownReason::Crash);
    service.events.expect(&["dm-died", "destroyed"]);
    world.check_clean();
}

#[test]
fn device_model_whose_heartbeat_is_lost_is_dead() {
    let world = World::new();
    let deadlines = Deadlines { heartbeat: Duration::from_millis(300), ..Deadlines::default() };
    let mut service = world.start_with(world.toolstack().with_deadlines(deadlines));
    let guest = service.create("").unwrap();
    let stub = guest.stub_domid.unwrap();
    let store = world.server.connect(DomId::DOM0);
    let write =
        |key: DmKey, value: &str| store.write(&key.path(stub, guest.domid), value.as_bytes()).unwrap();
    // One that promises no heartbeat is left alone.
    write(DmKey::AgentHeartbeat, "1");
    write(DmKey::Features, Feature::Heartbeat.word());
    service.events.expect(&["created", "dm-died", "destroyed"]);
    world.check_clean();
}

#[test]
fn dead_device_model_restarts_the_guest() {
    let (world, mut service, guest) = running("on_device_model_crash = \"restart\"");
    world.end(guest.stub_domid.unwrap(), ShutdownReason::Crash);
    service.events.expect(&["dm-died", "created"]);
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn dead_device_model_leaves_a_preserved_guest_paused() {
    let (world, mut service, guest) = running("on_device_model_crash = \"preserve\"");
    world.end(guest.stub_domid.unwrap(), ShutdownReason::Crash);
    service.events.expect(&["dm-died", "preserved"]);
    assert_eq!(service.get("hello").unwrap().state, State::DmDead);
    assert!(paused(&world, guest.domid));
    // A client had paused it before the successor looks: once is enough.
    service.kill().unwrap();
    let mut service = world.start();
    service.events.expect(&["dm-died", "preserved"]);
    world.hypervisor.unpause_domain(guest.domid).unwrap();
    assert!(!paused(&world, guest.domid));
    service.client().call::<_, serde_json::Value>("Pause", &named("hello")).unwrap();
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn failed_destroy_keeps_the_guest_for_another_try() {
    let (world, mut service, guest) = running("");
    world.hypervisor.fail_operation("destroy_domain", xen::Errno::EIO);
    let Refusal::Failed { message, hint, .. } = failure(service.destroy("hello")) else { panic!() };
    assert!(message.contains("not completely destroyed"), "{message}");
    assert!(hint.unwrap().contains("outrigger destroy"));
    service.events.expect(&["destroy-failed"]);
    assert_eq!(service.get("hello").unwrap().domid, guest.domid);
    world.hypervisor.heal();
    service.destroy("hello").unwrap();
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

#[test]
fn restart_that_cannot_destroy_keeps_the_guest_for_another_try() {
    let (world, mut service, guest) = running("");
    world.hypervisor.fail_operation("destroy_domain", xen::Errno::EIO);
    world.end(guest.domid, ShutdownReason::Reboot);
    service.events.expect(&["rebooted", "destroy-failed"]);
    world.hypervisor.heal();
    service.destroy("hello").unwrap();
    service.events.expect(&["destroyed"]);
    world.check_clean();
}

#[test]
fn restart_that_cannot_create_is_told() {
    let (world, mut service, guest) = running("");
    world.hypervisor.fail_operation("create_domain", xen::Errno::ENOMEM);
    world.end(guest.domid, ShutdownReason::Reboot);
    let told = service.events.expect(&["rebooted", "create-failed"]);
    assert!(told.detail.contains("make the guest's domain"), "{}", told.detail);
    service.events.expect(&["destroyed"]);
    world.check_clean();
}
