//! What Xen and hvmloader give the guest.

use xen_types::KiB;

use super::basics::conflict;
use super::cpuid;
use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Value};
use crate::model::{
    Altp2m, Clock, Firmware, FirmwareKind, GuestConfig, Platform, TimerMode, TscMode, Viridian, ViridianGroup,
};
use crate::number;
use crate::reader::{Reader, choices};

pub(super) fn platform(reader: &mut Reader<'_>) -> Platform {
    let default = Platform::default();
    let mut bool = |key, default| reader.bool(key).unwrap_or(default);
    let mut platform = Platform {
        acpi: bool("acpi", default.acpi),
        acpi_s3: bool("acpi_s3", default.acpi_s3),
        acpi_s4: bool("acpi_s4", default.acpi_s4),
        acpi_laptop_slate: bool("acpi_laptop_slate", default.acpi_laptop_slate),
        apic: bool("apic", default.apic),
        pae: bool("pae", default.pae),
        hpet: bool("hpet", default.hpet),
        vpt_align: bool("vpt_align", default.vpt_align),
        nested_hvm: bool("nestedhvm", default.nested_hvm),
        xen_platform_pci: bool("xen_platform_pci", default.xen_platform_pci),
        vpmu: bool("vpmu", default.vpmu),
        msr_relaxed: bool("msr_relaxed", default.msr_relaxed),
        ..default
    };
    platform.hap = reader.bool("hap");
    platform.oos = reader.bool("oos");
    platform.altp2m = altp2m(reader);
    platform.hvm_pirq = reader.bool("hvm_pirq");
    platform.viridian = viridian(reader);
    platform.tsc_mode = tsc_mode(reader).unwrap_or(TscMode::Default);
    platform.timer_mode = timer_mode(reader).unwrap_or(TimerMode::NoDelayForMissedTicks);
    platform.clock = clock(reader);
    platform.cpuid = cpuid::policy(reader);
    // HVM_BELOW_4G_MMIO_LENGTH and _START, xen/include/public/hvm/e820.h.
    platform.mmio_hole = reader.u32("mmio_hole", 256..=3840).map(|mib| KiB::from_mib(u64::from(mib)));
    platform.vm_generation_id =
        reader.word("ms_vm_genid", &[("generate", true), ("none", false)]).unwrap_or_default();
    platform.mca_lmce = mca_caps(reader);
    platform
}

/// A word, or its number, which xl deprecates.
fn word_or_number<T: Copy>(reader: &mut Reader<'_>, key: &'static str, words: &[(&str, T)]) -> Option<T> {
    let atom = reader.atom(key)?;
    let Ok(number) = number::parse(atom.text.as_str()) else {
        return reader.word(key, words);
    };
    let Some((word, value)) = usize::try_from(number).ok().and_then(|at| words.get(at)) else {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("`{key}` has no value {number}");
        reader.push(
            Diagnostic::error("config::unknown-value", message).at(atom.span).help(choices("", &names)),
        );
        return None;
    };
    reader.push(
        Diagnostic::warning("config::deprecated", format!("Numbers for `{key}` are deprecated"))
            .at(atom.span)
            .help(format!("write `{key} = \"{word}\"`")),
    );
    Some(*value)
}

fn altp2m(reader: &mut Reader<'_>) -> Altp2m {
    let words = [
        ("disabled", Altp2m::Disabled),
        ("mixed", Altp2m::Mixed),
        ("external", Altp2m::External),
        ("limited", Altp2m::Limited),
    ];
    let new = word_or_number(reader, "altp2m", &words);
    if let Some(old) = reader.bool("altp2mhvm") {
        let span = reader.value_span("altp2mhvm");
        reader.push(
            Diagnostic::warning("config::deprecated", "`altp2mhvm` is deprecated")
                .at(span)
                .help("use `altp2m = \"mixed\"`"),
        );
        if old && matches!(new, None | Some(Altp2m::Disabled)) {
            return Altp2m::Mixed;
        }
    }
    new.unwrap_or(Altp2m::Disabled)
}

fn tsc_mode(reader: &mut Reader<'_>) -> Option<TscMode> {
    let words = [
        ("default", TscMode::Default),
        ("always_emulate", TscMode::AlwaysEmulate),
        ("native", TscMode::Native),
    ];
    // 3 was its number.
    let removed =
        |atom: &Atom| atom.text.as_str() == "native_paravirt" || number::parse(atom.text.as_str()) == Ok(3);
    if reader.atom("tsc_mode").is_some_and(removed) {
        let span = reader.value_span("tsc_mode");
        let why = "Xen has removed the mode `native_paravirt`; write `tsc_mode = \"native\"`";
        reader.refuse("tsc_mode", span, why);
        return None;
    }
    word_or_number(reader, "tsc_mode", &words)
}

