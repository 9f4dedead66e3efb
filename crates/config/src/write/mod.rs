//! From a guest to a file that means it: what [`crate::load_str`] reads back as the same guest.

mod devices;

use crate::model::{
    Action, Affinity, Altp2m, DeviceModel, DeviceModelCrashAction, Display, Firmware, FirmwareKind,
    GuestConfig, Lifecycle, Platform, QmpTransport, StubdomainKind, TimerMode, TscMode, UsbController,
    VendorDevice, Vga, Viridian,
};

/// Writes the guest as a configuration file: current keys only, one a line, and none that is at its default,
/// except `device_model_stubdomain_override`: the file means the same to xl.
///
/// ```
/// let text = "builder='hvm'; name='a'; memory=64; vcpus=1; disk=['/a.img,,hda']";
/// let guest = config::load_str("a.cfg", text).config.unwrap();
/// let written = config::write(&guest);
/// assert!(written.contains("type = \"hvm\"\nname = \"a\"\nmemory = 64\n"), "{written}");
/// assert_eq!(config::load_str("b.cfg", &written).config, Some(guest));
/// ```
#[must_use]
pub fn write(guest: &GuestConfig) -> String {
    let mut file = File::default();
    file.text("type", "hvm");
    file.text("name", &guest.name);
    file.some_text("uuid", guest.uuid.map(|uuid| uuid.to_string()).as_deref());
    file.number("memory", guest.memory.mib());
    file.unless("maxmem", guest.max_memory.mib(), guest.memory.mib());
    file.some_number("shadow_memory", guest.shadow_memory.map(|size| size.mib()));
    file.number("vcpus", u64::from(guest.vcpus));
    file.unless("maxvcpus", u64::from(guest.max_vcpus), u64::from(guest.vcpus));
    affinity(&mut file, &guest.affinity);
    firmware(&mut file, &guest.firmware);
    file.text("boot", guest.boot.order());
    platform(&mut file, &guest.platform);
    devices::write(&mut file, guest);
    display(&mut file, &guest.display);
    emulated(&mut file, guest);
    device_model(&mut file, &guest.device_model);
    lifecycle(&mut file, guest.lifecycle);
    file.some_text("seclabel", guest.labels.guest.as_deref());
    file.some_text("init_seclabel", guest.labels.guest_init.as_deref());
    file.some_text("device_model_stubdomain_seclabel", guest.labels.device_model.as_deref());
    file.unless("max_event_channels", u64::from(guest.max_event_channels), 1023);
    file.some_number("max_grant_frames", guest.grants.max_grant_frames.map(u64::from));
    file.some_number("max_maptrack_frames", guest.grants.max_maptrack_frames.map(u64::from));
    file.some_number("max_grant_version", guest.grants.max_version.map(u64::from));
    file.switch("nomigrate", guest.no_migrate, false);
    file.unless("vmtrace_buf_kb", guest.vmtrace_buffer.get(), 0);
    file.0
}

/// The text so far.
#[derive(Default)]
struct File(String);

impl File {
    fn line(&mut self, key: &str, value: &str) {
        self.0.push_str(key);
        self.0.push_str(" = ");
        self.0.push_str(value);
        self.0.push('\n');
    }

    fn number(&mut self, key: &str, value: u64) {
        self.line(key, &value.to_string());
    }

    fn some_number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    /// A number that is not the default.
    fn unless(&mut self, key: &str, value: u64, default: u64) {
        self.some_number(key, Some(value).filter(|value| *value != default));
    }

    fn switch(&mut self, key: &str, value: bool, default: bool) {
        self.unless(key, u64::from(value), u64::from(default));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.line(key, &quoted(value));
    }

    fn some_text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// A list, one item a line; nothing if it is empty.
    fn list(&mut self, key: &str, items: &[String]) {
        if items.is_empty() {
            return;
        }
        let lines: String = items.iter().map(|item| format!("    {},\n", quoted(item))).collect();
        self.line(key, &format!("[\n{lines}]"));
    }
}

