//! Ours against the packaged xl: the same guest of every file that ours accepts, and of what ours writes of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot start xl has failed")]
#![expect(clippy::needless_pass_by_value, reason = "facts of several types are put in as they are")]

mod generators;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use config::{
    Access, Action, ChannelConnection, Disk, DiskController, DiskKind, DiskSource, FirmwareKind, GuestConfig,
    Lifecycle, Nic, NicKind, SerialOutput, TimerMode, TscMode, UsbController, Vga,
};
use generators::{GANETI, LIBVIRT, XEN_TOOLS, ganeti, libvirt, xen_tools};
use serde_json::Value;
use xlutil_oracle::xl;

/// What is compared, by name.
type Facts = BTreeMap<String, String>;

#[derive(Default)]
struct Collected(Facts);

impl Collected {
    fn put(&mut self, name: impl Into<String>, value: impl ToString) {
        self.0.insert(name.into(), value.to_string());
    }

    fn some(&mut self, name: impl Into<String>, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    /// Only what is not the default, which xl leaves out.
    fn unless<T: ToString + PartialEq>(&mut self, name: impl Into<String>, value: T, default: T) {
        if value != default {
            self.put(name, value);
        }
    }
}

fn ours(guest: &GuestConfig) -> Facts {
    let mut facts = Collected::default();
    facts.put("name", &guest.name);
    facts.some("uuid", guest.uuid);
    facts.put("memory", guest.memory.get());
    facts.put("maxmem", guest.max_memory.get());
    facts.some("shadow", guest.shadow_memory.map(|size| size.get()));
    facts.put("vcpus", guest.vcpus);
    facts.put("maxvcpus", guest.max_vcpus);
    our_platform(&mut facts, guest);
    our_emulation(&mut facts, guest);
    facts.some("stub_kernel", guest.device_model.kernel.clone());
    facts.some("stub_ramdisk", guest.device_model.ramdisk.clone());
    facts.some("stub_cmdline", guest.device_model.cmdline.clone());
    facts.some("stub_memory", guest.device_model.memory.map(|size| size.get()));
    facts.unless("event_channels", guest.max_event_channels, 1023);
    facts.some("grant_frames", guest.grants.max_grant_frames);
    facts.unless("vmtrace", guest.vmtrace_buffer.get(), 0);
    ends(&mut facts, guest.lifecycle);
    for (at, disk) in guest.disks.iter().enumerate() {
        our_disk(&mut facts, at, disk);
    }
    for nic in &guest.nics {
        our_nic(&mut facts, nic);
    }
    for (at, channel) in guest.channels.iter().enumerate() {
        let path = match &channel.connection {
            ChannelConnection::Pty => "pty".to_owned(),
            ChannelConnection::Socket(path) => path.clone(),
        };
        facts.put(format!("channel {at}"), format!("{} {path}", channel.name));
    }
    facts.0
}

fn our_platform(facts: &mut Collected, guest: &GuestConfig) {
    let platform = &guest.platform;
    for (name, value) in [
        ("acpi", platform.acpi),
        ("apic", platform.apic),
        ("pae", platform.pae),
        ("hpet", platform.hpet),
        ("acpi_s3", platform.acpi_s3),
        ("acpi_s4", platform.acpi_s4),
        ("vpt_align", platform.vpt_align),
        ("xen_platform_pci", platform.xen_platform_pci),
    ] {
        facts.unless(name, value, true);
    }
    for (name, value) in [
        ("nested_hvm", platform.nested_hvm),
        ("localtime", platform.clock.localtime),
        ("viridian", platform.viridian.defaults),
        ("nomigrate", guest.no_migrate),
        ("vpmu", platform.vpmu),
        ("usb", guest.usb.controller == UsbController::Machine && guest.usb.devices.is_empty()),
    ] {
        facts.unless(name, value, false);
    }
    facts.some("hap", platform.hap);
    facts.unless("rtc_timeoffset", platform.clock.offset_seconds, 0);
    facts.some("mmio_hole", platform.mmio_hole.map(|size| size.get()));
    facts.unless("tsc_mode", platform.tsc_mode as u32, TscMode::Default as u32);
    facts.unless("timer_mode", platform.timer_mode as u32, TimerMode::NoDelayForMissedTicks as u32);
}

fn our_emulation(facts: &mut Collected, guest: &GuestConfig) {
    facts.put("bios", if guest.firmware.kind == FirmwareKind::Ovmf { "ovmf" } else { "seabios" });
    facts.some("bios_path", guest.firmware.bios_path.clone());
    facts.some("smbios", guest.firmware.smbios.clone());
    facts.some("acpi_firmware", guest.firmware.acpi.clone());
    facts.unless("boot", guest.boot.order(), "cda");
    facts.unless("ahci", guest.disk_controller == DiskController::Ahci, false);
    let vga = match guest.display.vga {
        Vga::Cirrus => "cirrus",
        Vga::StdVga => "std",
        Vga::None => "none",
    };
    facts.put("vga", vga);
    facts.some("keymap", guest.display.keymap.clone());
    facts.some("sound", guest.sound.clone());
    facts.unless("usbdevices", guest.usb.devices.join(" "), String::new());
    let serials: Vec<&str> = guest.serials.iter().map(serial).collect();
    facts.unless("serials", serials.join(" "), String::new());
    facts.unless("extra", guest.device_model.extra_args.join(" "), String::new());
}

fn serial(output: &SerialOutput) -> &str {
    match output {
        SerialOutput::Pty => "pty",
        SerialOutput::File(path) => path,
        SerialOutput::Null => "null",
    }
}

fn ends(facts: &mut Collected, lifecycle: Lifecycle) {
    for (name, action) in [
        ("on_poweroff", lifecycle.on_poweroff),
        ("on_reboot", lifecycle.on_reboot),
        ("on_crash", lifecycle.on_crash),
        ("on_watchdog", lifecycle.on_watchdog),
        ("on_soft_reset", lifecycle.on_soft_reset),
    ] {
        let word = match action {
            Action::Destroy => "destroy",
            Action::Restart => "restart",
            Action::RenameRestart => "restart_rename",
            Action::Preserve => "preserve",
        };
        facts.put(name, word);
    }
}

fn our_disk(facts: &mut Collected, at: usize, disk: &Disk) {
    let mut put = |name: &str, value: String| facts.unless(format!("disk {at} {name}"), value, String::new());
    let (target, script) = match &disk.source {
        DiskSource::Empty => ("", ""),
        DiskSource::Path(path) => (path.as_str(), ""),
        DiskSource::Script { script, target } => (target.as_str(), script.as_str()),
    };
    put("target", target.to_owned());
    put("script", script.to_owned());
    put("vdev", disk.vdev.to_string());
    put("writable", (disk.access == Access::ReadWrite).to_string());
    put("cdrom", (disk.kind == DiskKind::CdRom).to_string());
    put("backend", disk.backend.clone().unwrap_or_default());
    put("discard", disk.discard.map_or_else(String::new, |discard| discard.to_string()));
    put("direct-io-safe", disk.direct_io_safe.to_string());
}

fn our_nic(facts: &mut Collected, nic: &Nic) {
    let devid = nic.devid;
    let mut put = |name: &str, value: Option<String>| facts.some(format!("nic {devid} {name}"), value);
    put("mac", nic.mac.map(|mac| mac.to_string()));
    put("bridge", nic.bridge.clone());
    put("model", Some(nic.model.clone()));
    put("type", Some(if nic.kind == NicKind::Vif { "vif" } else { "ioemu" }.to_owned()));
    put("script", nic.script.clone());
    put("vifname", nic.vifname.clone());
    put("ip", nic.ip.clone());
    put("gatewaydev", nic.gateway_dev.clone());
    put("backend", nic.backend.clone());
    put("rate", nic.rate.map(|rate| format!("{} {}", rate.bytes_per_interval, rate.interval_usecs)));
    put("mtu", nic.mtu.map(|mtu| mtu.to_string()));
    put("trusted", Some(nic.trusted.to_string()));
}

/// A value of xl's JSON as text; libxl writes switches as words.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(word) if word == "True" => Some("true".to_owned()),
        Value::String(word) if word == "False" => Some("false".to_owned()),
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

/// Facts that have the same meaning and text in xl's JSON: our name, its object, its key.
const SAME: &[(&str, &str, &str)] = &[
    ("memory", "/b_info", "target_memkb"),
    ("maxmem", "/b_info", "max_memkb"),
    ("shadow", "/b_info", "shadow_memkb"),
    ("hap", "/c_info", "hap"),
    ("mmio_hole", "/b_info/type.hvm", "mmio_hole_memkb"),
    ("bios_path", "/b_info/type.hvm", "system_firmware"),
    ("smbios", "/b_info/type.hvm", "smbios_firmware"),
    ("acpi_firmware", "/b_info/type.hvm", "acpi_firmware"),
    ("keymap", "/b_info/type.hvm", "keymap"),
    ("sound", "/b_info/type.hvm", "soundhw"),
    ("stub_kernel", "/b_info", "stubdomain_kernel"),
    ("stub_ramdisk", "/b_info", "stubdomain_ramdisk"),
    ("stub_cmdline", "/b_info", "stubdomain_cmdline"),
    ("stub_memory", "/b_info", "stubdomain_memkb"),
    ("event_channels", "/b_info", "event_channels"),
    ("grant_frames", "/b_info", "max_grant_frames"),
    ("vmtrace", "/b_info", "vmtrace_buf_kb"),
];

/// Switches of xl's JSON: our name, its object, its key, the default that is left out.
const SWITCHES: &[(&str, &str, &str, &str)] = &[
    ("acpi", "/b_info", "acpi", "true"),
    ("apic", "/b_info", "apic", "true"),
    ("pae", "/b_info/type.hvm", "pae", "true"),
    ("hpet", "/b_info/type.hvm", "hpet", "true"),
    ("acpi_s3", "/b_info/type.hvm", "acpi_s3", "true"),
    ("acpi_s4", "/b_info/type.hvm", "acpi_s4", "true"),
    ("vpt_align", "/b_info/type.hvm", "vpt_align", "true"),
    ("xen_platform_pci", "/b_info/type.hvm", "xen_platform_pci", "true"),
    ("nested_hvm", "/b_info", "nested_hvm", "false"),
    ("localtime", "/b_info", "localtime", "false"),
    ("viridian", "/b_info/type.hvm", "viridian", "false"),
    ("nomigrate", "/b_info", "disable_migrate", "false"),
    ("vpmu", "/b_info", "vpmu", "false"),
    ("boot", "/b_info/type.hvm", "boot", "cda"),
];

fn theirs(json: &Value, guest: &GuestConfig) -> Facts {
    let mut facts = Collected::default();
    let get = |object: &str, key: &str| json.pointer(object).and_then(|object| object.get(key));
    let get_text = |object: &str, key: &str| get(object, key).and_then(text);
    facts.put("name", get_text("/c_info", "name").unwrap_or_default());
    // xl makes one up if there is none.
    facts.some("uuid", get_text("/c_info", "uuid").filter(|_| guest.uuid.is_some()));
    for (name, object, key) in SAME {
        facts.some(*name, get_text(object, key));
    }
    for (name, object, key, default) in SWITCHES {
        facts.some(*name, get_text(object, key).filter(|value| value != default));
    }
    let vcpus = get("/b_info", "avail_vcpus").map_or(1, |vcpus| vcpus.as_array().map_or(0, Vec::len));
    facts.put("vcpus", vcpus);
    facts.put("maxvcpus", get_text("/b_info", "max_vcpus").unwrap_or_else(|| "1".to_owned()));
    their_platform(&mut facts, json);
    their_emulation(&mut facts, json);
    for name in ["on_poweroff", "on_reboot", "on_crash", "on_watchdog", "on_soft_reset"] {
        let action = get_text("", name).unwrap_or_else(|| "destroy".to_owned());
        // Listed: no core is written, and nothing is reset in place.
        let action = action.strip_prefix("coredump_").unwrap_or(&action);
        facts.put(name, if action == "soft_reset" { "destroy" } else { action });
    }
    for (at, disk) in json["disks"].as_array().into_iter().flatten().enumerate() {
        their_disk(&mut facts, at, disk);
    }
    for nic in json["nics"].as_array().into_iter().flatten() {
        their_nic(&mut facts, nic);
    }
    for (at, channel) in json["channels"].as_array().into_iter().flatten().enumerate() {
        let path =
            channel.pointer("/connection.socket/path").and_then(text).unwrap_or_else(|| "pty".to_owned());
        facts.put(format!("channel {at}"), format!("{} {path}", text(&channel["name"]).unwrap_or_default()));
    }
    facts.0
}

fn their_platform(facts: &mut Collected, json: &Value) {
    let get = |object: &str, key: &str| json.pointer(object).and_then(|object| object.get(key));
    let get_text = |object: &str, key: &str| get(object, key).and_then(text);
    // An unsigned number that is read as a signed one.
    let offset = get("/b_info", "rtc_timeoffset").and_then(Value::as_u64).unwrap_or(0);
    facts.unless("rtc_timeoffset", u32::try_from(offset).unwrap().cast_signed(), 0);
    let tsc_modes = ["default", "always_emulate", "native"];
    let tsc_mode =
        get_text("/b_info", "tsc_mode").map(|mode| tsc_modes.iter().position(|word| *word == mode));
    facts.unless("tsc_mode", tsc_mode.flatten().unwrap_or(0), 0);
    let timer_modes = [
        "delay_for_missed_ticks",
        "no_delay_for_missed_ticks",
        "no_missed_ticks_pending",
        "one_missed_tick_pending",
    ];
    let timer_mode =
        get_text("/b_info", "timer_mode").map(|mode| timer_modes.iter().position(|w| *w == mode));
    facts.unless("timer_mode", timer_mode.flatten().unwrap_or(1), 1);
}

fn their_emulation(facts: &mut Collected, json: &Value) {
    let get = |object: &str, key: &str| json.pointer(object).and_then(|object| object.get(key));
    let get_text = |object: &str, key: &str| get(object, key).and_then(text);
    let hvm = |key: &str| get_text("/b_info/type.hvm", key);
    facts.put("bios", hvm("bios").unwrap_or_else(|| "seabios".to_owned()));
    facts.unless("ahci", hvm("hdtype").is_some_and(|kind| kind == "ahci"), false);
    let vga = get_text("/b_info/type.hvm/vga", "kind");
    facts.put("vga", vga.unwrap_or_else(|| "cirrus".to_owned()));
    let one_or_more = |one: &str, more: &str| -> Vec<String> {
        let more = get("/b_info/type.hvm", more).map(list).unwrap_or_default();
        hvm(one).into_iter().chain(more).collect()
    };
    let usb_devices = one_or_more("usbdevice", "usbdevice_list");
    let usb = hvm("usb").is_some_and(|usb| usb == "true") && usb_devices.is_empty();
    facts.unless("usb", usb, false);
    facts.unless("usbdevices", usb_devices.join(" "), String::new());
    let serials: Vec<String> = one_or_more("serial", "serial_list")
        .iter()
        .map(|serial| match serial.strip_prefix("file:") {
            Some(path) => path.to_owned(),
            None if serial == "none" => "null".to_owned(),
            None => serial.clone(),
        })
        .collect();
    facts.unless("serials", serials.join(" "), String::new());
    let extra = ["extra", "extra_hvm"].map(|key| get("/b_info", key).map(list).unwrap_or_default()).concat();
    facts.unless("extra", extra.join(" "), String::new());
}

fn their_disk(facts: &mut Collected, at: usize, disk: &Value) {
    let get = |key: &str| text(&disk[key]).unwrap_or_default();
    let yes = |key: &str| matches!(get(key).as_str(), "1" | "true").to_string();
    let script = get("script");
    let path = get("pdev_path");
    // A path without a slash at its beginning is in /dev.
    let is_name = !path.is_empty() && script.is_empty() && !path.starts_with('/');
    let mut put = |name: &str, value: String| facts.unless(format!("disk {at} {name}"), value, String::new());
    put("target", if is_name { format!("/dev/{path}") } else { path });
    put("script", script);
    put("vdev", get("vdev"));
    put("writable", yes("readwrite"));
    put("cdrom", yes("is_cdrom"));
    put("backend", dom0_is_nothing(get("backend_domname")));
    put("discard", get("discard_enable"));
    put("direct-io-safe", yes("direct_io_safe"));
}

fn dom0_is_nothing(name: String) -> String {
    if matches!(name.as_str(), "0" | "Domain-0") { String::new() } else { name }
}

fn their_nic(facts: &mut Collected, nic: &Value) {
    let get = |key: &str| text(&nic[key]).filter(|value| !value.is_empty());
    let devid = get("devid").unwrap_or_default();
    let mut put = |name: &str, value: Option<String>| facts.some(format!("nic {devid} {name}"), value);
    put("mac", get("mac"));
    // xl keeps blanks at the end of a parameter: listed.
    put("bridge", get("bridge").map(|bridge| bridge.trim_end().to_owned()));
    put("model", Some(get("model").unwrap_or_else(|| "rtl8139".to_owned())));
    put("type", Some(get("nictype").filter(|kind| kind == "vif").unwrap_or_else(|| "ioemu".to_owned())));
    put("script", get("script"));
    put("vifname", get("ifname"));
    put("ip", get("ip").map(|ip| ip.trim_end().to_owned()));
    put("gatewaydev", get("gatewaydev"));
    put("backend", get("backend_domname").map(dom0_is_nothing).filter(|name| !name.is_empty()));
    let rate = get("rate_bytes_per_interval").zip(get("rate_interval_usecs"));
    put("rate", rate.map(|(bytes, usecs)| format!("{bytes} {usecs}")));
    put("mtu", get("mtu"));
    put("trusted", Some(get("trusted").unwrap_or_else(|| "true".to_owned())));
}

/// Whether there is an xl to compare with. On Debian 13 there is none: the one of Xen 4.20 has other defaults.
fn has_xl() -> bool {
    if !xl::is_known() {
        eprintln!(
            "not compared: xl of Xen 4.17 is what the comparison knows, and this Debian has another one"
        );
    }
    xl::is_known()
}

/// What xl makes of a text; if it refuses the text, what it says.
fn parsed_by_xl(text: &str) -> Result<Value, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let judgement = xl::parse(file.path()).unwrap();
    judgement.json.map(|json| serde_json::from_str(&json).unwrap()).ok_or(judgement.messages)
}

