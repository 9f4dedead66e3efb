//! Changes of devices that cannot be taken back wholly.

use toolstack::host::Scripts;
use toolstack::operation::{Faults, Side};
use toolstack::{Cause, Error, Event};

use crate::change::{destroy, disk, nic, with_guest};

const SCRIPT_DISK: &str = "script=block-x,vdev=xvdf,target=v:2";

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
    let faulty = world.toolstack.clone().with_faults(Faults::none().at("await-backend", Side::Before));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = faulty.attach_disk(guest.id(), &disk(SCRIPT_DISK), &mut |event| {
            if let Event::StepFailed { .. } = event {
                std::panic::resume_unwind(Box::new(()));
            }
        });
    }));
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
