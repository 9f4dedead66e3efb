use std::time::{Duration, Instant};

use toolstack::host::Scripts;
use toolstack::operation::{Faults, Side};
use toolstack::{Cause, CreateOptions, Error, Event, Toolstack};
use xen::Hypervisor as _;
use xen_types::{DomId, KiB};
use xenstore::{Store as _, XsPath};

use crate::world::{Stubs, World, guest_config};

fn step_of(error: &Error) -> &'static str {
    match error {
        Error::Step(failure) => {
            assert!(failure.undo.is_empty(), "{}", error.report());
            failure.id
        }
        other => panic!("not a step's failure: {}", other.report()),
    }
}

#[test]
fn a_guest_is_made_and_started_last() {
    let world = World::new(Stubs::Work);
    let mut finished = Vec::new();
    let guest = world
        .toolstack
        .create(&guest_config(), CreateOptions::default(), &mut |event| {
            if let Event::StepFinished { id: step, .. } = event {
                finished.push(step);
            }
        })
        .unwrap();
    assert_eq!(finished, Toolstack::create_steps());
    assert_eq!(world.hypervisor.target(guest.stub_domid), Some(guest.domid));
    let unpaused: Vec<_> =
        world.hypervisor.operations().into_iter().filter(|o| o.name == "unpause_domain").collect();
    assert_eq!(unpaused.len(), 2);
    assert_eq!(unpaused.last().unwrap().domid, Some(guest.domid));
    assert_eq!(world.host.state().loops.len(), 1);
    assert_eq!(world.host.state().ports.len(), 2);
}

#[test]
fn a_stubdomain_with_qmp_on_a_console_has_that_console_and_is_told() {
    let world = World::new(Stubs::Work);
    let mut config = guest_config();
    config.device_model.qmp = config::QmpTransport::Console;
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    let stub = guest.stub_domid;
    let store = world.server.connect(DomId::DOM0);
    let read = |path: String| {
        let value = store.read(&XsPath::new(path).unwrap()).unwrap().expect("the key is there");
        String::from_utf8(value).unwrap()
    };
    // Two serial ports are before it.
    let key = |key: &str| read(format!("/local/domain/0/backend/console/{stub}/5/{key}"));
    assert_eq!((key("output").as_str(), key("log").as_str()), ("null", "none"));
    let vm = read(format!("/local/domain/{stub}/vm"));
    let cmdline = read(format!("{vm}/image/cmdline"));
    assert!(stubdom_abi::has_word(&cmdline, stubdom_abi::QMP_CONSOLE_WORD), "{cmdline}");
    let arguments = read(format!("/vm/{}/image/dmargs", guest.uuid));
    assert!(arguments.contains("serial,id=outrigger-console,path=/dev/hvc5"), "{arguments}");
}

#[test]
fn a_paused_guest_is_not_started() {
    let world = World::new(Stubs::Work);
    let options = CreateOptions { paused: true, ..CreateOptions::default() };
    let guest = world.toolstack.create(&guest_config(), options, &mut |_| ()).unwrap();
    let info = world.toolstack.info(guest.id()).unwrap();
    assert!(info.domain.unwrap().state.paused);
    world.toolstack.unpause(guest.id()).unwrap();
    assert!(!world.toolstack.info(guest.id()).unwrap().domain.unwrap().state.paused);
}

#[test]
fn an_ovmf_without_xens_part_is_warned_of() {
    let world = World::new(Stubs::Work);
    let mut config = guest_config();
    config.firmware.kind = config::FirmwareKind::Ovmf;
    for (content, warned) in [(b"_FVH", true), (b"\x7fELF", false)] {
        world.put_firmware("ovmf", content);
        let mut warnings = Vec::new();
        let mut listen = |event| {
            if let Event::Warning { text } = event {
                warnings.push(text);
            }
        };
        let guest = world.toolstack.create(&config, CreateOptions::default(), &mut listen).unwrap();
        world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
        assert_eq!(warnings.iter().any(|text| text.contains("bios_path_override")), warned, "{warnings:?}");
    }
}