fn timer_mode(reader: &mut Reader<'_>) -> Option<TimerMode> {
    word_or_number(
        reader,
        "timer_mode",
        &[
            ("delay_for_missed_ticks", TimerMode::DelayForMissedTicks),
            ("no_delay_for_missed_ticks", TimerMode::NoDelayForMissedTicks),
            ("no_missed_ticks_pending", TimerMode::NoMissedTicksPending),
            ("one_missed_tick_pending", TimerMode::OneMissedTickPending),
        ],
    )
}

fn clock(reader: &mut Reader<'_>) -> Clock {
    let offset = reader.number("rtc_timeoffset", i64::from(i32::MIN)..=i64::from(i32::MAX));
    Clock {
        localtime: reader.bool("localtime").unwrap_or(false),
        offset_seconds: offset.and_then(|seconds| i32::try_from(seconds).ok()).unwrap_or(0),
    }
}

fn viridian(reader: &mut Reader<'_>) -> Viridian {
    let mut viridian = Viridian::default();
    match reader.entry("viridian").map(|entry| &entry.value) {
        None => {}
        Some(Value::Atom(_)) => viridian.defaults = reader.bool("viridian").unwrap_or(false),
        Some(Value::List(_)) => {
            for atom in reader.strings("viridian").unwrap_or_default() {
                viridian_word(atom, &mut viridian, reader);
            }
        }
    }
    viridian
}

/// A later word for a group undoes an earlier one, as in xl.
fn viridian_word(atom: &Atom, viridian: &mut Viridian, reader: &mut Reader<'_>) {
    let text = atom.text.as_str();
    let (name, negated) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
    match text {
        "all" => viridian.all = true,
        "defaults" => viridian.defaults = true,
        _ => {
            let Some(group) = ViridianGroup::ALL.iter().find(|group| group.name() == name) else {
                let names: Vec<&str> =
                    ViridianGroup::ALL.iter().map(|group| group.name()).chain(["defaults", "all"]).collect();
                reader.push(
                    Diagnostic::error("config::unknown-value", format!("`viridian` has no group \"{name}\""))
                        .at(atom.span)
                        .help(choices(name, &names)),
                );
                return;
            };
            viridian.enable.retain(|g| g != group);
            viridian.disable.retain(|g| g != group);
            if negated { viridian.disable.push(*group) } else { viridian.enable.push(*group) }
        }
    }
}

fn mca_caps(reader: &mut Reader<'_>) -> bool {
    let mut lmce = false;
    for atom in reader.strings("mca_caps").unwrap_or_default() {
        if atom.text.as_str() == "lmce" {
            lmce = true;
        } else {
            let message = format!("`mca_caps` has no value \"{}\"", atom.text.as_str());
            reader.push(
                Diagnostic::error("config::unknown-value", message)
                    .at(atom.span)
                    .help("the only value is `lmce`"),
            );
        }
    }
    lmce
}

pub(super) fn firmware(reader: &mut Reader<'_>) -> Firmware {
    let bios = bios(reader);
    let mut firmware = Firmware {
        kind: bios.unwrap_or(FirmwareKind::SeaBios),
        bios_path: reader.path("bios_path_override"),
        hvmloader: reader.firmware_path("firmware_override"),
        smbios: reader.path("smbios_firmware"),
        smbios_strings: super::smbios::strings(reader),
        acpi: reader.path("acpi_firmware"),
    };
    hvmloader_as_kernel(reader);
    let Some(atom) = reader.atom("firmware") else { return firmware };
    let kind = match atom.text.as_str() {
        "seabios" | "bios" => FirmwareKind::SeaBios,
        "ovmf" | "uefi" => FirmwareKind::Ovmf,
        "rombios" => {
            rombios(reader, "firmware");
            return firmware;
        }
        path => {
            if firmware.hvmloader.is_some() {
                let (at, other) = (atom.span, reader.value_span("firmware_override"));
                conflict(reader, "The firmware is specified twice", at, other, "here too");
            } else if path.starts_with('/') {
                firmware.hvmloader = Some(path.to_owned());
                warn_of_uefi_image(reader, atom);
            } else {
                let known = choices(path, &["seabios", "ovmf", "bios", "uefi"]);
                reader.push(
                    Diagnostic::error("config::unknown-value", format!("`firmware` has no value \"{path}\""))
                        .at(atom.span)
                        .help(format!("{known}, or an absolute path")),
                );
            }
            return firmware;
        }
    };
    if bios.is_some_and(|bios| bios != kind) {
        let (at, other) = (atom.span, reader.value_span("bios"));
        conflict(reader, "`firmware` and `bios` conflict", at, other, "not the same");
    }
    firmware.kind = kind;
    firmware
}

