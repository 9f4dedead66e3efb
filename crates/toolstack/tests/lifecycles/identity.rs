//! A domid is not an identity: guests whose domids other domains have now.

use std::path::{Path, PathBuf};

use config::Uuid;
use toolstack::operation::{Faults, Side};
use toolstack::{CreateOptions, Guest, Toolstack, Turn};
use xen::{DomainKind, DomainSpec, Hypervisor as _};
use xen_types::DomId;
use xenstore::{Store as _, XsPath};

use crate::strangers::{
    Recording, Stranger, ask_everything, create, destroy_ours_as_xl, give_numbers_away, start_daemon,
};
use crate::world::{CONFIG, Stubs, World, guest_config};

const UUID: &str = "11111111-2222-4333-8444-555555555555";

fn file_of(guest: &Guest) -> PathBuf {
    format!("/var/lib/outrigger/guests/{}.json", guest.uuid).into()
}

fn read(world: &World, path: &Path) -> String {
    String::from_utf8(world.host.state().files[path].clone()).unwrap()
}

/// A guest whose domids strangers have now, with a recording that begins after that.
fn with_strangers(paused: bool) -> (World, Guest, Vec<Stranger>, Recording) {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    destroy_ours_as_xl(&world, &guest);
    let strangers = give_numbers_away(&world, &guest, paused);
    let recording = Recording::begin(&world);
    (world, guest, strangers, recording)
}

#[test]
fn nothing_is_done_to_the_domains_that_have_the_domids_now() {
    for paused in [false, true] {
        let (world, guest, strangers, recording) = with_strangers(paused);
        for (what, done) in ask_everything(&world, guest.id()) {
            assert!(!done, "{what} was done to a stranger");
        }
        recording.check(&world, &strangers, "all requests");
        assert!(world.toolstack.preserve_as(guest.id(), "aside").is_ok(), "only the record has the name");
        recording.check(&world, &strangers, "set aside");
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        recording.check(&world, &strangers, "destroyed");
        strangers.into_iter().for_each(|stranger| stranger.destroy(&world));
    }
}

#[test]
fn a_restart_creates_a_new_guest_and_spares_the_domains_that_have_the_domids_now() {
    let (world, guest, strangers, recording) = with_strangers(false);
    let again = world.toolstack.restart(guest.id(), Turn::default(), &mut |_| ()).unwrap();
    assert_eq!(again.uuid, guest.uuid);
    recording.check(&world, &strangers, "restarted");
    world.toolstack.destroy(again.id(), &mut |_| ()).unwrap();
    recording.check(&world, &strangers, "destroyed");
}

#[test]
fn a_destroy_that_fails_anywhere_spares_the_domains_that_have_the_domids_now() {
    for step in Toolstack::destroy_steps() {
        for side in [Side::Before, Side::After] {
            let (world, guest, strangers, recording) = with_strangers(true);
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
            recording.check(&world, &strangers, step);
        }
    }
}