/// How a guest differs from what xl makes of a text that should mean it.
fn differences(text: &str, guest: &GuestConfig) -> Vec<String> {
    let json = match parsed_by_xl(text) {
        Ok(json) => json,
        Err(messages) => return vec![format!("xl refuses it: {messages}")],
    };
    let (mine, theirs) = (ours(guest), theirs(&json, guest));
    let names = mine.keys().chain(theirs.keys());
    names
        .filter(|name| mine.get(*name) != theirs.get(*name))
        .map(|name| format!("{name}: ours {:?}, xl's {:?}", mine.get(name), theirs.get(name)))
        .collect()
}

fn compare(name: &str, text: &str, guest: &GuestConfig) {
    let differences = differences(text, guest);
    assert!(differences.is_empty(), "{name}: {differences:#?}\n{text}");
}

/// Compares both the file and what ours writes of it, if ours accepts the file.
fn compare_both(name: &str, text: &str) -> bool {
    let loaded = config::load_str(&format!("/srv/{name}"), text);
    let Some(guest) = loaded.config else { return false };
    // A relative path means something else to xl: listed.
    if !loaded.diagnostics.iter().any(|d| d.id == "config::relative-path") {
        compare(name, text, &guest);
    }
    let written = config::write(&guest);
    compare(&format!("{name}, written anew"), &written, &guest);
    // Of other files, xl runs the QEMU in dom0 unless they say otherwise: listed.
    let stubdomain =
        parsed_by_xl(&written).unwrap().pointer("/b_info/device_model_stubdomain").and_then(self::text);
    assert_eq!(stubdomain.as_deref(), Some("true"), "{name}: {written}");
    true
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn xl_makes_the_same_guests_of_the_corpus() {
    if !has_xl() {
        return;
    }
    let mut compared = 0;
    for path in files("corpus").into_iter().chain(files("realworld")) {
        let mut text = fs::read_to_string(&path).unwrap();
        // Listed: xl wants a newline behind a last comment.
        text.push('\n');
        compared += usize::from(compare_both(&path.display().to_string(), &text));
    }
    assert!(compared > 15, "the corpus is gone");
}

#[test]
fn xl_makes_the_same_guests_of_what_generators_write() {
    if !has_xl() {
        return;
    }
    for (variants, write) in
        [(LIBVIRT, libvirt as fn(&str) -> String), (GANETI, ganeti), (XEN_TOOLS, xen_tools)]
    {
        for (lines, refusal) in variants {
            assert_eq!(compare_both(lines, &write(lines)), refusal.is_none(), "{lines}");
        }
    }
}

/// A comparison that compares nothing would find nothing.
#[test]
fn difference_of_any_kind_is_noticed() {
    if !has_xl() {
        return;
    }
    let text = libvirt("serial = \"pty\"");
    let changes: [fn(&mut GuestConfig); 8] = [
        |guest| guest.name.push('x'),
        |guest| guest.max_vcpus += 1,
        |guest| guest.platform.acpi = false,
        |guest| guest.disks.clear(),
        |guest| guest.nics.iter_mut().for_each(|nic| nic.bridge = None),
        |guest| guest.serials.clear(),
        |guest| guest.lifecycle.on_crash = Action::Destroy,
        |guest| guest.boot = config::Boot::default(),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut guest = config::load_str("g.cfg", &text).config.unwrap();
        assert_eq!(differences(&text, &guest), Vec::<String>::new());
        change(&mut guest);
        assert!(!differences(&text, &guest).is_empty(), "change {at}");
    }
}
