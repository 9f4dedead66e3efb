//! A running guest's virtual CPUs and its limit of memory, and what lists show of a guest.

use toolstack::{Error, GuestId, Pins, Toolstack};
use xen::CpuMap;
use xen_types::KiB;

use crate::change::{destroy, disk, guest_with, pins, with_guest};

fn refused(toolstack: &Toolstack, id: GuestId, pins: Pins, why: &str) {
    let error: Error = toolstack.pin_vcpus(id, pins, &mut |_| ()).unwrap_err();
    assert!(error.report().contains(why), "{}", error.report());
}

#[test]
fn only_what_is_meant_is_pinned() {
    let (world, guest) = with_guest();
    let pin = |pins| world.toolstack.pin_vcpus(guest.id(), pins, &mut |_| ()).unwrap();
    let hard = |vcpu| world.hypervisor.affinity(guest.domid, vcpu);
    let soft = |vcpu| world.hypervisor.soft_affinity(guest.domid, vcpu);
    let one = |cpu| Some(CpuMap::from_iter([cpu]));
    pin(pins(Some(1), Some("1"), None));
    assert_eq!([hard(0), hard(1), soft(0), soft(1)], [None, one(1), None, None]);
    pin(pins(None, None, Some("0")));
    assert_eq!([hard(0), hard(1), soft(0), soft(1)], [None, one(1), one(0), one(0)]);
    refused(&world.toolstack, guest.id(), pins(Some(2), Some("0"), None), "numbered from 0");
    refused(&world.toolstack, guest.id(), pins(None, Some("7"), None), "None of the CPUs");
    assert_eq!(hard(1), one(1), "a refused change has changed something");
    destroy(&world, &guest, "pins");
}

#[test]
fn vcpus_of_guest_and_stubdomain_are_listed() {
    let (world, guest) = with_guest();
    world.toolstack.pin_vcpus(guest.id(), pins(Some(0), Some("1"), None), &mut |_| ()).unwrap();
    let shown = world.toolstack.vcpus(guest.id()).unwrap();
    let domains: Vec<_> = shown.iter().map(|of| (of.name.as_str(), of.domid, of.vcpus.len())).collect();
    assert_eq!(domains, [("hello", guest.domid, 2), ("hello-dm", guest.stub_domid, 1)]);
    assert_eq!(shown[0].vcpus[0].hard.iter().collect::<Vec<_>>(), [1]);
    assert_eq!(shown[0].vcpus[0].soft.iter().collect::<Vec<_>>(), [0, 1]);
    destroy(&world, &guest, "vcpus");
}

#[test]
fn limit_of_memory_is_kept_until_the_guest_ends() {
    let (world, guest) = guest_with("maxmem=128");
    let (ts, id) = (&world.toolstack, guest.id());
    let limit = |mib| ts.set_max_memory(id, KiB::from_mib(mib), &mut |_| ()).map(drop);
    let set = |mib| ts.set_memory(id, KiB::from_mib(mib), &mut |_| ()).map(drop);
    let refused = |result: Result<(), Error>, why: &str| {
        let error = result.unwrap_err();
        assert!(error.report().contains(why), "{}", error.report());
    };
    refused(limit(129), "at most 128 MiB (maxmem)");
    refused(limit(63), "set that first");
    limit(96).unwrap();
    refused(set(97), "mem-max has limited the guest to 96 MiB");
    set(96).unwrap();
    limit(128).unwrap();
    set(128).unwrap();
    set(64).unwrap();
    limit(64).unwrap();
    let again =
        world.successor().restart(id, toolstack::Turn::new(0, std::time::Duration::ZERO), &mut |_| ());
    let again = again.unwrap();
    set(128).unwrap();
    destroy(&world, &again, "limits");
}

#[test]
fn guest_restarts_from_the_configuration_that_was_set_for_it() {
    let (world, guest) = with_guest();
    let (ts, id) = (&world.toolstack, guest.id());
    let load = |text: &str| config::load_str("x", &format!("type='hvm'\n{text}")).config.unwrap();
    for (wrong, why) in [
        ("name='other'\nmemory=96", "the guest's is hello"),
        ("name='hello'\nmemory=96\nuuid='00000000-0000-0000-0000-000000000001'", "keeps it"),
    ] {
        let error = ts.set_next_config(id, &load(wrong)).unwrap_err();
        assert!(error.report().contains(why), "{}", error.report());
    }
    let set = ts.set_next_config(id, &load("name='hello'\nmemory=96")).unwrap();
    assert_eq!(set, guest, "the running guest is as before");
    ts.rename(id, "renamed", &mut |_| ()).unwrap();
    let turn = toolstack::Turn::new(0, std::time::Duration::ZERO);
    let again = world.successor().restart(id, turn, &mut |_| ()).unwrap();
    assert_eq!((again.uuid, again.name.as_str()), (guest.uuid, "renamed"));
    assert_eq!((again.config.memory, again.config.disks.len()), (KiB::from_mib(96), 0));
    let third = world.successor().restart(id, turn, &mut |_| ()).unwrap();
    assert_eq!(third.config, again.config);
    destroy(&world, &third, "renewed");
}

