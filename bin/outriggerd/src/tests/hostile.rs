//! Domids that other domains have after a guest is gone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::types::{Guests, Refusal, State};
use config::Uuid;
use serde_json::json;
use stubdom_abi::DmKey;
use toolstack::host::HostDevices as _;
use xen::{DomainKind, DomainSpec, Hypervisor as _};
use xen_types::DomId;
use xenstore::{Store as _, XsPath};

use super::world::{World, failure};
use crate::dial::{Dial as _, HostDial, Place};

#[test]
fn domains_that_reuse_the_domids_of_a_gone_guest_are_not_destroyed() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    // The host restarts: all domains are gone, domids start again, and another toolstack gets them first.
    world.destroy_behind(&guest);
    let numbers = [guest.domid, guest.stub_domid.unwrap()];
    for (n, domid) in (1..).zip(numbers) {
        stranger(&world, domid, [n; 16]);
    }
    let before = world.hypervisor.operations().len();
    let mut service = world.start();
    service.events.expect(&["gone", "destroyed"]);
    let done: Vec<_> = world.hypervisor.operations()[before..]
        .iter()
        .filter(|o| o.name == "destroy_domain" || o.name == "pause_domain")
        .map(|o| (o.name, o.domid, o.done))
        .collect();
    for domid in numbers {
        let info = world.hypervisor.domain_info(domid).unwrap();
        assert!(info.is_some_and(|info| !info.state.dying), "domain {domid} of another toolstack was killed");
    }
    assert_eq!(done, []);
}

/// A domain of another toolstack with this domid.
fn stranger(world: &World, domid: DomId, uuid: [u8; 16]) {
    let mut spec = DomainSpec::new(DomainKind::Pv, uuid, 1);
    spec.domid = Some(domid);
    world.hypervisor.create_domain(&spec).unwrap();
}

fn read(world: &World, path: &Path) -> String {
    String::from_utf8(world.host.read_file(path, 1 << 20).unwrap()).unwrap()
}

fn state_file(world: &World) -> std::path::PathBuf {
    let files = world.host.state().files;
    files.into_keys().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap()
}

#[test]
fn domid_means_a_guest_only_while_its_domain_has_it() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("on_poweroff = \"preserve\"").unwrap();
    assert_eq!(service.get(&guest.domid.to_string()).unwrap().uuid, guest.uuid);
    assert_eq!(service.get(&guest.uuid).unwrap().domid, guest.domid);
    // The daemon is not notified that the guest has ended and its domid is reused.
    for domid in [guest.stub_domid, Some(guest.domid)].into_iter().flatten() {
        world.hypervisor.destroy_domain(domid).unwrap();
    }
    stranger(&world, guest.domid, [9; 16]);
    let before = world.hypervisor.operations().len();
    let refused = failure(service.destroy(&guest.domid.to_string()));
    assert!(matches!(refused, Refusal::NoSuchGuest { .. }), "{refused:?}");
    for method in ["Pause", "Unpause", "Shutdown"] {
        let mut client = service.client();
        let asked = client.call::<_, serde_json::Value>(method, &super::world::named("hello"));
        assert!(asked.is_err(), "{method}");
    }
    service.destroy("hello").unwrap();
    let done: Vec<_> = world.hypervisor.operations()[before..]
        .iter()
        .filter(|call| call.domid == Some(guest.domid) && call.name != "domain_info")
        .map(|call| call.name)
        .collect();
    assert_eq!(done, [""; 0]);
    assert!(world.hypervisor.domain_info(guest.domid).unwrap().is_some());
}

#[test]
fn guest_from_another_boot_is_gone_with_its_file() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    world.destroy_behind(&guest);
    world.host.reboot();
    // xl has created a guest from the same configuration.
    let uuid: Uuid = guest.uuid.parse().unwrap();
    stranger(&world, guest.domid, *uuid.as_bytes());
    let before = world.hypervisor.operations().len();
    let service = world.start();
    assert_eq!(service.list(), []);
    let acted = world.hypervisor.operations()[before..]
        .iter()
        .any(|call| call.domid == Some(guest.domid) && call.name != "domain_info");
    assert!(!acted, "{:?}", &world.hypervisor.operations()[before..]);
    assert!(world.host.state().files.keys().all(|path| path.extension().is_none_or(|end| end != "json")));
}

