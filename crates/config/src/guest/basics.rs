//! Who the guest is, how much it gets, and what happens when it ends.

use uuid::Uuid;
use xen_types::KiB;

use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Value};
use crate::model::{Action, Affinity, CpuSet, GrantLimits, Lifecycle, SecurityLabels};
use crate::reader::Reader;
use crate::source::Span;

/// `HVM_MAX_VCPUS`, `xen/include/public/hvm/hvm_info_table.h`.
const MAX_VCPUS: u32 = 128;
/// The most memory that a value may ask for, in MiB: 16 TiB, Xen's own limit on x86.
const MAX_MIB: u32 = 16 << 20;
/// libxl's default of `memory` and `maxmem` (`libxl__domain_build_info_setdefault`).
const DEFAULT_MEMORY: KiB = KiB::from_mib(32);
const MAX_NAME: usize = 100;

const PV: &str =
    "this toolstack runs HVM guests with their QEMU in a stubdomain; use xl for PV and PVH guests";

/// Checks `type` and the older `builder`: HVM or nothing.
pub(super) fn check_type(reader: &mut Reader<'_>) {
    let new = one_type(reader, "type", &[("hvm", true), ("pv", false), ("pvh", false)]);
    let old = one_type(reader, "builder", &[("hvm", true), ("generic", false), ("linux", false)]);
    if new.is_none() && old.is_none() && reader.entry("type").is_none() && reader.entry("builder").is_none() {
        reader.push(
            Diagnostic::error(super::NOT_HVM, "The configuration has no `type`, which means a PV guest")
                .help(format!("{PV}; for an HVM guest, add `type = \"hvm\"`")),
        );
    }
}

fn one_type(reader: &mut Reader<'_>, key: &'static str, words: &[(&str, bool)]) -> Option<bool> {
    let hvm = reader.word_or_refused(key, words, |hvm| hvm)?;
    if !hvm {
        let span = reader.value_span(key);
        reader.push(Diagnostic::error(super::NOT_HVM, "This is not an HVM guest").at(span).help(PV));
    }
    Some(hvm)
}

/// What keeps a text from being a guest's name, if anything does.
pub(super) fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.chars().count() > MAX_NAME {
        Some("is longer than 100 characters")
    } else if name.contains('/') {
        Some("contains a slash")
    } else if name.chars().any(char::is_control) {
        Some("contains a control character")
    } else if name.trim() != name {
        Some("begins or ends with a blank")
    } else if name.starts_with(['.', '-']) {
        Some("begins with a full stop or a hyphen")
    } else if name.bytes().all(|b| b.is_ascii_digit()) {
        Some("is a number, which commands would interpret as a domid")
    } else if xen_types::file_name(&format!("{name}-dm")).len() >= xen_types::MAX_FILE_NAME {
        Some("is too long for the names of its files, in which blanks and symbols are encoded like `%20`")
    } else {
        None
    }
}

pub(super) fn name(reader: &mut Reader<'_>) -> Option<String> {
    if reader.entry("name").is_none() {
        reader.push(
            Diagnostic::error("config::missing-key", "The configuration has no `name`")
                .help("a guest needs a name: `name = \"hello\"`"),
        );
        return None;
    }
    let name = reader.text("name")?;
    let span = reader.value_span("name");
    let Some(problem) = name_problem(&name) else { return Some(name) };
    reader.push(
        Diagnostic::error("config::bad-name", format!("The guest's name {problem}"))
            .at(span)
            .help("the name is used in xenstore and in file names"),
    );
    None
}

pub(super) fn uuid(reader: &mut Reader<'_>) -> Option<Uuid> {
    let text = reader.text("uuid")?;
    let uuid = if text.len() == 36 { Uuid::try_parse(&text).ok() } else { None };
    match uuid {
        Some(uuid) if !uuid.is_nil() => Some(uuid),
        found => {
            let span = reader.value_span("uuid");
            let message = if found.is_some() { "The nil UUID is dom0's" } else { "This is not a UUID" };
            reader.push(Diagnostic::error("config::bad-uuid", message).at(span).help(
                "write it like `1b4e28ba-2fa1-11d2-883f-0016d3cca427`, or leave it out to get a random one",
            ));
            None
        }
    }
}

pub(super) struct Memory {
    pub(super) memory: KiB,
    pub(super) max: KiB,
    pub(super) shadow: Option<KiB>,
}

