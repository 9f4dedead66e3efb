use config::{
    Action, Affinity, Altp2m, Channel, ChannelConnection, CpuidPolicy, Disk, DiskController, DiskSource,
    FirmwareKind, GuestConfig, Nic, SerialOutput, TimerMode, TscMode, UsbController, Uuid, VendorDevice, Vga,
    Viridian,
};
use serde_json::{Map, Value, json};
use xen_types::KiB;

use super::tables::VIRIDIAN_LAST;

/// What stock xl has to know of a guest beyond its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The guest's UUID.
    pub uuid: Uuid,
    /// The vCPUs that QEMU has, by number.
    pub online_vcpus: Vec<u32>,
    /// The memory of its page tables: what Xen has set aside for HAP or shadow paging.
    pub paging_memory: KiB,
    /// The guest's VM generation ID, if it has one.
    pub generation_id: Option<[u8; 16]>,
    /// Whether the guest was created with `hvm_pirq`.
    pub hvm_pirq: bool,
    /// The stubdomain's kernel: a path in dom0, or the name of a file in Xen's firmware directory.
    pub stub_kernel: String,
    /// Its initramfs, likewise.
    pub stub_ramdisk: String,
    /// Its memory.
    pub stub_memory: KiB,
}

/// Returns libxl's JSON of a guest, with which stock xl can restore it. It has no NUL at its end.
///
/// The guest's memory is the configuration's; NICs have the addresses that they really have. What only Outrigger knows
/// is left out: what happens when the device model crashes, and how QMP comes from the stubdomain.
#[must_use]
pub fn encode(config: &GuestConfig, facts: &Facts) -> Vec<u8> {
    let mut top = json!({
        "c_info": create(config, facts),
        "b_info": build(config, facts),
        "disks": config.disks.iter().map(disk).collect::<Vec<_>>(),
        "nics": config.nics.iter().map(|it| nic(it, &facts.uuid)).collect::<Vec<_>>(),
        "on_poweroff": action(config.lifecycle.on_poweroff),
        "on_reboot": action(config.lifecycle.on_reboot),
        "on_watchdog": action(config.lifecycle.on_watchdog),
        "on_crash": action(config.lifecycle.on_crash),
        "on_soft_reset": action(config.lifecycle.on_soft_reset),
    });
    if !config.channels.is_empty() {
        let channels = config.channels.iter().enumerate().map(|(at, it)| channel(at, it));
        put(&mut top, "channels", channels.collect::<Vec<_>>());
    }
    serde_json::to_vec(&top).expect("strings, numbers and lists can be written")
}

/// Sets a member of an object.
fn put(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        map.insert(key.to_owned(), value.into());
    }
}

fn put_some(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        put(object, key, value);
    }
}

const fn flag(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

const fn action(action: Action) -> &'static str {
    match action {
        Action::Destroy => "destroy",
        Action::Restart => "restart",
        Action::RenameRestart => "restart_rename",
        Action::Preserve => "preserve",
    }
}

fn create(config: &GuestConfig, facts: &Facts) -> Value {
    let mut create = json!({ "type": "hvm", "name": config.name, "uuid": facts.uuid.to_string() });
    put_some(&mut create, "hap", config.platform.hap.map(flag));
    put_some(&mut create, "oos", config.platform.oos.map(flag));
    // One label is the first and only one.
    let labels = &config.labels;
    put_some(&mut create, "ssid_label", labels.guest_init.clone().or_else(|| labels.guest.clone()));
    create
}

fn build(config: &GuestConfig, facts: &Facts) -> Value {
    let platform = &config.platform;
    let mut build = json!({
        "max_vcpus": config.max_vcpus,
        "avail_vcpus": bitmap(facts.online_vcpus.clone()),
        "max_memkb": config.max_memory.get(),
        "target_memkb": config.memory.get(),
        "video_memkb": config.display.video_memory.get(),
        "shadow_memkb": facts.paging_memory.get(),
        "tsc_mode": tsc_mode(platform.tsc_mode),
        "timer_mode": timer_mode(platform.timer_mode),
        // libxl has it without a sign.
        "rtc_timeoffset": u32::from_ne_bytes(platform.clock.offset_seconds.to_ne_bytes()),
        "localtime": flag(platform.clock.localtime),
        "disable_migrate": flag(config.no_migrate),
        "event_channels": config.max_event_channels,
        "acpi": flag(platform.acpi),
        "apic": flag(platform.apic),
        "nested_hvm": flag(platform.nested_hvm),
        "altp2m": altp2m(platform.altp2m),
        "vpmu": flag(platform.vpmu),
        "device_model_version": "qemu_xen",
        "device_model_stubdomain": "True",
        "stubdomain_kernel": facts.stub_kernel,
        "stubdomain_ramdisk": facts.stub_ramdisk,
        "stubdomain_memkb": facts.stub_memory.get(),
        "arch_x86": { "msr_relaxed": flag(platform.msr_relaxed) },
        "type.hvm": hvm(config, facts),
    });
    let grants = &config.grants;
    put_some(&mut build, "max_grant_frames", grants.max_grant_frames);
    put_some(&mut build, "max_maptrack_frames", grants.max_maptrack_frames);
    put_some(&mut build, "max_grant_version", grants.max_version);
    put_some(&mut build, "stubdomain_cmdline", config.device_model.cmdline.clone());
    put_some(&mut build, "device_model_ssid_label", config.labels.device_model.clone());
    if config.labels.guest_init.is_some() {
        put_some(&mut build, "exec_ssid_label", config.labels.guest.clone());
    }
    if !config.device_model.extra_args.is_empty() {
        put(&mut build, "extra_hvm", config.device_model.extra_args.clone());
    }
    if config.vmtrace_buffer.get() > 0 {
        put(&mut build, "vmtrace_buf_kb", config.vmtrace_buffer.get());
    }
    if let Some(sets) = affinity(&config.affinity, config.max_vcpus) {
        put(&mut build, "vcpu_hard_affinity", sets);
    }
    if !platform.cpuid.leaves.is_empty() {
        put(&mut build, "cpuid", cpuid(&platform.cpuid));
    }
    build
}