#[test]
fn configuration_that_cannot_be_started_leaves_the_guest() {
    let (world, guest) = with_guest();
    let next = "type='hvm'\nname='hello'\nmemory=64\ndisk=['/nowhere.img,raw,hda,rw']";
    let next = config::load_str("x", next).config.unwrap();
    world.toolstack.set_next_config(guest.id(), &next).unwrap();
    let turn = toolstack::Turn::new(0, std::time::Duration::ZERO);
    let error = world.successor().restart(guest.id(), turn, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NotRestarted { .. }), "{}", error.report());
    assert_eq!(world.successor().guests().unwrap().len(), 1);
    destroy(&world, &guest, "not renewed");
}

#[test]
fn a_guest_is_listed_with_what_xl_has_of_it() {
    let (world, guest) = with_guest();
    let info = world.toolstack.domain_info(guest.domid, guest.uuid).unwrap().unwrap();
    let listing = world.toolstack.listing(&info).unwrap();
    assert_eq!((listing.flags.as_str(), listing.reason, listing.label), ("-b----", None, None));
    assert_eq!((listing.pool.as_str(), listing.nodes), ("Pool-0", vec![0]));
    assert!(listing.started.is_some_and(|started| started > 1_500_000_000));
    destroy(&world, &guest, "listing");
}

#[test]
fn channels_are_listed_with_their_numbers() {
    let channels = "channel = ['name=org.a,connection=pty', 'name=org.b,connection=socket,path=/run/b']";
    let (world, guest) = guest_with(channels);
    let shown = world.toolstack.channels(guest.id()).unwrap();
    let named: Vec<_> = shown.iter().map(|entry| (entry.number, entry.channel.name.as_str())).collect();
    assert_eq!(named, [(1, "org.a"), (2, "org.b")]);
    assert_eq!(shown[0].link.backend, format!("/local/domain/0/backend/console/{}/1", guest.domid));
    destroy(&world, &guest, "channels");
}

#[test]
fn a_processor_that_qemu_has_is_not_added_twice() {
    let (world, guest) = with_guest();
    let set = |vcpus| world.toolstack.set_vcpus(guest.id(), vcpus, &mut |_| ()).unwrap();
    for vcpus in [2, 2, 1, 2] {
        assert_eq!(set(vcpus).config.vcpus, vcpus);
        assert_eq!(world.qemu.state().1, 2);
    }
    destroy(&world, &guest, "processors");
}

#[test]
fn lists_show_what_the_guest_has() {
    let (world, guest) = with_guest();
    world.toolstack.attach_disk(guest.id(), &disk("/srv/extra.img,raw,xvdc,ro"), &mut |_| ()).unwrap();
    let disks = world.toolstack.disks(guest.id()).unwrap();
    let shown: Vec<_> = disks
        .iter()
        .map(|entry| (entry.disk.vdev.to_string(), entry.stub_vdev.map(|vdev| vdev.to_string())))
        .collect();
    let named = |text: &str, stub: Option<&str>| (text.to_owned(), stub.map(str::to_owned));
    assert_eq!(shown[0], named("hda", Some("xvda")));
    assert_eq!(shown.last().unwrap(), &named("xvdc", None));
    assert_eq!(disks[0].link.state, Some(xenbus::XenbusState::Connected));
    assert_eq!(disks[0].link.backend, format!("/local/domain/0/backend/vbd/{}/768", guest.domid));
    let nics = world.toolstack.nics(guest.id()).unwrap();
    assert_eq!((nics[0].bridge.as_str(), nics[0].emulated, nics[0].nic.devid), ("xenbr0", true, 0));
    let next =
        config::load_nic("vif", "bridge=xenbr0,mac=00:16:3e:00:00:09", Toolstack::NEXT_NIC).device.unwrap();
    for _ in 0..2 {
        let guest = world.toolstack.attach_nic(guest.id(), &next, &mut |_| ()).unwrap();
        assert_eq!(guest.config.nics.iter().map(|nic| nic.devid).collect::<Vec<_>>(), [0, 1, 2]);
    }
    destroy(&world, &guest, "lists");
}