/// A string as the language has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn affinity(file: &mut File, affinity: &Affinity) {
    match affinity {
        Affinity::Any => {}
        Affinity::All(cpus) => file.text("cpus", &cpus.to_string()),
        Affinity::Each(sets) if sets.is_empty() => file.line("cpus", "[]"),
        Affinity::Each(sets) => {
            let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
            file.list("cpus", &sets);
        }
    }
}

fn firmware(file: &mut File, firmware: &Firmware) {
    match firmware.kind {
        FirmwareKind::SeaBios => {}
        FirmwareKind::Ovmf => file.text("bios", "ovmf"),
    }
    file.some_text("bios_path_override", firmware.bios_path.as_deref());
    file.some_text("firmware_override", firmware.hvmloader.as_deref());
    file.some_text("smbios_firmware", firmware.smbios.as_deref());
    let strings = firmware.smbios_strings.iter();
    let strings: Vec<String> =
        strings.map(|string| format!("{}={}", string.field.name(), string.value)).collect();
    file.list("smbios", &strings);
    file.some_text("acpi_firmware", firmware.acpi.as_deref());
}

fn platform(file: &mut File, platform: &Platform) {
    let default = Platform::default();
    for (key, value, default) in [
        ("acpi", platform.acpi, default.acpi),
        ("acpi_s3", platform.acpi_s3, default.acpi_s3),
        ("acpi_s4", platform.acpi_s4, default.acpi_s4),
        ("acpi_laptop_slate", platform.acpi_laptop_slate, default.acpi_laptop_slate),
        ("apic", platform.apic, default.apic),
        ("pae", platform.pae, default.pae),
        ("hpet", platform.hpet, default.hpet),
        ("vpt_align", platform.vpt_align, default.vpt_align),
        ("nestedhvm", platform.nested_hvm, default.nested_hvm),
        ("xen_platform_pci", platform.xen_platform_pci, default.xen_platform_pci),
        ("vpmu", platform.vpmu, default.vpmu),
        ("msr_relaxed", platform.msr_relaxed, default.msr_relaxed),
        ("localtime", platform.clock.localtime, default.clock.localtime),
    ] {
        file.switch(key, value, default);
    }
    for (key, value) in [("hap", platform.hap), ("oos", platform.oos), ("hvm_pirq", platform.hvm_pirq)] {
        file.some_number(key, value.map(u64::from));
    }
    let altp2m = match platform.altp2m {
        Altp2m::Disabled => None,
        Altp2m::Mixed => Some("mixed"),
        Altp2m::External => Some("external"),
        Altp2m::Limited => Some("limited"),
    };
    file.some_text("altp2m", altp2m);
    viridian(file, &platform.viridian);
    let tsc_mode = match platform.tsc_mode {
        TscMode::Default => None,
        TscMode::AlwaysEmulate => Some("always_emulate"),
        TscMode::Native => Some("native"),
    };
    file.some_text("tsc_mode", tsc_mode);
    let timer_mode = match platform.timer_mode {
        TimerMode::DelayForMissedTicks => Some("delay_for_missed_ticks"),
        TimerMode::NoDelayForMissedTicks => None,
        TimerMode::NoMissedTicksPending => Some("no_missed_ticks_pending"),
        TimerMode::OneMissedTickPending => Some("one_missed_tick_pending"),
    };
    file.some_text("timer_mode", timer_mode);
    if platform.clock.offset_seconds != 0 {
        // In quotes, because the language has no negative numbers.
        file.text("rtc_timeoffset", &platform.clock.offset_seconds.to_string());
    }
    cpuid(file, platform);
    file.some_number("mmio_hole", platform.mmio_hole.map(|size| size.mib()));
    file.some_text("ms_vm_genid", platform.vm_generation_id.then_some("generate"));
    if platform.mca_lmce {
        file.list("mca_caps", &["lmce".to_owned()]);
    }
}

