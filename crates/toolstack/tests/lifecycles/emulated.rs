//! The emulated side of what is attached to a guest that does not use PV devices.

use toolstack::operation::{Faults, Side};
use toolstack::{Detach, Event, Guest, Toolstack};

use crate::change::{destroy, disk, guest_with, nic, vdev, with_guest, without_drivers};
use crate::world::{Drivers, World};

#[test]
fn a_guest_without_pv_drivers_gets_an_emulated_card_too() {
    let attach = |world: &World, guest: &Guest, ts: &Toolstack| {
        world.give_drivers(guest.domid, Drivers::None);
        ts.attach_nic(guest.id(), &nic("bridge=xenbr1,model=e1000"), &mut |_| ())
    };
    for step in Toolstack::attach_nic_steps() {
        for side in [Side::Before, Side::After] {
            let (world, guest) = with_guest();
            let before = world.picture();
            let faulty = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            attach(&world, &guest, &faulty).unwrap_err();
            world.picture().check_same(&before, step);
            assert_eq!(world.qemu.cards(), Vec::<String>::new(), "{step}");
            attach(&world, &guest, &world.toolstack).unwrap();
            assert_eq!(world.qemu.cards(), ["nic2"]);
            assert_eq!(world.host.state().ports.values().filter(|bridge| *bridge == "xenbr1").count(), 2);
            assert!(world.toolstack.nics(guest.id()).unwrap()[2].emulated);
            world.toolstack.detach_nic(guest.id(), 2, Detach::Ask, &mut |_| ()).unwrap();
            world.picture().check_same(&before, step);
            assert_eq!(world.qemu.cards(), Vec::<String>::new(), "{step}");
            destroy(&world, &guest, step);
        }
    }
}

#[test]
fn a_card_that_the_guest_still_holds_is_no_hindrance() {
    let (world, guest) = with_guest();
    world.give_drivers(guest.domid, Drivers::None);
    let attach = |ts: &Toolstack| ts.attach_nic(guest.id(), &nic("bridge=xenbr1,model=e1000"), &mut |_| ());
    let detach = |how| world.toolstack.detach_nic(guest.id(), 2, how, &mut |_| ());
    attach(&world.toolstack).unwrap();
    world.qemu.hold_cards(true);
    detach(Detach::Force).unwrap();
    assert_eq!(world.qemu.cards(), ["nic2"]);
    attach(&world.toolstack).unwrap();
    assert_eq!(world.qemu.cards(), ["nic2", "nic2.1"]);
    world.qemu.hold_cards(false);
    detach(Detach::Ask).unwrap();
    assert_eq!(world.qemu.cards(), ["nic2"]);
    // An attachment that fails before its card is plugged in asks nobody for the one that is held.
    let before = world.picture();
    let step = "plug-emulated";
    let faulty = world.toolstack.clone().with_faults(Faults::none().at(step, Side::Before));
    attach(&faulty).unwrap_err();
    world.picture().check_same(&before, step);
    assert_eq!(world.qemu.cards(), ["nic2"]);
    for _ in 0..16 {
        world.qemu.hold_cards(true);
        let before = world.picture();
        if let Err(refused) = attach(&world.toolstack) {
            assert!(refused.report().contains("reboot it"), "{}", refused.report());
            world.picture().check_same(&before, step);
            return destroy(&world, &guest, "held");
        }
        detach(Detach::Force).unwrap();
    }
    panic!("a card for every attachment: {:?}", world.qemu.cards());
}

#[test]
fn a_guest_that_cannot_unplug_gets_emulated_devices_also_when_it_listens() {
    let (world, guest) = guest_with("xen_platform_pci=0");
    world.give_drivers(guest.domid, Drivers::Stubborn);
    world.toolstack.attach_disk(guest.id(), &disk("/srv/extra.img,raw,sdc,rw"), &mut |_| ()).unwrap();
    world.toolstack.attach_nic(guest.id(), &nic("bridge=xenbr1,model=e1000"), &mut |_| ()).unwrap();
    assert_eq!(
        (world.qemu.scsi().0, world.qemu.cards()),
        (vec!["scsi-2080".to_owned()], vec!["nic2".to_owned()])
    );
    destroy(&world, &guest, "listens");
}

#[test]
fn what_is_said_of_a_disk_that_is_not_emulated() {
    let (world, guest) = with_guest();
    let said = |text: &str| {
        let mut said = Vec::new();
        let mut hear = |event| {
            if let Event::Warning { text } = event {
                said.push(text);
            }
        };
        world.toolstack.attach_disk(guest.id(), &disk(text), &mut hear).unwrap();
        said.join("; ")
    };
    assert_eq!(said("/srv/extra.img,raw,sda,rw"), "");
    assert_eq!(said("/srv/new.iso,raw,xvdc,ro"), "");
    let ide = said("script=block-x,vdev=hdb,target=v:4");
    assert!(ide.contains("hdb is only a PV disk until the guest is restarted"), "{ide}");
    world.give_drivers(guest.domid, Drivers::None);
    let unseen = said("script=block-x,vdev=xvdg,target=v:5");
    assert!(unseen.contains("no active PV drivers to use it"), "{unseen}");
    assert_eq!(world.qemu.scsi().0, Vec::<String>::new());
    destroy(&world, &guest, "said");
}

#[test]
fn an_emulated_disk_goes_by_force_alone_and_whatever_qemu_says() {
    let (world, guest) = without_drivers();
    let detach = |how| world.toolstack.detach_disk(guest.id(), vdev("sdb"), how, &mut |_| ());
    let report = detach(Detach::Ask).unwrap_err().report();
    assert!(report.contains("use --force once"), "{report}");
    world.qemu.break_down(true);
    detach(Detach::Force).unwrap();
    assert_eq!(world.qemu.scsi().0, ["scsi-2064"]);
    assert!(world.toolstack.disks(guest.id()).unwrap().iter().all(|entry| entry.disk.vdev != vdev("sdb")));
    // What QEMU still has is no hindrance to the next one.
    world.qemu.break_down(false);
    world.toolstack.attach_disk(guest.id(), &disk("/srv/extra.img,raw,sdb,rw"), &mut |_| ()).unwrap();
    assert_eq!(world.qemu.scsi().0, ["scsi-2064"]);
    destroy(&world, &guest, "by force");
}
