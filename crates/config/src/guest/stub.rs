//! Where QEMU runs.

use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{DeviceModel, DeviceModelCrashAction, QmpTransport, StubdomainKind};
use crate::reader::Reader;

const DOM0_QEMU: &str = "this toolstack runs every guest's QEMU in a stubdomain and none in dom0; the line can be \
                         removed";
const TRADITIONAL: &str = "only upstream QEMU runs in a Linux stubdomain: write `qemu-xen` or remove the line; the guest \
                           then sees other emulated hardware, for which it may need drivers";

pub(super) fn device_model(reader: &mut Reader<'_>) -> DeviceModel {
    if reader.bool("device_model_stubdomain_override") == Some(false) {
        let span = reader.value_span("device_model_stubdomain_override");
        let message = "`device_model_stubdomain_override = 0` has no effect";
        reader.push(Diagnostic::warning("config::no-effect", message).at(span).help(DOM0_QEMU));
    }
    version(reader, "device_model_version", "qemu-xen", TRADITIONAL);
    version(
        reader,
        "stubdomain_version",
        "linux",
        "only Linux stubdomains are supported; Mini-OS ones contain the old QEMU",
    );
    let mut extra_args = Vec::new();
    for key in ["device_model_args", "device_model_args_hvm"] {
        let args = reader.strings(key).unwrap_or_default();
        for atom in args {
            extra_args.push(atom.text.as_str().to_owned());
            warn_of_blank(reader, atom);
        }
    }
    let on_crash = [
        ("destroy", DeviceModelCrashAction::Destroy),
        ("restart", DeviceModelCrashAction::Restart),
        ("preserve", DeviceModelCrashAction::Preserve),
    ];
    let kinds = [("pv", StubdomainKind::Pv), ("pvh", StubdomainKind::Pvh)];
    let qmp = [("vchan", QmpTransport::Vchan), ("console", QmpTransport::Console)];
    DeviceModel {
        kind: reader.word("stubdomain_type", &kinds).unwrap_or_default(),
        kernel: reader.firmware_path("stubdomain_kernel"),
        ramdisk: reader.firmware_path("stubdomain_ramdisk"),
        cmdline: reader.string("stubdomain_cmdline").filter(|text| !text.is_empty()),
        memory: super::basics::mib(reader, "stubdomain_memory", 16),
        extra_args,
        on_crash: reader.word("on_device_model_crash", &on_crash).unwrap_or_default(),
        qmp: reader.word("device_model_qmp", &qmp).unwrap_or_default(),
    }
}

/// Each string is one argument of QEMU's: no shell cuts it.
fn warn_of_blank(reader: &mut Reader<'_>, atom: &Atom) {
    let text = atom.text.as_str();
    let Some((option, value)) = text.split_once(' ').filter(|_| text.starts_with('-')) else { return };
    reader.push(
        Diagnostic::warning(
            "config::one-argument",
            "This is a single argument that contains a blank; QEMU will not recognize it",
        )
        .at(atom.span)
        .help(format!("write an option and its value as two strings: `\"{option}\", \"{}\"`", value.trim())),
    );
}

fn version(reader: &mut Reader<'_>, key: &'static str, right: &str, why: &str) {
    if let Some(atom) = reader.atom(key)
        && atom.text.as_str() != right
    {
        let message = format!("`{key}` cannot be \"{}\"", atom.text.as_str());
        reader.push(Diagnostic::error("config::refused", message).at(atom.span).help(why));
    }
}
