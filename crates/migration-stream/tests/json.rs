//! libxl's JSON: what is made of what stock xl wrote, and what is read again of what we write for it.
#![expect(clippy::unwrap_used, reason = "a test that cannot make its stream has failed")]

use std::fs;
use std::path::Path;

use config::{
    Action, Affinity, DiskSource, FirmwareKind, GuestConfig, Rate, SerialOutput, UsbController, Uuid, Vga,
};
use migration_stream::libxl_json::{Decoded, Facts, JsonError, MAX_JSON, decode, encode};
use proptest::prelude::*;
use serde_json::{Value, json};
use xen_types::KiB;

const STOCK: &str = include_str!("json/xl-4.17.json");

fn facts() -> Facts {
    Facts {
        uuid: Uuid::from_u128(0x1b4e_28ba_2fa1_11d2_883f_0016_d3cc_a427),
        online_vcpus: vec![0],
        paging_memory: KiB(2052),
        generation_id: None,
        hvm_pirq: false,
        stub_kernel: "/usr/lib/outrigger/stub/vmlinuz".to_owned(),
        stub_ramdisk: "/usr/lib/outrigger/stub/initramfs".to_owned(),
        stub_memory: KiB::from_mib(48),
    }
}

fn config(text: &str) -> GuestConfig {
    let loaded = config::load_str("guest.cfg", text);
    let rendered = loaded.render(false);
    loaded.config.unwrap_or_else(|| panic!("{rendered}"))
}

/// The smallest guest, with more lines.
fn with(lines: &str) -> GuestConfig {
    config(&format!("type = 'hvm'\nname = 'g'\nmemory = 128\n{lines}\n"))
}

/// What is read again of a guest that was written.
fn again(config: &GuestConfig) -> Decoded {
    let facts = Facts {
        online_vcpus: (0..config.vcpus).collect(),
        generation_id: config.platform.vm_generation_id.then_some([7; 16]),
        hvm_pirq: config.platform.hvm_pirq.unwrap_or(false),
        ..facts()
    };
    let json = encode(config, &facts);
    let decoded = decode(&json).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&json)));
    assert_eq!(decoded.ignored, ["b_info.type.hvm.sdl", "b_info.type.hvm.vnc"]);
    assert_eq!(decoded.online_vcpus, facts.online_vcpus);
    assert_eq!(decoded.generation_id, facts.generation_id);
    assert!(decoded.stubdomain);
    decoded
}

/// The guest as the format can carry it: what was open is decided, and what only Outrigger knows is at its default.
fn carried(config: &GuestConfig) -> GuestConfig {
    let facts = facts();
    let mut carried = config.clone();
    carried.uuid = Some(facts.uuid);
    carried.shadow_memory = Some(facts.paging_memory);
    carried.device_model.kernel = Some(facts.stub_kernel);
    carried.device_model.ramdisk = Some(facts.stub_ramdisk);
    carried.device_model.memory = Some(facts.stub_memory);
    carried.device_model.on_crash = config::DeviceModelCrashAction::default();
    carried.device_model.qmp = config::QmpTransport::default();
    carried.device_model.kind = config::StubdomainKind::default();
    carried.firmware.smbios_strings.clear();
    carried.platform.hvm_pirq = Some(config.platform.hvm_pirq.unwrap_or(false));
    for nic in &mut carried.nics {
        nic.mac = Some(nic.address(&facts.uuid));
    }
    if let Affinity::Each(sets) = &config.affinity
        && let [first, rest @ ..] = sets.as_slice()
        && sets.len() == usize::try_from(config.max_vcpus).unwrap()
        && rest.iter().all(|set| set == first)
    {
        carried.affinity = Affinity::All(first.clone());
    }
    if carried.platform.viridian.all {
        carried.platform.viridian.enable.clear();
    }
    carried.platform.viridian.enable.sort_unstable();
    carried.platform.viridian.disable.sort_unstable();
    carried
}

#[test]
fn every_guest_of_the_corpus_survives_as_the_format_can_carry_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tests/corpus");
    let mut guests = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let Some(guest) = config::load(&path).config else { continue };
        assert_eq!(again(&guest).config, carried(&guest), "{}", path.display());
        guests += 1;
    }
    assert!(guests >= 3, "only {guests} files of the corpus are guests");
}