#[test]
fn a_guest_from_another_boot_has_only_its_file() {
    let operations = [
        (
            "creating",
            r#"{"kind": {"create": {"paused": false}}, "cursor": {"step": "check", "way": "back"}}"#,
        ),
        ("running", "null"),
        ("destroying", r#"{"kind": "destroy", "cursor": {"step": "", "way": "forward"}}"#),
    ];
    for (phase, operation) in operations {
        let world = World::new(Stubs::Work);
        let old = create(&world, &format!("{CONFIG}\nuuid='{UUID}'")).unwrap();
        let text = read(&world, &file_of(&old)).replacen(
            "\"operation\": null",
            &format!("\"operation\": {operation}"),
            1,
        );
        world.host.put_file(file_of(&old), text.as_bytes());
        let world = world.reboot();
        // Another toolstack has created a guest from the same configuration: it has the same UUID and domids.
        let strangers = vec![
            Stranger::make(&world, old.domid, old.uuid, &old.name, false),
            Stranger::make(&world, old.stub_domid, Uuid::from_u128(5), "hello-dm", true),
        ];
        let recording = Recording::begin(&world);
        let recovered = start_daemon(&world);
        recording.check(&world, &strangers, phase);
        assert_eq!(recovered.ended.len(), 1, "{phase}: {recovered:?}");
        assert!(recovered.guests.is_empty() && recovered.troubles.is_empty(), "{phase}: {recovered:?}");
        assert!(!world.host.state().files.contains_key(&file_of(&old)), "{phase}");
        // Its name and its disks are free again, unless the strangers have them.
        strangers.into_iter().for_each(|stranger| stranger.destroy(&world));
        let again = create(&world, &format!("{CONFIG}\nuuid='{UUID}'")).unwrap();
        world.toolstack.destroy(again.id(), &mut |_| ()).unwrap();
    }
}

#[test]
fn a_guest_with_the_same_uuid_that_xl_created_is_not_ours() {
    let world = World::new(Stubs::Work);
    let guest = create(&world, &format!("{CONFIG}\nuuid='{UUID}'")).unwrap();
    destroy_ours_as_xl(&world, &guest);
    let domid = DomId::new(guest.stub_domid.get() + 7).unwrap();
    let strangers = vec![Stranger::make(&world, domid, guest.uuid, &guest.name, false)];
    let recording = Recording::begin(&world);
    start_daemon(&world);
    recording.check(&world, &strangers, "taken up");
    assert!(world.toolstack.guests().unwrap().is_empty());
}

#[test]
fn recovery_of_an_interrupted_create_spares_a_guest_that_xl_created_from_the_same_file() {
    let steps = Toolstack::create_steps().into_iter();
    for step in steps.take_while(|step| *step != "start-guest") {
        let world = World::new(Stubs::Work);
        let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, Side::After));
        let mut config = guest_config();
        config.uuid = Some(UUID.parse().unwrap());
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = toolstack.create(&config, CreateOptions::default(), &mut |event| {
                if let toolstack::Event::StepFailed { .. } = event {
                    std::panic::resume_unwind(Box::new(()));
                }
            });
        }));
        let strangers =
            vec![Stranger::make(&world, DomId::new(40).unwrap(), config.uuid.unwrap(), "hello", false)];
        let recording = Recording::begin(&world);
        start_daemon(&world);
        recording.check(&world, &strangers, step);
        strangers.into_iter().for_each(|stranger| stranger.destroy(&world));
        world.forget_file("/srv/stranger-40.img".as_ref());
        world.check_clean(step);
    }
}

#[test]
fn an_unreadable_file_frees_nothing_and_blocks_its_name_and_uuid() {
    for damage in ["form", "half", "empty", "value"] {
        let world = World::new(Stubs::Work);
        let guest = create(&world, &format!("{CONFIG}\nuuid='{UUID}'")).unwrap();
        let (path, text) = (file_of(&guest), read(&world, &file_of(&guest)));
        let damaged = match damage {
            "form" => text.replacen("\"form\": 2", "\"form\": 99", 1),
            "half" => text[..text.len() / 2].to_owned(),
            "empty" => String::new(),
            _ => text.replacen("\"operation\": null", "\"operation\": \"later\"", 1),
        };
        assert_ne!(damaged, text);
        world.host.put_file(&path, damaged.as_bytes());
        let before = (world.host.state().loops, world.server.dump());
        let recovered = world.successor().recover(&mut |_| ()).unwrap();
        assert_eq!((recovered.guests.len(), recovered.troubles.len()), (0, 1), "{damage}");
        assert_eq!((world.host.state().loops, world.server.dump()), before, "{damage}");
        let listed = world.toolstack.unreadable().unwrap();
        assert_eq!((listed.len(), listed[0].uuid), (1, Some(guest.uuid)), "{damage}");
        assert!(listed[0].cause.chain().contains("is left alone"), "{}", listed[0].cause.chain());
        for text in [CONFIG.to_owned(), format!("{CONFIG}\nuuid='{UUID}'\nname='other'")] {
            let error = create(&world, &text).unwrap_err().report();
            assert!(error.contains("taken") || error.contains("already used") || error.contains(UUID));
        }
        assert!(world.toolstack.destroy(guest.id(), &mut |_| ()).is_err(), "{damage}");
        // Once the file is restored, the guest is managed again.
        world.host.put_file(&path, text.as_bytes());
        assert_eq!(
            world.successor().recover(&mut |_| ()).unwrap().guests,
            std::slice::from_ref(&guest),
            "{damage}"
        );
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        world.check_clean(damage);
    }
}

/// State files that releases have written, one for each form and each set of keys.
const RELEASED: [(&str, &str); 3] = [
    ("form-1.json", include_str!("../records/form-1.json")),
    ("form-1-boot.json", include_str!("../records/form-1-boot.json")),
    ("form-2.json", include_str!("../records/form-2.json")),
];

