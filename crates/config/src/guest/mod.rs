//! From a document to a guest: what each key means.

mod basics;
mod channel;
mod cpuid;
mod cpuid_names;
mod devices;
mod disk;
mod nic;
mod platform;
mod smbios;
mod stub;

use std::path::Path;

use xen_types::Release;

use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Document, Entry, Value};
use crate::foreign;
use crate::keys::{self, Key, Treatment};
use crate::model::{CpuSet, Disk, GuestConfig, Nic, Rate, Vdev};
use crate::reader::{Reader, refusal};
use crate::source::Span;

/// The diagnostic of a guest of another type.
pub(crate) const NOT_HVM: &str = "config::not-hvm";
/// The diagnostic of a key that is not xl's.
const UNKNOWN_KEY: &str = "config::unknown-key";

/// The guest that a document describes, and what there is to say of it. The guest is there when no diagnostic is
/// an error. Relative paths start in `folder`, the file's.
pub(crate) fn convert(document: &Document, folder: Option<&Path>) -> (Option<GuestConfig>, Vec<Diagnostic>) {
    let (entries, mut diagnostics) = document.entries();
    for entry in &entries {
        diagnostics.extend(judge(entry));
    }
    let mut reader = Reader::new(&entries).in_folder(folder);
    let config = read(&mut reader);
    diagnostics.append(&mut reader.diagnostics);
    if diagnostics.iter().any(|d| d.id == NOT_HVM) {
        // What the keys would mean for an HVM guest says nothing about this one.
        diagnostics.retain(|d| d.id == NOT_HVM || (d.is_error() && d.id == UNKNOWN_KEY));
    }
    (config, diagnostics)
}

/// The disk that an atom outside any document describes.
pub(crate) fn lone_disk(atom: &Atom) -> (Option<Disk>, Vec<Diagnostic>) {
    let mut reader = Reader::new(&[]);
    let disk = disk::disk(atom, &mut reader);
    (disk, reader.diagnostics)
}

/// The network interface that an atom outside any document describes.
pub(crate) fn lone_nic(atom: &Atom, devid: u32) -> (Option<Nic>, Vec<Diagnostic>) {
    let mut reader = Reader::new(&[]);
    let nic = nic::parse(atom, devid, &mut reader);
    (Some(nic), reader.diagnostics)
}

/// What keeps a text from being a guest's name, if anything does.
pub(crate) fn name_problem(name: &str) -> Option<&'static str> {
    basics::name_problem(name)
}

/// The virtual device that a text names.
pub(crate) fn disk_name(text: &str) -> Result<Vdev, String> {
    disk::name(text)
}

/// The names in a value of `cpuid` that came after Xen 4.17, each with its release and where it is.
pub(crate) fn newer_features(value: &Value) -> impl Iterator<Item = (&'static str, Release, Span)> {
    cpuid::newer(value)
}

/// A set of CPUs.
pub(crate) fn cpu_set(reader: &mut Reader<'_>, atom: &Atom) -> Option<CpuSet> {
    basics::cpu_set(reader, atom)
}

/// The limit of a network interface that a text describes.
pub(crate) fn rate(text: &str) -> Result<Rate, &'static str> {
    nic::rate(text)
}

fn judge(entry: &Entry) -> Option<Diagnostic> {
    let Some(key) = keys::find(&entry.key) else { return unknown(entry) };
    let diagnostic = match key.treatment {
        Treatment::Used => return None,
        Treatment::NoEffect { harmless, .. } | Treatment::Refused { harmless, .. }
            if harmless.covers(&entry.value) =>
        {
            return None;
        }
        Treatment::NoEffect { why, .. } => no_effect(entry, why),
        Treatment::Refused { why, .. } => refusal(key.name, entry.key_span.to(entry.value.span()), why),
    };
    Some(match key.since {
        Some(since) => diagnostic.help(format!("the key came with Xen {since}")),
        None => diagnostic,
    })
}