#[test]
fn every_kind_of_value_survives() {
    for lines in [
        "",
        "cpus = '0-3,^1'\nvcpus = 3",
        "cpus = [ '1', '2' ]\nmaxvcpus = 4",
        "cpus = [ '1', '1' ]\nmaxvcpus = 2",
        "cpus = [ 'all', '1' ]\nvcpus = 2",
        "maxmem = 256\nhap = 0\noos = 1",
        "viridian = 1",
        "viridian = [ 'all', '!stimer', '!apic_assist' ]",
        "viridian = [ 'defaults', 'cpu_hotplug', '!freq' ]",
        "cpuid = [ '1:ecx=xxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxx', '0x80000001:edx=kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk' ]",
        "rtc_timeoffset = '-3600'\nlocaltime = 1",
        "tsc_mode = 'native'\ntimer_mode = 'delay_for_missed_ticks'\naltp2m = 'limited'",
        "ms_vm_genid = 'generate'\nhvm_pirq = 1\nmsr_relaxed = 1\nmca_caps = [ 'lmce' ]\nmmio_hole = 512",
        "usbversion = 3",
        "usbversion = 2",
        "usbversion = 1",
        "usb = 1",
        "usbdevice = 'tablet'",
        "vga = 'none'",
        "vga = 'stdvga'\nvideoram = 32",
        "serial = [ 'null', 'pty' ]",
        "serial = 'file:/var/log/a \"b\\\\\\\\c'",
        "seclabel = 'a'",
        "seclabel = 'a'\ninit_seclabel = 'b'",
        "disk = [ 'vdev=xvda,access=ro,backend=7,no-discard,direct-io-safe,untrusted,target=/a b,=,' ]",
        "disk = [ 'vdev=hdc,devtype=cdrom,target=/a.iso', 'vdev=hdd,devtype=cdrom' ]",
        "vif = [ 'rate=1GB/s@1s,backend=net,vifname=v,ip=10.0.0.1 10.0.0.2,gatewaydev=g,script=vif-route' ]",
        "channel = [ 'name=a,connection=pty', 'name=b,connection=socket,path=/run/b' ]",
        "max_grant_frames = 1\nmax_grant_version = 2\nvmtrace_buf_kb = 64\nmax_event_channels = 255",
        "on_poweroff = 'preserve'\non_reboot = 'destroy'\non_watchdog = 'rename-restart'\non_soft_reset = 'restart'",
    ] {
        let guest = with(lines);
        assert_eq!(again(&guest).config, carried(&guest), "{lines}");
    }
}