#[test]
fn unreadable_state_file_is_listed_with_what_to_do() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    let path = state_file(&world);
    let text = read(&world, &path);
    world.host.put_file(&path, text.replacen("\"form\": 2", "\"form\": 7", 1).as_bytes());
    let service = world.start();
    let Guests { guests, unreadable, .. } = service.client().call("List", &json!({})).unwrap();
    assert_eq!((guests.len(), unreadable.len()), (0, 1));
    let file = &unreadable[0];
    assert_eq!((file.uuid.as_deref(), file.name.as_deref()), (Some(guest.uuid.as_str()), Some("hello")));
    assert_eq!(file.domid, Some(guest.domid));
    assert!(file.problem.contains("format 7") && file.problem.contains("Install"), "{}", file.problem);
    let error = format!("{:?}", failure(service.create("")));
    assert!(error.contains("taken") || error.contains("NameTaken"), "{error}");
    service.kill().unwrap();
    world.host.put_file(&path, text.as_bytes());
    let service = world.start();
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn stubdomain_is_not_contacted_under_a_reused_domid() {
    let world = World::new();
    let (stub, target) = (DomId::new(2).unwrap(), DomId::new(1).unwrap());
    stranger(&world, stub, [9; 16]);
    let store = world.server.connect(DomId::DOM0);
    store.mkdir(&XsPath::new("/local/domain/2/device-model/1/qmp-vchan").unwrap()).unwrap();
    let dial = HostDial::new(Arc::clone(&world.hypervisor) as _, store, Path::new("/nonexistent"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for console in [None, Some(stubdom_abi::QmpConsole::behind(0).unwrap())] {
        let place = Place { stub, stub_uuid: Uuid::from_u128(1), target, console };
        let error = runtime.block_on(dial.dial(place)).err().unwrap();
        assert!(error.to_string().contains("domain 2 is no longer the stubdomain"), "{error}");
    }
}

#[test]
fn stubdomain_that_writes_without_end_is_asked_now_and_then() {
    const SECONDS: u64 = 3;
    let world = World::new();
    let (stub, target) = (DomId::new(2).unwrap(), DomId::new(1).unwrap());
    stranger(&world, stub, [9; 16]);
    let dom0 = world.server.connect(DomId::DOM0);
    let dir = stubdom_abi::paths::device_model_dir(stub, target);
    dom0.mkdir(&dir).unwrap();
    dom0.set_perms(&dir, &stubdom_abi::paths::device_model_permissions(stub, target)).unwrap();
    let hostile = world.server.connect(stub);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = std::thread::spawn(move || {
        let key = DmKey::QmpVchan.path(stub, target).join("x").unwrap();
        while !stopped.load(Ordering::Relaxed) {
            hostile.write(&key, b"1").unwrap();
        }
    });
    let before = world.server.requests_of(DomId::DOM0);
    let dial = HostDial::new(Arc::clone(&world.hypervisor) as _, dom0, Path::new("/nonexistent"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = Place { stub, stub_uuid: Uuid::from_bytes([9; 16]), target, console: None };
    let dialed = runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(SECONDS), dial.dial(place)).await });
    assert!(dialed.is_err(), "nobody serves it");
    let asked = world.server.requests_of(DomId::DOM0) - before;
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert!(asked < 50 * SECONDS, "{asked} requests of dom0 in {SECONDS} s");
}

#[test]
fn guest_that_cannot_be_created_again_is_kept_when_it_reboots() {
    let world = World::new();
    let mut service = world.start();
    let guest = service.create("on_reboot = \"restart\"").unwrap();
    service.events.expect(&["created"]);
    world.host.remove_file(&world.toolstack().paths().hvmloader[0]).unwrap();
    world.end(guest.domid, xen::ShutdownReason::Reboot);
    let failed = service.events.expect(&["rebooted", "create-failed", "preserved"]);
    assert_eq!(failed.uuid, guest.uuid);
    assert_eq!(service.get("hello").unwrap().uuid, guest.uuid);
    assert!(world.hypervisor.domain_info(guest.domid).unwrap().is_some());
    service.destroy("hello").unwrap();
}