/// A bitmap as libxl reads it: it sizes the bitmap by the last number, and drops larger ones before it.
fn bitmap<T: Ord>(mut bits: Vec<T>) -> Vec<T> {
    bits.sort_unstable();
    bits.dedup();
    bits
}

fn affinity(affinity: &Affinity, vcpus: u32) -> Option<Vec<Value>> {
    let set = |cpus: &config::CpuSet| json!(cpus.iter().collect::<Vec<_>>());
    match affinity {
        Affinity::Any => None,
        Affinity::All(cpus) => Some((0..vcpus).map(|_| set(cpus)).collect()),
        Affinity::Each(sets) => Some(sets.iter().map(set).collect()),
    }
}

/// The form that every libxl reads.
fn cpuid(policy: &CpuidPolicy) -> Vec<Value> {
    let leaves = policy.leaves.iter().map(|leaf| {
        let mut value = json!({ "leaf": leaf.leaf });
        put_some(&mut value, "subleaf", leaf.subleaf);
        for (name, policy) in ["eax", "ebx", "ecx", "edx"].into_iter().zip(&leaf.registers) {
            put_some(&mut value, name, policy.clone());
        }
        value
    });
    leaves.collect()
}

const fn tsc_mode(mode: TscMode) -> &'static str {
    match mode {
        TscMode::Default => "default",
        TscMode::AlwaysEmulate => "always_emulate",
        TscMode::Native => "native",
    }
}

const fn timer_mode(mode: TimerMode) -> &'static str {
    match mode {
        TimerMode::DelayForMissedTicks => "delay_for_missed_ticks",
        TimerMode::NoDelayForMissedTicks => "no_delay_for_missed_ticks",
        TimerMode::NoMissedTicksPending => "no_missed_ticks_pending",
        TimerMode::OneMissedTickPending => "one_missed_tick_pending",
    }
}

const fn altp2m(mode: Altp2m) -> &'static str {
    match mode {
        Altp2m::Disabled => "disabled",
        Altp2m::Mixed => "mixed",
        Altp2m::External => "external",
        Altp2m::Limited => "limited",
    }
}

fn hvm(config: &GuestConfig, facts: &Facts) -> Value {
    let (platform, firmware) = (&config.platform, &config.firmware);
    let mut hvm = json!({
        "bios": match firmware.kind { FirmwareKind::SeaBios => "seabios", FirmwareKind::Ovmf => "ovmf" },
        "pae": flag(platform.pae),
        "acpi_s3": flag(platform.acpi_s3),
        "acpi_s4": flag(platform.acpi_s4),
        "acpi_laptop_slate": flag(platform.acpi_laptop_slate),
        "hpet": flag(platform.hpet),
        "vpt_align": flag(platform.vpt_align),
        "pirq": flag(facts.hvm_pirq),
        "xen_platform_pci": flag(platform.xen_platform_pci),
        "hdtype": match config.disk_controller { DiskController::Ide => "ide", DiskController::Ahci => "ahci" },
        "vga": { "kind": match config.display.vga {
            Vga::Cirrus => "cirrus",
            Vga::StdVga => "std",
            Vga::None => "none",
        } },
        // libxl's default is a VNC server, for which xl would run a QEMU in dom0.
        "vnc": { "enable": "False" },
        "sdl": { "enable": "False" },
        "boot": config.boot.order(),
    });
    put_some(&mut hvm, "firmware", firmware.hvmloader.clone());
    put_some(&mut hvm, "system_firmware", firmware.bios_path.clone());
    put_some(&mut hvm, "smbios_firmware", firmware.smbios.clone());
    put_some(&mut hvm, "acpi_firmware", firmware.acpi.clone());
    put_some(&mut hvm, "mmio_hole_memkb", platform.mmio_hole.map(KiB::get));
    put_some(&mut hvm, "ms_vm_genid", facts.generation_id.map(|id| id.to_vec()));
    put_some(&mut hvm, "mca_caps", platform.mca_lmce.then_some(1));
    put_some(&mut hvm, "keymap", config.display.keymap.clone());
    put_some(&mut hvm, "soundhw", config.sound.clone());
    if config.vendor_device == VendorDevice::XenServer {
        put(&mut hvm, "vendor_device", "xenserver");
    }
    viridian(&mut hvm, &platform.viridian);
    usb(&mut hvm, config);
    serials(&mut hvm, &config.serials);
    hvm
}