fn viridian(file: &mut File, viridian: &Viridian) {
    if viridian.defaults && *viridian == (Viridian { defaults: true, ..Viridian::default() }) {
        file.number("viridian", 1);
        return;
    }
    let mut words = Vec::new();
    words.extend(viridian.defaults.then(|| "defaults".to_owned()));
    words.extend(viridian.all.then(|| "all".to_owned()));
    words.extend(viridian.enable.iter().map(|group| group.name().to_owned()));
    words.extend(viridian.disable.iter().map(|group| format!("!{}", group.name())));
    file.list("viridian", &words);
}

fn cpuid(file: &mut File, platform: &Platform) {
    let mut lines = Vec::new();
    for leaf in &platform.cpuid.leaves {
        let subleaf = leaf.subleaf.map_or_else(String::new, |subleaf| format!(",{subleaf:#x}"));
        let registers: Vec<String> = ["eax", "ebx", "ecx", "edx"]
            .iter()
            .zip(&leaf.registers)
            .filter_map(|(name, policy)| policy.as_ref().map(|policy| format!("{name}={policy}")))
            .collect();
        lines.push(format!("{:#x}{subleaf}:{}", leaf.leaf, registers.join(",")));
    }
    file.list("cpuid", &lines);
}

fn display(file: &mut File, display: &Display) {
    let vga = match display.vga {
        Vga::Cirrus => "cirrus",
        Vga::StdVga => "stdvga",
        Vga::None => "none",
    };
    file.text("vga", vga);
    file.number("videoram", display.video_memory.mib());
    file.some_text("keymap", display.keymap.as_deref());
}

fn emulated(file: &mut File, guest: &GuestConfig) {
    let (usb, version) = match guest.usb.controller {
        UsbController::None => (false, 0),
        UsbController::Machine => (true, 0),
        UsbController::Uhci => (false, 1),
        UsbController::Ehci => (false, 2),
        UsbController::Xhci => (false, 3),
    };
    file.switch("usb", usb, false);
    file.unless("usbversion", version, 0);
    file.list("usbdevice", &guest.usb.devices);
    file.some_text("soundhw", guest.sound.as_deref());
    match guest.vendor_device {
        VendorDevice::None => {}
        VendorDevice::XenServer => file.text("vendor_device", "xenserver"),
    }
}

fn device_model(file: &mut File, dm: &DeviceModel) {
    // The default here and not xl's, which would run QEMU in dom0.
    file.number("device_model_stubdomain_override", 1);
    match dm.kind {
        StubdomainKind::Pv => {}
        StubdomainKind::Pvh => file.text("stubdomain_type", "pvh"),
    }
    file.some_text("stubdomain_kernel", dm.kernel.as_deref());
    file.some_text("stubdomain_ramdisk", dm.ramdisk.as_deref());
    file.some_text("stubdomain_cmdline", dm.cmdline.as_deref());
    file.some_number("stubdomain_memory", dm.memory.map(|size| size.mib()));
    file.list("device_model_args", &dm.extra_args);
    match dm.on_crash {
        DeviceModelCrashAction::Destroy => {}
        DeviceModelCrashAction::Restart => file.text("on_device_model_crash", "restart"),
        DeviceModelCrashAction::Preserve => file.text("on_device_model_crash", "preserve"),
    }
    match dm.qmp {
        QmpTransport::Vchan => {}
        QmpTransport::Console => file.text("device_model_qmp", "console"),
    }
}

fn lifecycle(file: &mut File, lifecycle: Lifecycle) {
    let default = Lifecycle::default();
    for (key, action, default) in [
        ("on_poweroff", lifecycle.on_poweroff, default.on_poweroff),
        ("on_reboot", lifecycle.on_reboot, default.on_reboot),
        ("on_crash", lifecycle.on_crash, default.on_crash),
        ("on_watchdog", lifecycle.on_watchdog, default.on_watchdog),
        ("on_soft_reset", lifecycle.on_soft_reset, default.on_soft_reset),
    ] {
        if action != default {
            let word = match action {
                Action::Destroy => "destroy",
                Action::Restart => "restart",
                Action::RenameRestart => "rename-restart",
                Action::Preserve => "preserve",
            };
            file.text(key, word);
        }
    }
}