pub(super) fn memory(reader: &mut Reader<'_>) -> Memory {
    let memory = mib(reader, "memory", 1);
    let max = mib(reader, "maxmem", 1);
    let shadow = mib(reader, "shadow_memory", 0).filter(|size| size.get() > 0);
    if memory.is_none()
        && max.is_none()
        && reader.entry("memory").is_none()
        && reader.entry("maxmem").is_none()
    {
        reader.push(
            Diagnostic::warning(
                "config::missing-key",
                "The configuration has no `memory`; the guest gets 32 MiB",
            )
            .help("set the memory in MiB: `memory = 512`"),
        );
    }
    if let (Some(memory), Some(max)) = (memory, max)
        && memory > max
    {
        let (small, large) = (reader.value_span("maxmem"), reader.value_span("memory"));
        conflict(reader, "`maxmem` is less than `memory`", small, large, "more than this");
    }
    if let (Some(memory), Some(max)) = (memory, max)
        && memory < max
    {
        warn_of_populate_on_demand(reader, memory);
    }
    Memory {
        memory: memory.or(max).unwrap_or(DEFAULT_MEMORY),
        max: max.or(memory).unwrap_or(DEFAULT_MEMORY),
        shadow,
    }
}

fn warn_of_populate_on_demand(reader: &mut Reader<'_>, memory: KiB) {
    let (large, small) = (reader.value_span("maxmem"), reader.value_span("memory"));
    reader.push(
        Diagnostic::warning("config::populate-on-demand", "`maxmem` exceeds `memory`")
            .at(large)
            .also(small, "the guest has this much")
            .help(format!(
                "without a balloon driver, the guest is killed once it uses more than {memory}; in that case set both \
                 to the same value"
            )),
    );
}

/// A value in MiB.
pub(super) fn mib(reader: &mut Reader<'_>, key: &'static str, least: u32) -> Option<KiB> {
    reader.u32(key, least..=MAX_MIB).map(|mib| KiB::from_mib(u64::from(mib)))
}

pub(super) fn vcpus(reader: &mut Reader<'_>) -> (u32, u32) {
    let vcpus = reader.u32("vcpus", 1..=MAX_VCPUS);
    let max = reader.u32("maxvcpus", 1..=MAX_VCPUS);
    if let (Some(vcpus), Some(max)) = (vcpus, max)
        && vcpus > max
    {
        let (small, large) = (reader.value_span("maxvcpus"), reader.value_span("vcpus"));
        conflict(reader, "`maxvcpus` is less than `vcpus`", small, large, "more than this");
    }
    let vcpus = vcpus.unwrap_or(1);
    (vcpus, max.unwrap_or(vcpus))
}

/// One set for all vCPUs, or a list with one for each.
pub(super) fn affinity(reader: &mut Reader<'_>, max_vcpus: u32) -> Affinity {
    match reader.entry("cpus").map(|entry| &entry.value) {
        None => Affinity::Any,
        Some(Value::Atom(atom)) if atom.text.as_str() == "all" => Affinity::Any,
        Some(Value::Atom(atom)) => cpu_set(reader, atom).map_or(Affinity::Any, Affinity::All),
        Some(Value::List(_)) => {
            let atoms = reader.strings("cpus").unwrap_or_default();
            if let Some(extra) = atoms.get(usize::try_from(max_vcpus).unwrap_or(usize::MAX)) {
                let message = format!("`cpus` has more entries than the guest has vCPUs ({max_vcpus})");
                reader.push(
                    Diagnostic::error("config::too-many", message)
                        .at(extra.span)
                        .help("remove it, or set `maxvcpus`"),
                );
            }
            Affinity::Each(atoms.into_iter().filter_map(|atom| cpu_set(reader, atom)).collect())
        }
    }
}

pub(super) fn cpu_set(reader: &mut Reader<'_>, atom: &Atom) -> Option<CpuSet> {
    match atom.text.as_str().parse() {
        Ok(cpus) => Some(cpus),
        Err(error) => {
            reader.push(
                Diagnostic::error("config::bad-cpus", format!("This names no CPUs: {error}"))
                    .at(atom.span)
                    .help("write numbers and ranges; prefix ^ to exclude: `cpus = \"0-3,^1\"`"),
            );
            None
        }
    }
}

pub(super) fn conflict(reader: &mut Reader<'_>, message: &str, at: Span, other: Span, label: &str) {
    reader.push(Diagnostic::error("config::conflict", message).at(at).also(other, label));
}