/// A key that is not xl's: an error only if it looks like one that makes a difference.
fn unknown(entry: &Entry) -> Option<Diagnostic> {
    let message = format!("`{}` is not a key", entry.key);
    if let Some(meant) = foreign::synonym(&entry.key, &entry.value).and_then(keys::find) {
        return Some(misspelt(message, meant).at(entry.key_span));
    }
    if let Some(program) = foreign::find(&entry.key) {
        let is_default = match &entry.value {
            Value::Atom(atom) => foreign::is_default(&entry.key, atom.text.as_str()),
            Value::List(_) => false,
        };
        let diagnostic = no_effect(entry, program.why());
        let diagnostic = match foreign::instead(&entry.key) {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        };
        return (!is_default).then_some(diagnostic);
    }
    let near = keys::near(&entry.key);
    let diagnostic = match (near.iter().find(|key| !key.treatment.is_idle()), near.first()) {
        // The line may be one that matters, although another key is nearer.
        (Some(meant), Some(nearest)) if nearest.treatment.is_idle() => misspelt(message, meant)
            .help(format!("if `{}` was meant, remove the line: it has no effect", nearest.name)),
        (Some(meant), _) => misspelt(message, meant),
        (None, Some(nearest)) => Diagnostic::warning(UNKNOWN_KEY, message).help(format!(
            "`{}`, the nearest key, has no effect either; you can remove the line",
            nearest.name
        )),
        (None, None) => Diagnostic::warning(UNKNOWN_KEY, message)
            .help("it has no effect, and no release of xl knows it; the line can be removed"),
    };
    Some(diagnostic.at(entry.key_span))
}

/// A wrong name of a key that makes a difference to the guest.
fn misspelt(message: String, meant: &Key) -> Diagnostic {
    let help = match meant.treatment {
        // What is recommended must not be refused afterwards.
        Treatment::Refused { why, .. } => {
            format!("if `{}` was meant, it is not supported: {why}", meant.name)
        }
        Treatment::Used | Treatment::NoEffect { .. } => format!("did you mean `{}`?", meant.name),
    };
    Diagnostic::error(UNKNOWN_KEY, message).help(help)
}

fn no_effect(entry: &Entry, why: &str) -> Diagnostic {
    Diagnostic::warning("config::no-effect", format!("`{}` has no effect", entry.key))
        .at(entry.key_span)
        .help(why)
}

fn read(reader: &mut Reader<'_>) -> Option<GuestConfig> {
    basics::check_type(reader);
    let name = basics::name(reader);
    let uuid = basics::uuid(reader);
    let memory = basics::memory(reader);
    let (vcpus, max_vcpus) = basics::vcpus(reader);
    let display = devices::display(reader, memory.memory);
    let usb = devices::usb(reader);
    let config = GuestConfig {
        name: name.unwrap_or_default(),
        uuid,
        memory: memory.memory,
        max_memory: memory.max,
        shadow_memory: memory.shadow,
        vcpus,
        max_vcpus,
        affinity: basics::affinity(reader, max_vcpus),
        platform: platform::platform(reader),
        firmware: platform::firmware(reader),
        boot: devices::boot(reader),
        disks: disk::disks(reader),
        disk_controller: devices::disk_controller(reader),
        nics: nic::nics(reader),
        serials: devices::serials(reader),
        channels: channel::channels(reader),
        display,
        usb,
        sound: devices::sound(reader),
        vendor_device: devices::vendor_device(reader),
        device_model: stub::device_model(reader),
        lifecycle: basics::lifecycle(reader),
        labels: basics::labels(reader),
        max_event_channels: reader.u32("max_event_channels", 1..=i32::MAX as u32).unwrap_or(1023),
        grants: basics::grants(reader),
        no_migrate: reader.bool("nomigrate").unwrap_or(false),
        vmtrace_buffer: basics::vmtrace(reader),
    };
    platform::check_together(reader, &config);
    let failed = reader.diagnostics.iter().any(Diagnostic::is_error);
    if failed { None } else { Some(config) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KEYS;

    #[test]
    fn every_used_key_is_read_and_every_read_key_is_used() {
        let mut reader = Reader::new(&[]);
        let _ = read(&mut reader);
        let used = KEYS.iter().filter(|k| k.treatment == Treatment::Used).map(|k| k.name).collect();
        assert_eq!(reader.asked, used);
    }
}
