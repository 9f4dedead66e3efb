//! State files that are damaged, copied or of earlier releases, and interfaces that others have named like ours.

use std::path::PathBuf;

use serde_json::Value;
use toolstack::host::HostDevices as _;
use toolstack::{CreateOptions, Deadlines, Error, Event, Guest, Turn};
use xen::{Hypervisor as _, ShutdownReason};

use crate::strangers::create;
use crate::world::{Stubs, World, guest_config};

fn file_of(guest: &Guest) -> PathBuf {
    format!("/var/lib/outrigger/guests/{}.json", guest.uuid).into()
}

fn read(world: &World, guest: &Guest) -> Value {
    serde_json::from_slice(&world.host.state().files[&file_of(guest)]).unwrap()
}

fn put(world: &World, guest: &Guest, record: &Value) {
    world.host.put_file(file_of(guest), record.to_string().as_bytes());
}

#[test]
fn a_file_without_what_makes_the_guest_is_unreadable() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let whole = read(&world, &guest);
    for (place, key) in [
        ("/config", "memory"),
        ("/config", "disks"),
        ("/config/disks/0", "source"),
        ("/config/disks/0", "access"),
        ("/config/disks/0", "vdev"),
        ("/config/nics/0", "model"),
    ] {
        let mut record = whole.clone();
        let part = record.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
        assert!(part.remove(key).is_some(), "{place} {key}");
        put(&world, &guest, &record);
        assert!(world.toolstack.info(guest.id()).is_err(), "{place} {key}");
        assert_eq!(world.toolstack.unreadable().unwrap().len(), 1, "{place} {key}");
    }
}

#[test]
fn a_copy_of_a_state_file_is_reported_and_holds_nothing() {
    for name in ["x.json", "copy.bak.json"] {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        let copy = format!("/var/lib/outrigger/guests/{name}");
        world.host.put_file(&copy, read(&world, &guest).to_string().as_bytes());
        let listed = world.toolstack.unreadable().unwrap();
        assert_eq!((listed.len(), listed[0].uuid), (1, Some(guest.uuid)), "{name}");
        let text = listed[0].cause.chain();
        assert!(text.contains("is a copy") && text.contains("remove it or move it"), "{text}");
        let loops = world.host.state().loops.len();
        let recovered = world.successor().recover(&mut |_| ()).unwrap();
        assert_eq!((recovered.guests.len(), recovered.troubles.len()), (1, 1), "{name}");
        assert_eq!(world.host.state().loops.len(), loops, "{name}");
        world.toolstack.rename(guest.id(), "other", &mut |_| ()).unwrap();
        let again = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ());
        let again = again.unwrap_or_else(|error| panic!("{name}: {}", error.report()));
        assert_eq!(again.uuid, guest.uuid);
        // Without the guest's own file it may be the only file of a guest.
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        assert!(world.create().unwrap_err().report().contains(&copy), "{name}");
    }
}

#[test]
fn a_guest_without_a_recorded_boot_stays_known_when_its_domains_are_destroyed() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let mut record = read(&world, &guest);
    let boot = record.as_object_mut().unwrap().remove("boot");
    put(&world, &guest, &record);
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!((recovered.guests.len(), recovered.troubles.len()), (1, 0));
    assert_eq!(read(&world, &guest).get("boot"), boot.as_ref());
    for domid in [guest.domid, guest.stub_domid] {
        world.hypervisor.destroy_domain(domid).unwrap();
    }
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("destroyed");
}

#[test]
fn a_script_of_an_unknown_device_is_not_run() {
    for backend in ["", "backend/vbd", "backend/vbd/x/51776", "/local/domain/0/backend/vbd/1/51776"] {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        let mut record = read(&world, &guest);
        let scripts = record["scripts"].as_array_mut().unwrap();
        let others = scripts.len() - 1;
        scripts[0]["backend"] = backend.into();
        put(&world, &guest, &record);
        let before = world.host.state().scripts.len();
        let mut warnings = Vec::new();
        world
            .toolstack
            .destroy(guest.id(), &mut |event| {
                if let Event::Warning { text } = event {
                    warnings.push(text);
                }
            })
            .unwrap();
        assert_eq!(world.host.state().scripts.len() - before, others, "{backend:?}");
        assert_eq!(warnings.len(), 1, "{backend:?}: {warnings:?}");
    }
}