#[test]
fn json_of_stock_xl_is_understood() {
    let decoded = decode(STOCK.as_bytes()).unwrap();
    let guest = &decoded.config;
    assert_eq!((guest.name.as_str(), guest.uuid), ("vm-one", Some(facts().uuid)));
    assert_eq!((guest.vcpus, guest.max_vcpus, decoded.online_vcpus), (2, 4, vec![0, 2]));
    // To the KiB, although xl.cfg has MiB only.
    assert_eq!(
        (guest.memory, guest.max_memory, guest.shadow_memory),
        (KiB(262_244), KiB(524_288), Some(KiB(6144)))
    );
    let Affinity::Each(sets) = &guest.affinity else { panic!("{:?}", guest.affinity) };
    assert_eq!(sets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1", "0-511", "0-1", "1"]);
    assert_eq!(guest.platform.clock.offset_seconds, -3600);
    assert_eq!(guest.platform.cpuid.leaves.len(), 1);
    assert_eq!((guest.platform.msr_relaxed, guest.platform.hvm_pirq), (false, Some(true)));
    assert_eq!((guest.display.vga, guest.display.video_memory), (Vga::StdVga, KiB::from_mib(16)));
    assert_eq!(guest.firmware.kind, FirmwareKind::SeaBios);
    assert_eq!(
        (guest.usb.controller, guest.usb.devices.as_slice()),
        (UsbController::Machine, ["tablet".to_owned()].as_slice())
    );
    assert_eq!(guest.serials, [SerialOutput::Pty]);
    let sources: Vec<_> =
        guest.disks.iter().map(|disk| (disk.vdev.to_string(), disk.source.clone())).collect();
    let path = |path: &str| DiskSource::Path(path.to_owned());
    assert_eq!(
        sources,
        [
            ("hda".to_owned(), path("/srv/a,b=c.img")),
            ("hdc".to_owned(), DiskSource::Empty),
            ("xvdb".to_owned(), path("/dev/vg/data,")),
        ]
    );
    assert!(guest.disks[0].is_writable() && !guest.disks[2].is_writable());
    assert_eq!(guest.nics[0].rate, Some(Rate { bytes_per_interval: 62_501, interval_usecs: 50_000 }));
    assert_eq!(guest.channels.len(), 1);
    // What libxl leaves out is `destroy`; xl's default for a soft reset is dropped.
    let ends = guest.lifecycle;
    assert_eq!((ends.on_poweroff, ends.on_reboot), (Action::Destroy, Action::Restart));
    assert_eq!((ends.on_crash, ends.on_soft_reset), (Action::RenameRestart, Action::Destroy));
    assert_eq!(decoded.generation_id.map(|id| id[15]), Some(16));
    assert!(!decoded.stubdomain);
    assert_eq!(
        decoded.ignored,
        [
            "on_soft_reset",
            "b_info.type.hvm.rdm",
            "b_info.type.hvm.sdl",
            "b_info.type.hvm.spice",
            "b_info.type.hvm.vnc",
            "c_info.run_hotplug_scripts",
            "b_info.claim_mode",
            "b_info.sched_params",
        ]
    );
}

/// libxl 4.17.7 read what `encode` makes of the corpus' largest guest, and wrote it again.
#[test]
fn libxl_understands_what_is_written_for_it() {
    let decoded = decode(include_bytes!("json/libxl-4.17.7.json")).unwrap();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tests/corpus/every-used-key.cfg");
    let mut guest = carried(&config::load(&corpus).config.unwrap());
    // A key that came with Xen 4.19.
    guest.platform.hvm_pirq = Some(true);
    assert_eq!(decoded.config, guest);
    assert_eq!((decoded.online_vcpus, decoded.generation_id), (vec![0, 1], Some([7; 16])));
    assert_eq!(
        decoded.ignored,
        [
            "b_info.type.hvm.rdm",
            "b_info.type.hvm.sdl",
            "b_info.type.hvm.spice",
            "b_info.type.hvm.vnc",
            "b_info.arch_arm",
            "b_info.sched_params",
        ]
    );
}

#[test]
fn what_is_missing_is_what_libxl_takes_at_a_restore() {
    let decoded =
        decode(br#"{ "c_info": { "type": "hvm", "name": "g" }, "b_info": { "max_memkb": 65536 } }"#).unwrap();
    let guest = decoded.config;
    assert_eq!((guest.memory, guest.max_memory), (KiB::from_mib(64), KiB::from_mib(64)));
    assert_eq!((guest.vcpus, guest.max_vcpus, decoded.online_vcpus), (1, 1, vec![0]));
    assert_eq!((guest.platform.msr_relaxed, guest.platform.hvm_pirq), (true, Some(true)));
    assert_eq!(guest.lifecycle.on_reboot, Action::Destroy);
}

#[test]
fn bitmaps_ascend_because_libxl_drops_what_does_not() {
    let guest = with("maxvcpus = 4\nviridian = [ 'stimer', 'synic', 'base', '!crash_ctl', '!apic_assist' ]");
    let facts = Facts { online_vcpus: vec![2, 0, 2], ..facts() };
    let json: Value = serde_json::from_slice(&encode(&guest, &facts)).unwrap();
    assert_eq!(json["b_info"]["avail_vcpus"], json!([0, 2]));
    assert_eq!(json["b_info"]["type.hvm"]["viridian_enable"], json!([0, 7, 8]));
    assert_eq!(json["b_info"]["type.hvm"]["viridian_disable"], json!([5, 6]));
}

#[test]
fn cpuid_of_newer_xen_is_an_object() {
    let mut json: Value = serde_json::from_str(STOCK).unwrap();
    let array = json["b_info"]["cpuid"].take();
    json["b_info"]["cpuid"] = json!({ "cpuid": array, "msr": [] });
    assert_eq!(decode(json.to_string().as_bytes()).unwrap().config, decode(STOCK.as_bytes()).unwrap().config);
    json["b_info"]["cpuid"]["msr"] = json!([{ "index": 266, "policy": "x" }]);
    let error = decode(json.to_string().as_bytes()).unwrap_err();
    assert!(matches!(error, JsonError::NotSupported { key, .. } if key == "b_info.cpuid.msr"));
}

/// What is made of stock xl's JSON with another value at a place.
fn decode_changed(pointer: &str, value: Value) -> Result<Decoded, JsonError> {
    let mut json: Value = serde_json::from_str(STOCK).unwrap();
    match json.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => {
            let (object, key) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(object).unwrap()[key] = value;
        }
    }
    decode(json.to_string().as_bytes())
}

/// What is said of it when it is refused.
fn changed(pointer: &str, value: Value) -> JsonError {
    match decode_changed(pointer, value) {
        Ok(_) => panic!("{pointer} is accepted"),
        Err(error) => error,
    }
}

#[test]
fn what_cannot_be_expressed_names_its_key() {
    for (pointer, value, key) in [
        ("/pcidevs", json!([{ "dev": 1 }]), "pcidevs"),
        ("/usbdevs", json!([{ "port": 1 }]), "usbdevs"),
        ("/vfbs", json!([{ "devid": 1 }]), "vfbs"),
        ("/b_info/ioports", json!([{ "first": 1 }]), "b_info.ioports"),
        ("/b_info/vnuma_nodes", json!([{ "memkb": 1 }]), "b_info.vnuma_nodes"),
        ("/b_info/type.hvm/smbios", json!([{ "key": "oem" }]), "b_info.type.hvm.smbios"),
        ("/nics/0/vlan", json!("10"), "nics[0].vlan"),
        ("/nics/0/coloft_forwarddev", json!("eth0"), "nics[0].coloft_forwarddev"),
        ("/disks/0/colo_enable", json!("True"), "disks[0].colo_enable"),
        ("/disks/0/colo_host", json!("other"), "disks[0].colo_host"),
    ] {
        let error = changed(pointer, value);
        assert!(
            matches!(&error, JsonError::NotSupported { key: found, .. } if found == key),
            "{pointer}: {error}"
        );
    }
}

#[test]
fn what_the_configuration_refuses_names_the_key_of_the_json() {
    for (pointer, value, key, id) in [
        (
            "/b_info/device_model_version",
            json!("qemu_xen_traditional"),
            "b_info.device_model_version",
            "config::refused",
        ),
        ("/b_info/kernel", json!("/boot/vmlinuz"), "b_info.kernel", "config::refused"),
        ("/b_info/type.hvm/bios", json!("rombios"), "b_info.type.hvm.bios", "config::refused"),
        ("/b_info/type.hvm/bios", json!("coreboot"), "b_info.type.hvm.bios", "config::unknown-value"),
        ("/b_info/type.hvm/vga", json!({ "kind": "qxl" }), "b_info.type.hvm.vga.kind", "config::refused"),
        ("/b_info/type.hvm/serial", json!("tcp:1"), "b_info.type.hvm.serial", "config::refused"),
        ("/b_info/max_vcpus", json!(1000), "b_info.max_vcpus", "config::out-of-range"),
        ("/b_info/target_memkb", json!(u64::MAX), "b_info.target_memkb", "config::out-of-range"),
        ("/c_info/name", json!("a/b"), "c_info.name", "config::bad-name"),
        ("/c_info/pool_name", json!("fast"), "c_info.pool_name", "config::refused"),
        ("/disks/0/format", json!("qcow2"), "disks[0]", "config::refused"),
        ("/disks/0/backend", json!("standalone"), "disks[0]", "config::refused"),
        ("/disks/0/vdev", json!("vda"), "disks[0]", "config::bad-disk"),
        ("/nics/0/mac", json!("01:16:3e:74:3d:76"), "nics[0]", "config::bad-vif"),
        ("/on_crash", json!("soft_reset"), "on_crash", "config::refused"),
        ("/on_poweroff", json!("soft_reset"), "on_poweroff", "config::refused"),
    ] {
        let error = changed(pointer, value);
        let right = matches!(&error, JsonError::Refused { key: k, id: i, .. } if k == key && *i == id);
        assert!(right, "{pointer}: {error:?}");
    }
}

#[test]
fn what_changes_nothing_for_the_guest_is_accepted() {
    for (pointer, value) in [
        ("/b_info/device_model", json!("/usr/bin/qemu")),
        ("/disks/0/backend", json!("qdisk")),
        ("/on_crash", json!("coredump_destroy")),
    ] {
        let decoded = decode_changed(pointer, value);
        assert!(decoded.is_ok(), "{pointer}: {decoded:?}");
    }
}

#[test]
fn values_of_another_type_or_size_are_named() {
    for (pointer, value, key) in [
        ("/c_info", json!([]), "c_info"),
        ("/c_info/name", json!(1), "c_info.name"),
        ("/c_info/hap", json!(true), "c_info.hap"),
        ("/b_info/max_memkb", json!("1"), "b_info.max_memkb"),
        ("/b_info/max_memkb", json!(1.5), "b_info.max_memkb"),
        ("/b_info/avail_vcpus", json!("0"), "b_info.avail_vcpus"),
        ("/b_info/avail_vcpus", json!(["0"]), "b_info.avail_vcpus[0]"),
        ("/b_info/vcpu_hard_affinity", json!([1]), "b_info.vcpu_hard_affinity[0]"),
        ("/b_info/cpuid", json!(1), "b_info.cpuid"),
        ("/b_info/type.hvm/ms_vm_genid", json!([1]), "b_info.type.hvm.ms_vm_genid"),
        ("/disks", json!({}), "disks"),
        ("/disks/0", json!(1), "disks[0]"),
        ("/disks/0/direct_io_safe", json!("True"), "disks[0].direct_io_safe"),
    ] {
        let error = changed(pointer, value);
        assert!(
            matches!(&error, JsonError::WrongType { key: found, .. } if found == key),
            "{pointer}: {error:?}"
        );
    }
    for (pointer, value, key) in [
        ("/b_info/max_memkb", json!(-1), "b_info.max_memkb"),
        ("/b_info/avail_vcpus", json!([4]), "b_info.avail_vcpus"),
        ("/b_info/avail_vcpus", json!([5000]), "b_info.avail_vcpus[0]"),
        ("/b_info/type.hvm/viridian_enable", json!([13]), "b_info.type.hvm.viridian_enable"),
        ("/b_info/type.hvm/mca_caps", json!(2), "b_info.type.hvm.mca_caps"),
        ("/nics/0/rate_interval_usecs", json!(0), "nics[0].rate_interval_usecs"),
    ] {
        let error = changed(pointer, value);
        assert!(
            matches!(&error, JsonError::OutOfRange { key: found, .. } if found == key),
            "{pointer}: {error:?}"
        );
    }
    for (pointer, value, key) in [
        ("/b_info/video_memkb", json!(16_385), "b_info.video_memkb"),
        ("/nics/0/bridge", json!("a,mac=00:16:3e:00:00:00"), "nics[0].bridge"),
        ("/disks/0/vdev", json!("hda,format=qcow2"), "disks[0].vdev"),
        ("/b_info/cpuid", json!([{ "leaf": 1, "eax": "x,ebx=x" }]), "b_info.cpuid.cpuid[0].eax"),
    ] {
        let error = changed(pointer, value);
        assert!(
            matches!(&error, JsonError::NotExpressible { key: found } if found == key),
            "{pointer}: {error:?}"
        );
    }
}

#[test]
fn other_guests_and_other_texts_are_named() {
    for kind in ["pv", "pvh"] {
        let error = changed("/c_info/type", json!(kind));
        assert!(matches!(error, JsonError::NotHvm { found } if found == kind));
    }
    assert!(matches!(decode(b"{}"), Err(JsonError::NotHvm { found }) if found.is_empty()));
    assert!(matches!(decode(b"[]"), Err(JsonError::WrongType { .. })));
    assert!(matches!(decode(b""), Err(JsonError::Syntax(_))));
    assert!(matches!(decode(&vec![b'['; 10_000]), Err(JsonError::Syntax(_))));
    assert!(matches!(decode(&vec![b' '; MAX_JSON + 1]), Err(JsonError::TooLarge { .. })));
}

#[test]
fn unknown_keys_are_listed_and_bounded() {
    let mut json: Value = serde_json::from_str(STOCK).unwrap();
    for at in 0..1000 {
        json["b_info"][format!("future\n{at:0100}")] = json!({});
    }
    let ignored = decode(json.to_string().as_bytes()).unwrap().ignored;
    assert_eq!(ignored.len(), 200);
    assert!(ignored.iter().all(|key| key.len() < 80 && !key.contains('\n')));
}

/// Any JSON that looks a little like libxl's.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (-1..5000_i64).prop_map(Value::from),
        prop::sample::select(vec!["True", "False", "", "hvm", "raw", "hda", "a,b", "\n\"\\", "é\0"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,6}", inner), 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

/// Every place in a JSON.
fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let path = format!("{path}/{key}");
        places(value, &path, found);
        found.push(path);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| below(&at.to_string(), value)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_value_at_any_place_is_read_or_refused(at: prop::sample::Index, value in value()) {
        let mut json: Value = serde_json::from_str(STOCK).unwrap();
        let mut all = Vec::new();
        places(&json, "", &mut all);
        *json.pointer_mut(&all[at.index(all.len())]).unwrap() = value;
        match decode(json.to_string().as_bytes()) {
            Ok(decoded) => {
                // A saved guest has a UUID, also when its JSON had none.
                let uuid = decoded.config.uuid.unwrap_or(facts().uuid);
                let facts = Facts { uuid, ..facts() };
                decode(&encode(&decoded.config, &facts)).unwrap();
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = decode(&bytes);
    }
}