fn viridian(hvm: &mut Value, viridian: &Viridian) {
    if viridian.defaults {
        put(hvm, "viridian", "True");
    }
    let disable: Vec<u16> = viridian.disable.iter().map(|group| *group as u16).collect();
    let enable: Vec<u16> = if viridian.all {
        (0..=VIRIDIAN_LAST).filter(|bit| !disable.contains(bit)).collect()
    } else {
        viridian.enable.iter().map(|group| *group as u16).collect()
    };
    for (key, bits) in [("viridian_enable", enable), ("viridian_disable", disable)] {
        if !bits.is_empty() {
            put(hvm, key, bitmap(bits));
        }
    }
}

fn usb(hvm: &mut Value, config: &GuestConfig) {
    let version = match config.usb.controller {
        UsbController::None => return,
        UsbController::Machine => {
            put(hvm, "usb", "True");
            if !config.usb.devices.is_empty() {
                put(hvm, "usbdevice_list", config.usb.devices.clone());
            }
            return;
        }
        UsbController::Uhci => 1,
        UsbController::Ehci => 2,
        UsbController::Xhci => 3,
    };
    put(hvm, "usbversion", version);
}

fn serials(hvm: &mut Value, serials: &[SerialOutput]) {
    let word = |serial: &SerialOutput| match serial {
        SerialOutput::Pty => "pty".to_owned(),
        SerialOutput::File(path) => format!("file:{path}"),
        SerialOutput::Null => "null".to_owned(),
    };
    match serials {
        [] => {}
        [one] => put(hvm, "serial", word(one)),
        more => put(hvm, "serial_list", more.iter().map(word).collect::<Vec<_>>()),
    }
}

/// A backend domain by number or name.
fn put_backend(device: &mut Value, backend: Option<&str>) {
    match backend.map(|name| (name, name.parse::<u16>())) {
        None => {}
        Some((_, Ok(domid))) => put(device, "backend_domid", domid),
        Some((name, Err(_))) => put(device, "backend_domname", name),
    }
}

fn disk(disk: &Disk) -> Value {
    let (path, script, format) = match &disk.source {
        DiskSource::Empty => ("", None, "empty"),
        DiskSource::Path(path) => (path.as_str(), None, "raw"),
        DiskSource::Script { script, target } => (target.as_str(), Some(script.as_str()), "raw"),
    };
    let mut value = json!({
        "pdev_path": path,
        "vdev": disk.vdev.to_string(),
        "format": format,
        "readwrite": i32::from(disk.is_writable()),
        "is_cdrom": i32::from(disk.is_cdrom()),
        "removable": i32::from(disk.is_cdrom()),
    });
    if !disk.is_cdrom() {
        // libxl chooses for CD drives, and refuses this.
        put(&mut value, "backend", "phy");
    }
    put_some(&mut value, "script", script);
    put_some(&mut value, "discard_enable", disk.discard.map(flag));
    if disk.direct_io_safe {
        put(&mut value, "direct_io_safe", true);
    }
    if !disk.trusted {
        put(&mut value, "trusted", "False");
    }
    put_backend(&mut value, disk.backend.as_deref());
    value
}

fn nic(nic: &Nic, guest: &Uuid) -> Value {
    let mut value = json!({
        "devid": nic.devid,
        "mac": nic.address(guest).to_string(),
        "model": nic.model,
        "nictype": match nic.kind {
            config::NicKind::Ioemu => "vif_ioemu",
            config::NicKind::Vif => "vif",
        },
    });
    put_some(&mut value, "mtu", nic.mtu);
    put_some(&mut value, "bridge", nic.bridge.clone());
    put_some(&mut value, "script", nic.script.clone());
    put_some(&mut value, "ifname", nic.vifname.clone());
    put_some(&mut value, "ip", nic.ip.clone());
    put_some(&mut value, "gatewaydev", nic.gateway_dev.clone());
    if let Some(rate) = nic.rate {
        put(&mut value, "rate_bytes_per_interval", rate.bytes_per_interval);
        put(&mut value, "rate_interval_usecs", rate.interval_usecs);
    }
    if !nic.trusted {
        put(&mut value, "trusted", "False");
    }
    put_backend(&mut value, nic.backend.as_deref());
    value
}

fn channel(at: usize, channel: &Channel) -> Value {
    let mut value = json!({ "devid": at, "name": channel.name });
    match &channel.connection {
        ChannelConnection::Pty => put(&mut value, "connection.pty", Map::new()),
        ChannelConnection::Socket(path) => put(&mut value, "connection.socket", json!({ "path": path })),
    }
    value
}
