use toolstack::CreateOptions;
use xen::Hypervisor as _;

use crate::world::{Stubs, World};

fn other(disk: &str) -> config::GuestConfig {
    let text = format!("type=\"hvm\"\nname=\"other\"\nmemory=64\ndisk=[\"{disk}\"]");
    config::load_str("o", &text).config.unwrap()
}

#[test]
fn a_device_under_another_name_is_the_same_device() {
    let world = World::new(Stubs::Work);
    world.host.put_block("/dev/dm-7", 253, 7);
    let first = world.create().unwrap(); // has /dev/vg/b (253:7), rw
    let second =
        world.toolstack.create(&other("/dev/dm-7,raw,xvda,rw"), CreateOptions::default(), &mut |_| ());
    assert!(second.is_err(), "two guests write to block device 253:7 ({} and other)", first.name);
}

#[test]
fn a_running_guest_whose_state_file_is_of_another_release_keeps_its_disks() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let before = world.host.state().loops.len();
    let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
    let text = world.host.state().files[std::path::Path::new(&path)].clone();
    let text = String::from_utf8(text).unwrap().replacen("\"form\": 2", "\"form\": 3", 1);
    world.host.put_file(&path, text.as_bytes());
    let recovered = world.successor().recover(&mut |event| println!("{event:?}")).unwrap();
    assert_eq!(recovered.troubles.len(), 1);
    assert_eq!(world.host.state().loops.len(), before, "the loop devices of a running guest were detached");
}

#[test]
fn the_disk_of_a_guest_whose_state_file_cannot_be_read_is_not_free() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
    let text = world.host.state().files[std::path::Path::new(&path)].clone();
    let text = String::from_utf8(text).unwrap().replacen("\"form\": 2", "\"form\": 3", 1);
    world.host.put_file(&path, text.as_bytes());
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!((recovered.guests.len(), recovered.troubles.len()), (0, 1));
    let again =
        world.toolstack.create(&other("/dev/vg/b,raw,xvda,rw"), CreateOptions::default(), &mut |_| ());
    assert!(again.is_err(), "two running guests write to /dev/vg/b");
}

#[test]
fn recovery_does_not_destroy_a_guest_that_has_the_domids_of_an_old_record() {
    use xen::{DomainKind, DomainSpec};
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    // The host went down in the middle of a destroy.
    let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
    let text = world.host.state().files[std::path::Path::new(&path)].clone();
    let destroy = r#""operation": {"kind": "destroy", "cursor": {"step": "", "way": "forward"}}"#;
    let text = String::from_utf8(text).unwrap().replacen("\"operation\": null", destroy, 1);
    world.host.put_file(&path, text.as_bytes());
    for domid in [guest.stub_domid, guest.domid] {
        world.hypervisor.destroy_domain(domid).unwrap();
    }
    for (n, domid) in (1..).zip([guest.domid, guest.stub_domid]) {
        let mut spec = DomainSpec::new(DomainKind::Pv, [n; 16], 1);
        spec.domid = Some(domid);
        world.hypervisor.create_domain(&spec).unwrap();
    }
    let recovered = world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!((recovered.cleaned.len(), recovered.troubles.len()), (1, 0));
    for domid in [guest.domid, guest.stub_domid] {
        let info = world.hypervisor.domain_info(domid).unwrap();
        assert!(info.is_some_and(|info| !info.state.dying), "domain {domid} of another toolstack was killed");
    }
}

#[test]
fn two_records_with_one_domid_mean_the_guest_that_is_alive() {
    let world = World::new(Stubs::Work);
    let text = "type=\"hvm\"\nname=\"old\"\nuuid=\"00000000-0000-4000-8000-000000000001\"\nmemory=64";
    let old = config::load_str("o", text).config.unwrap();
    let old = world.toolstack.create(&old, CreateOptions::default(), &mut |_| ()).unwrap();
    let path = format!("/var/lib/outrigger/guests/{}.json", old.uuid);
    let text = String::from_utf8(world.host.state().files[std::path::Path::new(&path)].clone()).unwrap();
    // The host restarts, and so do its domids: the next guest gets those of the old one.
    for domid in [old.stub_domid, old.domid] {
        world.hypervisor.destroy_domain(domid).unwrap();
    }
    let guest = world.create().unwrap();
    let text = text
        .replacen(&format!("\"domid\": {}", old.domid), &format!("\"domid\": {}", guest.domid), 1)
        .replacen(
            &format!("\"stub_domid\": {}", old.stub_domid),
            &format!("\"stub_domid\": {}", guest.stub_domid),
            1,
        );
    world.host.put_file(&path, text.as_bytes());
    // Removing the old one, as the daemon does when it finds it gone, harms neither the guest nor its record.
    let nodes = || {
        let mut nodes = world.server.dump();
        nodes
            .retain(|path, _| [old.uuid, old.stub_uuid].iter().all(|uuid| !path.contains(&uuid.to_string())));
        nodes
    };
    let before = (nodes(), world.host.state().loops, world.host.state().ports);
    world.toolstack.destroy(old.id(), &mut |_| ()).unwrap();
    let state = world.host.state();
    let has_file = |guest: &toolstack::Guest| {
        let path = format!("/var/lib/outrigger/guests/{}.json", guest.uuid);
        state.files.contains_key(std::path::Path::new(&path))
    };
    assert!(!has_file(&old) && has_file(&guest));
    let there = world.hypervisor.domain_info(guest.domid).unwrap();
    assert!(there.is_some_and(|info| !info.state.dying && !info.state.paused));
    assert_eq!((nodes(), world.host.state().loops, world.host.state().ports), before);
}
