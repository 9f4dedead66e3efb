//! Changes of devices that cannot be taken back wholly.

use toolstack::host::Scripts;
use toolstack::operation::{Faults, Side};
use toolstack::{Cause, CreateOptions, Error, Event, Toolstack};

use crate::change::{destroy, disk, nic, with_guest};
use crate::world::World;

const SCRIPT_DISK: &str = "script=block-x,vdev=xvdf,target=v:2";

/// A daemon that dies at a step: nothing is undone.
fn die_at(
    world: &World,
    step: &'static str,
    side: Side,
    work: impl FnOnce(&Toolstack, &mut dyn FnMut(Event)),
) {
    let faulty = world.toolstack.clone().with_faults(Faults::none().at(step, side));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        work(&faulty, &mut |event| {
            // The failed step is reported before its undo begins.
            if let Event::StepFailed { .. } = event {
                std::panic::resume_unwind(Box::new(()));
            }
        });
    }));
}

#[test]
fn what_cannot_be_undone_blocks_no_other_change() {
    let (world, guest) = with_guest();
    world.host.scripts(Scripts::Stick);
    let attached = world.toolstack.attach_disk(guest.id(), &disk(SCRIPT_DISK), &mut |_| ());
    let Err(Error::Step(failure)) = attached else { panic!("{attached:?}") };
    assert!(failure.undo.iter().any(|left| left.id == "run-script"), "{failure:?}");
    // Its record says so, and nobody has to end it first.
    world.toolstack.attach_nic(guest.id(), &nic("bridge=xenbr1"), &mut |_| ()).unwrap();
    world.host.scripts(Scripts::Run);
    destroy(&world, &guest, "after a script that could not be undone");
}

#[test]
fn change_of_a_killed_daemon_that_cannot_be_ended_is_named_and_ended_later() {
    let (world, guest) = with_guest();
    die_at(&world, "await-backend", Side::Before, |toolstack, events| {
        let _ = toolstack.attach_disk(guest.id(), &disk(SCRIPT_DISK), events);
    });
    let successor = world.successor();
    world.host.scripts(Scripts::Stick);
    let wanted = nic("bridge=xenbr1");
    for _ in 0..2 {
        let attached = successor.attach_nic(guest.id(), &wanted, &mut |_| ());
        let Err(Error::Cause(Cause::EarlierChange(_))) = attached else { panic!("{attached:?}") };
    }
    world.host.scripts(Scripts::Run);
    let before = world.host.state().scripts.len();
    successor.attach_nic(guest.id(), &wanted, &mut |_| ()).unwrap();
    // The script for the disk was run back, once.
    assert_eq!(world.host.state().scripts.len(), before + 1);
    destroy(&world, &guest, "after a change that was ended later");
}

#[test]
fn name_that_the_undo_of_a_rename_gives_back_is_not_free() {
    let (world, guest) = with_guest();
    die_at(&world, "write-names", Side::After, |toolstack, events| {
        let _ = toolstack.rename(guest.id(), "other", events);
    });
    let successor = world.successor();
    let text = format!("type = 'hvm'\nname = '{}'\nmemory = 64", guest.name);
    let config = config::load_str("second.cfg", &text).config.unwrap();
    let created = successor.create(&config, CreateOptions::default(), &mut |_| ());
    let Err(Error::Step(failure)) = created else { panic!("{created:?}") };
    assert!(matches!(&failure.cause, Cause::NameTaken { name, .. } if *name == guest.name), "{failure:?}");
    let settled = successor.settle_change(guest.id(), &mut |_| ()).unwrap().unwrap();
    assert_eq!(settled.name, guest.name);
    destroy(&world, &guest, "after the undo of a rename");
}

#[test]
fn interface_stays_on_its_bridge_when_the_one_before_was_deleted() {
    let (world, guest) = with_guest();
    die_at(&world, "move-device-model", Side::Before, |toolstack, events| {
        let _ = toolstack.set_bridge(guest.id(), 0, "xenbr1", events);
    });
    world.host.delete_bridge("xenbr0");
    let successor = world.successor();
    let mut warnings = Vec::new();
    let mut listen = |event| match event {
        Event::Warning { text } => warnings.push(text),
        Event::StepStarted { id, .. } => assert!(Toolstack::attach_nic_steps().contains(&id), "{id}"),
        _ => {}
    };
    successor.attach_nic(guest.id(), &nic("bridge=xenbr1"), &mut listen).unwrap();
    let expected = [
        format!(
            "vif{}.0 of the guest hello is on no bridge: its bridge xenbr0 was deleted",
            guest.stub_domid
        ),
        format!("vif{}.0 of the guest hello stays on xenbr1: its bridge xenbr0 was deleted", guest.domid),
    ];
    let expected = expected.map(|what| format!("The interface {what}"));
    assert_eq!(warnings, expected);
    let nics = successor.nics(guest.id()).unwrap();
    assert_eq!((nics[0].nic.devid, nics[0].bridge.as_str()), (0, "xenbr1"));
    assert!(world.host.state().ports.values().all(|bridge| bridge == "xenbr1"));
    destroy(&world, &guest, "after its bridge was deleted");
}