#[test]
fn a_taken_name_is_refused_and_the_first_guest_keeps_running() {
    let world = World::new(Stubs::Work);
    let guest = world.create().unwrap();
    let error = world.create().unwrap_err();
    assert_eq!(step_of(&error), "check");
    assert!(error.report().contains("hello is taken by domain 1"), "{}", error.report());
    world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
    world.check_clean("a second guest of the same name");
}

#[test]
fn too_little_memory_is_said_before_anything_is_made() {
    let world = World::new(Stubs::Work);
    let mut config = guest_config();
    config.memory = KiB::from_mib(9000);
    config.max_memory = config.memory;
    let error = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap_err();
    assert!(
        matches!(&error, Error::Step(f) if matches!(f.cause, Cause::Memory { .. })),
        "{}",
        error.report()
    );
    world.check_clean("too little memory");
}

#[test]
fn a_missing_disk_names_the_disk() {
    let world = World::new(Stubs::Work);
    let text = "type=\"hvm\"\nname=\"x\"\nmemory=64\ndisk=[\"/srv/none.img,raw,hda,rw\"]";
    let config = config::load_str("x", text).config.unwrap();
    let error = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap_err();
    assert!(
        error.report().contains("Disk hda: The disk image /srv/none.img is missing"),
        "{}",
        error.report()
    );
    world.check_clean("a missing disk");
}

#[test]
fn a_disk_that_a_running_guest_writes_is_refused_until_that_guest_has_ended() {
    let world = World::new(Stubs::Work);
    let first = world.create().unwrap();
    let text = "type=\"hvm\"\nname=\"x\"\nmemory=64\ndisk=[\"/srv/a.img,raw,sda,r\"]";
    let config = config::load_str("x", text).config.unwrap();
    let create = || world.toolstack.create(&config, CreateOptions::default(), &mut |_| ());
    let error = create().unwrap_err();
    assert!(error.report().contains("/srv/a.img is in use by the guest hello"), "{}", error.report());
    world.hypervisor.guest_shuts_down(first.domid, xen::ShutdownReason::Crash);
    create().unwrap();
}

#[test]
fn a_stubdomain_that_dies_ends_the_wait_at_once_with_its_last_words() {
    let world = World::new(Stubs::Die);
    let log = world.toolstack.paths().console_log("hello-dm", 0);
    world.host.put_file(&log, b"starting\nKernel panic\n");
    let error = world.create().unwrap_err();
    assert_eq!(step_of(&error), "await-device-model");
    assert!(error.report().ends_with("  | starting\n  | Kernel panic"), "{}", error.report());
    world.forget_file(&log);
    world.check_clean("a stubdomain that dies");
}

#[test]
fn a_silent_stubdomain_is_given_up_at_the_deadline() {
    let world = World::new(Stubs::Hang);
    let error = world.create().unwrap_err();
    assert!(
        matches!(&error, Error::Step(f) if matches!(f.cause, Cause::DeviceModelTimeout { .. })),
        "{}",
        error.report()
    );
    world.check_clean("a silent stubdomain");
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    for step in Toolstack::create_steps() {
        for side in [Side::Before, Side::After] {
            let world = World::new(Stubs::Work);
            let toolstack = world.toolstack.clone().with_faults(Faults::none().at(step, side));
            let error = toolstack.create(&guest_config(), CreateOptions::default(), &mut |_| ()).unwrap_err();
            assert_eq!(step_of(&error), step);
            world.check_clean(&format!("a failure {side:?} \"{step}\""));
        }
    }
}

#[test]
fn a_failure_of_any_hypervisor_call_leaves_nothing() {
    for n in 1.. {
        let world = World::new(Stubs::Work);
        world.hypervisor.fail_nth_call(n);
        match world.create() {
            Ok(_) => return assert!(n > 25, "only {n} calls"),
            Err(error) => step_of(&error),
        };
        world.hypervisor.heal();
        world.check_clean(&format!("failure of hypervisor call {n}"));
    }
}