#[test]
fn the_files_of_all_releases_are_read() {
    for (name, text) in RELEASED {
        let world = World::new(Stubs::Work);
        let guest = world.create().unwrap();
        // The domids and UUIDs of the fixture are set to those of the guest that runs here.
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        for (key, now) in [("uuid", guest.uuid), ("stub_uuid", guest.stub_uuid)] {
            value[key] = now.to_string().into();
        }
        let config = value["config"].clone();
        world.host.put_file(file_of(&guest), value.to_string().as_bytes());
        let recovered = world.successor().recover(&mut |_| ()).unwrap();
        assert!(recovered.troubles.is_empty(), "{name}: {:?}", recovered.troubles);
        assert_eq!(recovered.guests.len(), 1, "{name}");
        assert_eq!(recovered.guests[0].config.name, config["name"].as_str().unwrap(), "{name}");
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        world.check_clean(name);
        // After a reboot it is from another boot, whether it records that or not.
        world.host.put_file(file_of(&guest), value.to_string().as_bytes());
        let world = world.reboot();
        assert_eq!(world.successor().recover(&mut |_| ()).unwrap().ended.len(), 1, "{name}");
        // A domain with its UUID may be its own or not, unless the file records its boot.
        world.host.put_file(file_of(&guest), value.to_string().as_bytes());
        let strangers = vec![Stranger::make(&world, guest.domid, guest.uuid, "hello", false)];
        let recording = Recording::begin(&world);
        let recovered = start_daemon(&world);
        recording.check(&world, &strangers, name);
        let is_certain = value.get("boot").is_some();
        assert_eq!((recovered.troubles.is_empty(), recovered.guests.len()), (is_certain, 0), "{name}");
        assert_eq!(world.host.state().files.contains_key(&file_of(&guest)), !is_certain, "{name}");
    }
}

#[test]
fn what_another_domain_left_under_the_number_stays() {
    let (world, guest, strangers, _) = with_strangers(false);
    for stranger in &strangers {
        xen::Hypervisor::destroy_domain(&*world.hypervisor, stranger.domid).unwrap();
    }
    let nodes = |world: &World| {
        let mut nodes = world.server.dump();
        nodes.retain(|path, _| {
            [guest.uuid, guest.stub_uuid].iter().all(|uuid| !path.contains(&uuid.to_string()))
        });
        nodes
    };
    let before = (nodes(&world), world.host.state().ports);
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    assert!((nodes(&world), world.host.state().ports) == before, "something of another's is gone");
}

#[test]
fn a_loop_device_of_a_guest_that_runs_is_no_orphan_without_a_state_file() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    // As it is for a second daemon with another folder for its state.
    world.forget_file(&file_of(&guest));
    let before = world.host.state().loops;
    world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!(world.host.state().loops, before);
    assert!(!before.is_empty());
    // Nor is any while a file may be anybody's.
    destroy_ours_as_xl(&world, &guest);
    world.host.put_file("/var/lib/outrigger/guests/x.json", b"{");
    world.successor().recover(&mut |_| ()).unwrap();
    assert_eq!(world.host.state().loops, before);
    world.forget_file("/var/lib/outrigger/guests/x.json".as_ref());
    world.successor().recover(&mut |_| ()).unwrap();
    assert!(world.host.state().loops.is_empty());
}

#[test]
fn name_and_uuid_of_a_domain_that_is_dying_are_free() {
    let world = World::new(Stubs::Work);
    let mut config = guest_config();
    let uuid: Uuid = UUID.parse().unwrap();
    config.uuid = Some(uuid);
    let hvm = DomainKind::Hvm { hap: true, nested: false };
    let domid = world.hypervisor.create_domain(&DomainSpec::new(hvm, *uuid.as_bytes(), 1)).unwrap();
    // It holds on to the domain when that is destroyed.
    let holder = world.hypervisor.create_domain(&DomainSpec::new(DomainKind::Pv, [9; 16], 1)).unwrap();
    world.hypervisor.set_target(holder, domid).unwrap();
    let name = XsPath::domain(domid).join("name").unwrap();
    world.server.connect(DomId::DOM0).write(&name, b"hello").unwrap();
    let create = || world.toolstack.create(&config, CreateOptions::default(), &mut |_| ());
    assert!(create().unwrap_err().report().contains(UUID));
    world.hypervisor.destroy_domain(domid).unwrap();
    let info = world.hypervisor.domain_info(domid).unwrap();
    assert!(info.is_some_and(|info| info.state.dying));
    let guest = create().unwrap();
    assert_eq!((guest.uuid, guest.name.as_str()), (uuid, "hello"));
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
}