pub(super) fn lifecycle(reader: &mut Reader<'_>) -> Lifecycle {
    let default = Lifecycle::default();
    Lifecycle {
        on_poweroff: action(reader, "on_poweroff").unwrap_or(default.on_poweroff),
        on_reboot: action(reader, "on_reboot").unwrap_or(default.on_reboot),
        on_crash: action(reader, "on_crash").unwrap_or(default.on_crash),
        on_watchdog: action(reader, "on_watchdog").unwrap_or(default.on_watchdog),
        on_soft_reset: action(reader, "on_soft_reset").unwrap_or(default.on_soft_reset),
    }
}

const ACTIONS: &[(&str, Action)] = &[
    ("destroy", Action::Destroy),
    ("restart", Action::Restart),
    ("rename-restart", Action::RenameRestart),
    ("preserve", Action::Preserve),
];

const NO_RESET: &str = "a guest cannot be reset in place yet; use `restart` or `destroy`";
const NO_SOFT_RESET: &str = "a guest cannot be reset in place yet, and a dump that its kdump holds in memory would be \
                             lost; `preserve` keeps the domain, `restart` and `destroy` do not";

fn action(reader: &mut Reader<'_>, key: &'static str) -> Option<Action> {
    let atom = reader.atom(key)?;
    let text = atom.text.as_str();
    let (warning, action) = match text {
        "coredump-destroy" => (no_core(text, "destroyed"), Action::Destroy),
        "coredump-restart" => (no_core(text, "restarted"), Action::Restart),
        "soft-reset" => {
            let why = if key == "on_soft_reset" { NO_SOFT_RESET } else { NO_RESET };
            let message = format!("`{key}` cannot be \"soft-reset\"");
            reader.push(Diagnostic::error("config::refused", message).at(atom.span).help(why));
            return None;
        }
        _ => return reader.word(key, ACTIONS),
    };
    reader.push(warning.at(atom.span));
    Some(action)
}

fn no_core(action: &str, what: &str) -> Diagnostic {
    Diagnostic::warning("config::no-effect", format!("`{action}` writes no core dump: the guest is {what}"))
        .help("`preserve` keeps the domain, and `outrigger dump-core` writes its memory to a file")
}

pub(super) fn labels(reader: &mut Reader<'_>) -> SecurityLabels {
    SecurityLabels {
        guest: reader.text("seclabel"),
        guest_init: reader.text("init_seclabel"),
        device_model: reader.text("device_model_stubdomain_seclabel"),
    }
}

/// Limits that Xen has unless it is booted with others (`gnttab_max_frames`, `gnttab_max_maptrack_frames`).
const USUAL_GRANT_FRAMES: u32 = 64;
const USUAL_MAPTRACK_FRAMES: u32 = 1024;

pub(super) fn grants(reader: &mut Reader<'_>) -> GrantLimits {
    let most = i32::MAX as u32;
    // Xen does not make a grant table without a frame.
    let frames = reader.u32("max_grant_frames", 1..=most);
    let maptrack = reader.u32("max_maptrack_frames", 0..=most);
    warn_above(reader, "max_grant_frames", frames, (USUAL_GRANT_FRAMES, "gnttab_max_frames"));
    warn_above(
        reader,
        "max_maptrack_frames",
        maptrack,
        (USUAL_MAPTRACK_FRAMES, "gnttab_max_maptrack_frames"),
    );
    GrantLimits {
        max_grant_frames: frames,
        max_maptrack_frames: maptrack,
        max_version: reader.u32("max_grant_version", 0..=2).and_then(|version| u8::try_from(version).ok()),
    }
}

fn warn_above(reader: &mut Reader<'_>, key: &'static str, value: Option<u32>, (usual, option): (u32, &str)) {
    if value.is_some_and(|value| value > usual) {
        let span = reader.value_span(key);
        reader.push(
            Diagnostic::warning(
                "config::above-limit",
                format!("`{key}` is above Xen's usual limit of {usual}"),
            )
            .at(span)
            .help(format!("Xen refuses the guest unless it was booted with a larger `{option}`")),
        );
    }
}

pub(super) fn vmtrace(reader: &mut Reader<'_>) -> KiB {
    const KEY: &str = "vmtrace_buf_kb";
    // What `domain_create` in Xen's `xen/common/domain.c` takes.
    let size = reader.u32(KEY, 0..=65_536).unwrap_or(0);
    if size != 0 && (size < 4 || !size.is_power_of_two()) {
        let span = reader.value_span(KEY);
        let message = format!("Xen does not accept a `{KEY}` of {size}");
        let near = size.max(4).next_power_of_two();
        reader.push(
            Diagnostic::error("config::out-of-range", message)
                .at(span)
                .help(format!("it is a power of two from 4 to 65536, for example {near}")),
        );
    }
    KiB(u64::from(size))
}