#[test]
fn a_failure_of_any_host_call_leaves_nothing() {
    for n in 1.. {
        let world = World::new(Stubs::Work);
        world.host.fail_at(n);
        match world.create() {
            Ok(_) => return assert!(n > 15, "only {n} calls"),
            // The boot ID and the guest's UUIDs are requested before the first step.
            Err(Error::Cause(Cause::Host(_))) if n <= 3 => {}
            Err(error) => drop(step_of(&error)),
        }
        world.check_clean(&format!("failure of host call {n}"));
    }
}

/// The requests, split over some tests that run at the same time.
fn check_requests(part: u64, parts: u64) {
    let mut made = 0;
    for n in (part + 1..).step_by(usize::try_from(parts).unwrap()) {
        let world = World::new(Stubs::Work);
        world.link.fail_nth(n);
        match world.create_small() {
            // A request whose failure does no harm: ending a watch.
            Ok(guest) if world.link.seen() >= n => {
                world.toolstack.destroy(guest.id(), &mut |_| ()).unwrap();
            }
            Ok(_) => break,
            Err(error) => {
                step_of(&error);
            }
        }
        world.check_clean(&format!("failure of xenstore request {n}"));
        made += 1;
    }
    assert!(made * parts > 100, "only {made} requests");
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_nothing_0() {
    check_requests(0, 4);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_nothing_1() {
    check_requests(1, 4);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_nothing_2() {
    check_requests(2, 4);
}

#[test]
fn a_failure_of_any_xenstore_request_leaves_nothing_3() {
    check_requests(3, 4);
}

#[test]
fn xenstored_gone_is_said_and_domains_do_not_stay() {
    let world = World::new(Stubs::Work);
    world.server.stop();
    let error = world.create().unwrap_err();
    assert!(error.report().contains("xenstored"), "{}", error.report());
    assert_eq!(world.hypervisor.leftovers(), Vec::<String>::new());
    assert_eq!(world.hypervisor.operations().iter().filter(|o| o.domid == Some(DomId::DOM0)).count(), 0);
}

#[test]
fn local_time_moves_the_guests_clock_by_dom0s_time_zone() {
    let check = |line: &str, zone: i32, moved: bool| {
        let world = World::new(Stubs::Work);
        world.host.put_utc_offset(zone);
        let text = format!("type=\"hvm\"\nname=\"x\"\nmemory=64\n{line}");
        let config = config::load_str("x", &text).config.unwrap();
        world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
        let set = world.hypervisor.operations().iter().any(|o| o.name == "set_time_offset");
        assert_eq!(set, moved, "{line} {zone}");
    };
    check("localtime=1", 3600, true);
    check("localtime=1\nrtc_timeoffset=\"-3600\"", 3600, false);
    check("localtime=0", 3600, false);
    check("rtc_timeoffset=60", 0, true);
}

#[test]
fn vcpus_are_kept_on_the_cpus_that_are_named_and_the_stubdomain_is_not() {
    let create = |cpus: &str| {
        let world = World::new(Stubs::Work);
        let text = format!("type=\"hvm\"\nname=\"x\"\nmemory=64\nmaxvcpus=2\ncpus={cpus}");
        let config = config::load_str("x", &text).config.unwrap();
        let created = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ());
        (world, created)
    };
    let only = |cpu: u16| Some(xen::CpuMap::from_iter([cpu]));
    for (cpus, expected) in [
        ("\"all\"", [None, None]),
        ("\"1\"", [only(1), only(1)]),
        ("[\"1\", \"all,^1\"]", [only(1), Some((0..512).filter(|cpu| *cpu != 1).collect())]),
        ("[0]", [only(0), None]),
    ] {
        let (world, created) = create(cpus);
        let record = created.unwrap();
        let of = |domid, vcpu| world.hypervisor.affinity(domid, vcpu);
        assert_eq!([0, 1].map(|vcpu| of(record.domid, vcpu)), expected, "{cpus}");
        assert_eq!(of(record.stub_domid, 0), None, "{cpus}");
    }
    let (world, created) = create("\"7\"");
    let error = created.unwrap_err();
    assert_eq!(step_of(&error), "make-guest");
    assert!(error.report().contains("cpus = \"7\""), "{}", error.report());
    world.check_clean("a CPU that is not there");
}

#[test]
fn what_the_processor_does_not_offer_is_refused_before_anything_is_made() {
    for (line, word) in [("vpmu=1", "performance counters"), ("vmtrace_buf_kb=64", "cannot trace vCPUs")] {
        let world = World::new(Stubs::Work);
        let text = format!("type=\"hvm\"\nname=\"x\"\nmemory=64\n{line}");
        let config = config::load_str("x", &text).config.unwrap();
        let error = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap_err();
        assert_eq!(step_of(&error), "check");
        assert!(error.report().contains(word), "{}", error.report());
        world.check_clean(line);
    }
}

#[test]
fn what_the_images_qemu_lacks_is_refused_before_anything_is_made() {
    let world = World::new(Stubs::Work);
    let manifest = world.toolstack.paths().stubdomain.join("manifest.json");
    let lists = |nic: &str| {
        format!(
            "{{\"qemu\": {{\"sandbox\": true, \"abilities\": {{\"machines\": [\"xenfv-4.2\"], \
             \"devices\": [\"cirrus-vga\", \"{nic}\"], \"formats\": [\"host_device\"]}}}}}}"
        )
    };
    let text = "type=\"hvm\"\nname=\"x\"\nmemory=64\nvif=[\"model=e1000,bridge=xenbr0\"]";
    let config = config::load_str("x", text).config.unwrap();
    world.host.put_file(&manifest, lists("rtl8139").as_bytes());
    let error = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap_err();
    assert_eq!(step_of(&error), "check");
    assert!(error.report().contains("image has no device e1000"), "{}", error.report());
    assert!(world.hypervisor.operations().iter().all(|operation| operation.name != "create_domain"));
    assert!(world.host.state().files.keys().all(|path| !path.starts_with(world.toolstack.paths().guests())));
    world.host.put_file(&manifest, lists("e1000").as_bytes());
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    // The machine type that this QEMU has is recorded by its versioned name.
    let record = world.toolstack.paths().guests().join(format!("{}.json", guest.uuid));
    let text = String::from_utf8(world.host.state().files[&record].clone()).unwrap();
    assert!(
        text.contains("\"machine\": \"xenfv-4.2\"") || text.contains("\"machine\":\"xenfv-4.2\""),
        "{text}"
    );
}

#[test]
fn when_xenstored_dies_no_domain_and_no_loop_device_is_left_and_the_next_daemon_clears_the_rest() {
    let all = {
        let world = World::new(Stubs::Work);
        world.create_small().unwrap();
        world.link.seen()
    };
    let mut failed = 0;
    for at in (1..all).step_by(5) {
        let case = format!("xenstored dies at request {at} of about {all}");
        let world = World::new(Stubs::Work);
        world.link.end_at_nth(at);
        let Err(error) = world.create_small() else {
            // How often a create looks while it waits varies, and its last requests end watches, which harms nothing.
            continue;
        };
        failed += 1;
        assert!(error.report().contains("xenstore"), "{case}: {}", error.report());
        assert_eq!(world.hypervisor.leftovers(), Vec::<String>::new(), "{case}");
        let host = world.host.state();
        assert!(host.loops.is_empty() && host.ports.is_empty(), "{case}: {host:?}");
        // The xenstored of this test lives, and still has the nodes: the most that can be left.
        world.successor().recover(&mut |_| ()).unwrap();
        world.check_clean(&case);
    }
    assert!(failed > 50, "only {failed} creates failed of {}", all.div_ceil(5));
}

/// A world whose Xen is of this release, with an image whose kernel can start in a PVH domain or not, and a guest that
/// asks for such a stubdomain.
fn pvh(minor: u16, can: bool) -> (World, config::GuestConfig) {
    let world = World::new(Stubs::Work);
    world.hypervisor.set_release(xen_types::Release::new(4, minor));
    let manifest = world.toolstack.paths().stubdomain.join("manifest.json");
    world.host.put_file(&manifest, format!("{{\"kernel\": {{\"pvh\": {can}}}}}").as_bytes());
    let text = "type=\"hvm\"\nname=\"x\"\nmemory=64\nstubdomain_type=\"pvh\"";
    (world, config::load_str("x", text).config.unwrap())
}

#[test]
fn a_pvh_stubdomain_is_made_where_xen_and_image_allow_it() {
    let (world, config) = pvh(19, true);
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    let info = world.hypervisor.domain_info(guest.stub_domid).unwrap().unwrap();
    assert!(info.hvm && info.hap);
    let param = world.hypervisor.hvm_param(guest.stub_domid, xen::HvmParam::StorePfn).unwrap();
    let store = world.server.connect(DomId::DOM0);
    let ring = XsPath::new(format!("/local/domain/{}/store/ring-ref", guest.stub_domid)).unwrap();
    assert_eq!(store.read(&ring).unwrap().unwrap(), param.to_string().into_bytes());
    let built = |name| world.hypervisor.operations().iter().filter(|o| o.name == name).count();
    assert_eq!((built("build_pvh"), built("build_pv"), built("set_memory_map_limit")), (1, 0, 0));
    // The state file has it: the next stubdomain of this guest is of the same kind.
    let record = world.toolstack.paths().guests().join(format!("{}.json", guest.uuid));
    let text = String::from_utf8(world.host.state().files[&record].clone()).unwrap();
    assert!(text.contains("\"pvh\""), "{text}");
}

#[test]
fn a_pvh_stubdomain_is_refused_before_anything_is_made() {
    for (minor, can, word) in
        [(18, true, "Xen 4.18 lets no PVH domain"), (19, false, "build the image again")]
    {
        let (world, config) = pvh(minor, can);
        let error = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap_err();
        assert_eq!(step_of(&error), "check");
        assert!(error.report().contains(word), "{}", error.report());
        assert!(world.hypervisor.operations().iter().all(|operation| operation.name != "create_domain"));
    }
}

#[test]
fn smbios_strings_are_where_hvmloader_reads_them() {
    let world = World::new(Stubs::Work);
    let strings = "smbios=[\"oem=one\", \"system_product_name=Box 9\", \"oem=two\"]";
    let text = format!("type=\"hvm\"\nname=\"x\"\nmemory=64\n{strings}");
    let config = config::load_str("x", &text).config.unwrap();
    let guest = world.toolstack.create(&config, CreateOptions::default(), &mut |_| ()).unwrap();
    let store = world.server.connect(DomId::DOM0);
    for (key, value) in [("oem-1", "one"), ("oem-2", "two"), ("system-product-name", "Box 9")] {
        let path = XsPath::new(format!("/local/domain/{}/bios-strings/{key}", guest.domid)).unwrap();
        assert_eq!(store.read(&path).unwrap().as_deref(), Some(value.as_bytes()), "{key}");
    }
}

#[test]
fn what_a_failed_script_has_written_to_xenstore_is_in_the_error() {
    let world = World::new(Stubs::Work);
    world.host.scripts(Scripts::Hang);
    let error = std::thread::scope(|scope| {
        let created = scope.spawn(|| world.create().unwrap_err());
        let deadline = Instant::now() + Duration::from_secs(60);
        while world.host.state().scripts_for.is_empty() {
            assert!(Instant::now() < deadline, "no script was run");
            std::thread::yield_now();
        }
        let backend = world.host.state().scripts_for[0].clone();
        let node = XsPath::new(format!("/local/domain/0/{backend}/hotplug-error")).unwrap();
        world.server.connect(DomId::DOM0).write(&node, b"Bridge xenbr7 \x1b[2J is not there").unwrap();
        world.host.scripts(Scripts::Fail);
        created.join().unwrap()
    });
    let text = error.report();
    assert!(text.contains("ended with status 1: Bridge xenbr7 ?[2J is not there"), "{text}");
    world.host.scripts(Scripts::Run);
}
