//! Plans of many configurations, and what holds for all of them.

use config::GuestConfig;
use proptest::prelude::*;
use qemu_args::{Facts, Part, Plan, PlanError, QemuFeatures, plan};
use stubdom_abi::QemuAbilities;
use xen_types::DomId;

fn guest(settings: &str) -> GuestConfig {
    let text = format!("type = 'hvm'\nname = 'g'\nmemory = 256\n{settings}\n");
    let loaded = config::load_str("test.cfg", &text);
    let rendered = loaded.render(false);
    loaded.config.unwrap_or_else(|| panic!("{rendered}"))
}

fn facts() -> Facts {
    Facts {
        uuid: config::Uuid::from_u128(0x1b4e_28ba_2fa1_11d2_883f_0016_d3cc_a427),
        qemu: QemuFeatures::default(),
        incoming: false,
    }
}

fn target() -> DomId {
    DomId::new(7).expect("7 is not reserved")
}

fn plan_of(settings: &str) -> Plan {
    plan(&guest(settings), &facts()).unwrap_or_else(|error| panic!("{settings}: {error}"))
}

/// The plan as a snapshot shows it: an option and its value on one line each, then what the stubdomain needs.
fn show(plan: &Plan) -> String {
    let mut text = String::new();
    for arg in plan.argv(target()).expect("a plan has arguments").iter() {
        let arg = String::from_utf8_lossy(arg);
        let separator = if text.is_empty() || arg.starts_with('-') { "\n" } else { " " };
        text.push_str(separator);
        text.push_str(&arg);
    }
    for disk in &plan.disks {
        let medium = if disk.medium { "" } else { ", no medium" };
        text.push_str(&format!("\ndisk {}: {} {:?}{medium}", disk.guest_vdev, disk.device, disk.place));
    }
    for disk in &plan.unemulated {
        text.push_str(&format!("\nPV only {}: {:?}", disk.vdev, disk.why));
    }
    for nic in &plan.nics {
        text.push_str(&format!("\nnic {}: {} {}", nic.devid, nic.tap, nic.mac));
    }
    for serial in &plan.serials {
        text.push_str(&format!("\nCOM{}: {}", serial.port + 1, serial.console.device()));
    }
    if let Some(console) = plan.qmp {
        text.push_str(&format!("\nQMP: {}", console.device()));
    }
    text.trim_start().to_owned()
}

fn check(name: &str, settings: &str) {
    check_with(name, settings, &facts());
}

fn check_with(name: &str, settings: &str, facts: &Facts) {
    let plan = plan(&guest(settings), facts).unwrap_or_else(|error| panic!("{settings}: {error}"));
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true, description => settings }, {
        insta::assert_snapshot!(name, show(&plan));
    });
}

#[test]
fn monitor_on_a_console_is_behind_the_serial_ports() {
    check("qmp-console", "vga='none'\nserial=['pty', 'pty']\ndevice_model_qmp='console'");
}

#[test]
fn a_guest_with_nothing() {
    check("nothing", "");
}

#[test]
fn the_guest_of_the_demonstration() {
    check("hello", "disk = [ '/a.img,raw,hda,w', '/b.img,raw,hdb,w' ]\nserial = [ 'pty', 'pty' ]");
}

#[test]
fn disks_on_every_controller() {
    check(
        "disks-ide",
        "disk = [ '/a,,hda', '/b,,xvdb', '/c,,sda', '/d,,sdc,ro', '/e.iso,,hdc,cdrom', ',,hdd,cdrom', '/f,,xvde' ]",
    );
    check(
        "disks-ahci",
        "hdtype = 'ahci'\ndisk = [ '/a,,hda', '/b,,xvdb', '/e.iso,,hdc,cdrom', '/f,,xvdf', '/g,,xvdg' ]",
    );
}

#[test]
fn disks_that_cannot_be_emulated_stay_pv() {
    check(
        "disks-pv-only",
        "disk = [ '/a,,xvda', '/b,,hda', '/c,,hdb1', '/d,,sdh', '/e,,xvdc,ro', '/f.iso,,xvde,cdrom', '/g,,d30p0' ]",
    );
}

#[test]
fn the_27th_disk_has_no_letter() {
    let disks: Vec<String> = (10..37).map(|n| format!("'/x{n},,d{n}p0'")).collect();
    let plan = plan_of(&format!("disk = [ {}, '/y,,hda' ]", disks.join(", ")));
    assert!(plan.disks.is_empty());
    assert_eq!(plan.unemulated.last().map(|disk| disk.why), Some(qemu_args::WhyNot::NoLetter));
}

#[test]
fn nics_of_each_kind() {
    check(
        "nics",
        "vif = [ '', 'model=e1000,mac=00:16:3e:00:00:01,bridge=br1,vifname=lan', 'type=vif', 'model=virtio-net-pci,devid=9' ]",
    );
}

#[test]
fn nics_beyond_the_pci_bus_are_refused() {
    let nics = |count: usize| format!("vif = [ {} ]", vec!["'model=e1000'"; count].join(", "));
    // 32 slots but for the bridges, the platform device and the graphics card.
    plan_of(&nics(28));
    let refused = plan(&guest(&nics(29)), &facts());
    assert_eq!(refused, Err(PlanError::NoPciSlot { device: "e1000".to_owned() }));
}