#[test]
fn an_interface_that_has_the_name_of_ours_is_left_alone() {
    let world = World::new(Stubs::Work);
    for domid in 1..20 {
        world.host.put_port(&format!("vif{domid}.0"), "vif99.0", "xenbr1");
    }
    let before = world.host.state().ports;
    let toolstack = world.toolstack.clone().with_deadlines(Deadlines::default().scaled(0.01));
    assert!(toolstack.create(&guest_config(), CreateOptions::default(), &mut |_| ()).is_err());
    assert_eq!(world.host.state().ports, before);
    let ours = toolstack::host::VifId::of_backend("backend/vif/3/0").unwrap();
    let bridge = "xenbr0".to_owned();
    let request = toolstack::host::PortRequest { vif: ours, rename: None, bridge, mtu: None };
    assert!(!world.host.has_interface(ours).unwrap() && world.host.add_port(&request).is_err());
    assert_eq!(world.host.state().ports, before);
}

#[test]
fn a_guest_that_could_not_be_created_again_is_not_destroyed_by_a_restart() {
    let world = World::new(Stubs::Work);
    let guest = create(&world, "type='hvm'\nname='x'\nmemory=64\ndisk=['/srv/a.img,raw,xvda,rw']").unwrap();
    world.hypervisor.guest_shuts_down(guest.domid, ShutdownReason::Reboot);
    let before = world.picture();
    world.host.put_loop("/srv/a.img".as_ref(), false, "");
    let error = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NotRestarted { .. }), "{error}");
    assert_eq!(world.picture().guests(), before.guests());
    assert!(world.hypervisor.domain_info(guest.domid).unwrap().is_some());
    // A missing file is known beforehand, too.
    world.host.detach_loop(&world.host.find_loops("").unwrap().pop().unwrap()).unwrap();
    for missing in [world.toolstack.paths().hvmloader[0].clone(), "/srv/a.img".into()] {
        let content = world.host.state().files[&missing].clone();
        world.forget_file(&missing);
        let error = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::NotRestarted { .. }), "{error}");
        world.host.put_file(&missing, &content);
    }
    let again = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
    assert_eq!(again.uuid, guest.uuid);
}

#[test]
fn a_restart_that_an_unreadable_file_would_block_destroys_nothing() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let text = world.host.state().files[&file_of(&guest)].clone();
    // The file of another guest was overwritten with this guest's.
    let other = "/var/lib/outrigger/guests/99999999-2222-4333-8444-555555555555.json";
    world.host.put_file(other, &text);
    let error = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NotRestarted { .. }), "{error}");
    assert!(world.hypervisor.domain_info(guest.domid).unwrap().is_some());
    world.forget_file(other.as_ref());
    world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
}

#[test]
fn restart_whose_create_fails_at_its_first_check_leaves_no_file() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    // Another toolstack creates a guest with the same UUID in between.
    let mut made = false;
    let again = world.toolstack.restart(guest.id(), Turn::default(), &mut |event| {
        if let Event::StepStarted { id: "check", .. } = event {
            made = true;
            let mut spec = xen::DomainSpec::new(xen::DomainKind::Pv, *guest.uuid.as_bytes(), 1);
            spec.domid = Some(xen_types::DomId::new(99).unwrap());
            world.hypervisor.create_domain(&spec).unwrap();
        }
    });
    assert!(made && matches!(&again, Err(Error::Step(failure)) if failure.id == "check"), "{again:?}");
    assert!(!world.host.state().files.contains_key(&file_of(&guest)));
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert!(recovered.guests.is_empty() && recovered.troubles.is_empty(), "{recovered:?}");
}