/// A path in `firmware` replaces hvmloader, and a UEFI image cannot do that.
fn warn_of_uefi_image(reader: &mut Reader<'_>, atom: &Atom) {
    let path = atom.text.as_str();
    let lower = path.to_ascii_lowercase();
    if lower.ends_with(".fd") || ["ovmf", "edk2"].iter().any(|word| lower.contains(word)) {
        reader.push(
            Diagnostic::warning(
                "config::not-hvmloader",
                "A path in `firmware` replaces hvmloader, not the BIOS",
            )
            .at(atom.span)
            .help(format!("for UEFI, write `bios = \"ovmf\"` and `bios_path_override = \"{path}\"` instead")),
        );
    }
}

fn bios(reader: &mut Reader<'_>) -> Option<FirmwareKind> {
    if reader.atom("bios")?.text.as_str() == "rombios" {
        rombios(reader, "bios");
        return None;
    }
    reader.word("bios", &[("seabios", FirmwareKind::SeaBios), ("ovmf", FirmwareKind::Ovmf)])
}

fn rombios(reader: &mut Reader<'_>, key: &'static str) {
    let span = reader.value_span(key);
    reader.refuse(key, span, "ROMBIOS needs the old `qemu-xen-traditional`; use `seabios`");
}

/// `kernel` boots something else than the firmware, but old files name hvmloader with it, which xl ignores.
fn hvmloader_as_kernel(reader: &mut Reader<'_>) {
    let Some(kernel) = reader.text("kernel") else { return };
    let span = reader.value_span("kernel");
    if kernel.rsplit('/').next() == Some("hvmloader") {
        reader.push(
            Diagnostic::warning("config::no-effect", "`kernel` does not choose the firmware")
                .at(span)
                .help("use `firmware_override` for another hvmloader; xl ignores this line too"),
        );
    } else {
        reader.refuse(
            "kernel",
            span,
            "direct kernel boot of an HVM guest is not supported yet, and the guest would boot something else; \
             install the kernel on the guest's disk",
        );
    }
}

/// What no key alone can get wrong (`libxl__domain_config_setdefault`, `tools/libs/light/libxl_create.c`).
pub(super) fn check_together(reader: &mut Reader<'_>, config: &GuestConfig) {
    let altp2m = config.platform.altp2m != Altp2m::Disabled;
    if altp2m && config.platform.nested_hvm {
        let key = if reader.entry("altp2m").is_some() { "altp2m" } else { "altp2mhvm" };
        let (at, other) = (reader.value_span(key), reader.value_span("nestedhvm"));
        conflict(reader, "`altp2m` excludes `nestedhvm`", at, other, "switched on here");
    }
    if config.platform.nested_hvm && config.platform.hap == Some(false) {
        let (at, other) = (reader.value_span("nestedhvm"), reader.value_span("hap"));
        reader.push(
            Diagnostic::error("config::conflict", "`nestedhvm` needs `hap`")
                .at(at)
                .also(other, "switched off here")
                .help("remove `hap = 0`, or `nestedhvm`: Xen does not make a guest with this combination"),
        );
    }
    check_viridian(reader, &config.platform.viridian);
    if altp2m && config.memory < config.max_memory {
        let key = if reader.entry("altp2m").is_some() { "altp2m" } else { "altp2mhvm" };
        let (at, other) = (reader.value_span(key), reader.value_span("maxmem"));
        conflict(reader, "`altp2m` excludes populate-on-demand", at, other, "more than `memory`");
    }
}

/// Xen accepts no enlightenment without `base` (`HVM_PARAM_VIRIDIAN` in Xen's `hvm_set_param`).
fn check_viridian(reader: &mut Reader<'_>, viridian: &Viridian) {
    let asked = viridian.defaults || viridian.all || !viridian.enable.is_empty();
    let base = (viridian.defaults || viridian.all || viridian.enable.contains(&ViridianGroup::Base))
        && !viridian.disable.contains(&ViridianGroup::Base);
    if asked && !base {
        let span = reader.value_span("viridian");
        reader.push(
            Diagnostic::error(
                "config::conflict",
                "`viridian` has groups without the group `base`, which they need",
            )
            .at(span)
            .help("add `\"base\"` to the list, and no `\"!base\"`"),
        );
    }
}