#[test]
fn graphics_and_keyboard() {
    check("vga-std", "vga = 'stdvga'\nvideoram = 32\nkeymap = 'de'");
    check("vga-none", "vga = 'none'");
}

#[test]
fn usb_controllers_and_devices() {
    check("usb-machine", "usb = 1\nusbdevice = [ 'tablet', 'keyboard' ]");
    check("usb-1", "usbversion = 1");
    check("usb-2", "usbversion = 2");
    check("usb-3", "usbversion = 3");
}

#[test]
fn sound_cards() {
    check("sound-hda", "soundhw = 'hda'");
    check("sound-ac97", "soundhw = 'ac97'");
}

#[test]
fn processors_memory_and_machine() {
    check(
        "machine",
        "vcpus = 2\nmaxvcpus = 4\nmaxmem = 512\nacpi = 0\nxen_platform_pci = 0\nmmio_hole = 2048\nboot = 'dcn'",
    );
}

#[test]
fn arguments_of_the_configuration_come_last() {
    check(
        "extra",
        "vendor_device = 'xenserver'\ndevice_model_args = [ '-trace', 'x' ]\ndevice_model_args_hvm = [ '-global', 'a.b=c' ]",
    );
}

#[test]
fn a_sandbox_and_an_incoming_state() {
    let qemu = QemuFeatures { sandbox: true, ..QemuFeatures::default() };
    let facts = Facts { qemu, incoming: true, ..facts() };
    check_with("sandbox-incoming", "", &facts);
}

#[test]
fn what_the_images_qemu_lacks_is_refused() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let abilities = QemuAbilities {
        machines: names(&["xenfv", "xenfv-4.2"]),
        devices: names(&["VGA", "cirrus-vga", "rtl8139", "ahci", "ide-hd", "piix3-usb-uhci", "usb-tablet"]),
        formats: names(&["host_device"]),
    };
    let qemu = QemuFeatures { abilities: Some(abilities), ..QemuFeatures::default() };
    let facts = Facts { qemu, ..facts() };
    let nic = "vif = [ 'mac=00:16:3e:00:00:01' ]";
    let disk = "disk = [ '/d,raw,hda,rw' ]\nhdtype = 'ahci'";
    let usb = "usb = 1\nusbdevice = 'tablet'";
    for settings in [nic, disk, usb, "vga = 'stdvga'"] {
        assert_eq!(plan(&guest(settings), &facts).expect(settings).machine, "xenfv-4.2");
    }
    for (settings, kind, name) in [
        ("vif = [ 'model=e1000' ]", Part::Device, "e1000"),
        ("soundhw = 'hda'", Part::Device, "intel-hda"),
        ("usbversion = 3", Part::Device, "nec-usb-xhci"),
        ("usbdevice = 'mouse'", Part::Device, "usb-mouse"),
        ("disk = [ '/d,raw,sda,rw' ]", Part::Device, "lsi53c895a"),
        ("xen_platform_pci = 0", Part::Machine, "pc-i440fx-7.2"),
    ] {
        let expected = PlanError::NotInQemu { kind, name: name.to_owned() };
        assert_eq!(plan(&guest(settings), &facts), Err(expected), "{settings}");
    }
}

#[test]
fn a_name_cannot_smuggle_options() {
    let mut config = guest("");
    config.name = "a,debug-threads=on".to_owned();
    let plan = plan(&config, &facts()).unwrap();
    assert!(plan.argv(target()).unwrap().iter().any(|arg| arg == b"guest=a,,debug-threads=on"));
}

#[test]
fn what_cannot_be_planned_is_said() {
    let mut config = guest("disk = [ '/a,,hda' ]");
    config.disks[0].access = config::Access::ReadOnly;
    assert_eq!(plan(&config, &facts()), Err(PlanError::ReadOnlyHardDisk(config.disks[0].vdev)));
    let mut config = guest("");
    config.display.video_memory = config.max_memory;
    assert!(matches!(plan(&config, &facts()), Err(PlanError::NoMemory { .. })));
    let config = guest(&format!("device_model_args = [ '{}' ]", "x".repeat(5000)));
    assert!(matches!(plan(&config, &facts()), Err(PlanError::Argv(_))));
}

fn disk() -> impl Strategy<Value = String> {
    let vdev = prop_oneof!["hd[a-d]", "sd[a-p]", "xvd[a-h]", "xvd[a-d]1"];
    (vdev, prop::sample::select(&["", ",cdrom"][..])).prop_map(|(vdev, kind)| format!("/i,,{vdev}{kind}"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_disk_is_planned_once_and_no_place_twice(disks in prop::collection::vec(disk(), 0..12)) {
        let text = format!("type='hvm'\nname='g'\nmemory=64\ndisk=[ '{}' ]\n", disks.join("','"));
        // Two disks with one name are refused before.
        let Some(config) = config::load_str("g", &text).config else { return Ok(()) };
        let plan = plan(&config, &facts()).unwrap();
        let mut indices: Vec<usize> = plan.disks.iter().map(|d| d.index).collect();
        indices.extend(plan.unemulated.iter().map(|d| d.index));
        indices.sort_unstable();
        prop_assert_eq!(indices, (0..config.disks.len()).collect::<Vec<_>>());
        let mut places: Vec<_> = plan.disks.iter().map(|d| d.place).collect();
        places.sort_unstable();
        let all = places.len();
        places.dedup();
        prop_assert_eq!(places.len(), all);
    }
}
