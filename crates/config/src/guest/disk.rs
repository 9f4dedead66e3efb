//! `disk`: disks and CD drives. The little language is that of `xl-disk-configuration(5)`, cut into words as flex
//! does it for libxlu (`tools/libs/util/libxlu_disk_l.l`): at each place the longest match counts.

mod spec;
mod vdev;

use std::collections::HashMap;

use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{Access, Disk, DiskFormat, DiskKind, DiskSource, Vdev, VdevBus};
use crate::reader::Reader;
use crate::source::Span;
use spec::{Spec, Word};

/// How many disks a guest may have.
const MAX_DISKS: usize = 256;

pub(super) fn disks(reader: &mut Reader<'_>) -> Vec<Disk> {
    let Some(atoms) = reader.strings("disk") else { return Vec::new() };
    if let Some(extra) = atoms.get(MAX_DISKS) {
        let message = format!("A guest has at most {MAX_DISKS} disks");
        reader.push(Diagnostic::error("config::too-many", message).at(extra.span));
    }
    let mut seen: HashMap<u32, Span> = HashMap::new();
    let mut disks = Vec::new();
    for atom in atoms.into_iter().take(MAX_DISKS) {
        let Some(disk) = disk(atom, reader) else { continue };
        if let Some(other) = seen.insert(disk.vdev.devid(), atom.span) {
            let message = format!("Two disks are `{}`", disk.vdev);
            reader.push(
                Diagnostic::error("config::conflict", message).at(atom.span).also(other, "the other one"),
            );
        }
        disks.push(disk);
    }
    disks
}

/// A virtual device's name or number.
pub(super) fn name(text: &str) -> Result<Vdev, String> {
    vdev::parse(text)
}

/// One disk given by itself.
pub(super) fn disk(atom: &Atom, reader: &mut Reader<'_>) -> Option<Disk> {
    let spec = spec::parse(atom, reader)?;
    convert(atom, &spec, reader)
}

fn convert(atom: &Atom, spec: &Spec, reader: &mut Reader<'_>) -> Option<Disk> {
    let before = reader.diagnostics.len();
    let cdrom = spec.cdrom;
    let vdev = match &spec.vdev {
        None => {
            reader.push(
                bad("The disk has no virtual device", atom.span)
                    .help("set the name that the guest sees, for example `vdev=hda` or `vdev=xvda`"),
            );
            None
        }
        Some(word) => vdev::parse(&word.text).map_err(|why| reader.push(bad(why, word.span))).ok(),
    };
    check_format(spec, reader);
    check_backend(spec, reader);
    let source = source(atom, spec, reader);
    if spec.read_only && !cdrom && vdev.is_some_and(|vdev| vdev.bus() == VdevBus::Hd && vdev.partition() == 0)
    {
        let why = "QEMU's IDE and AHCI disks are always writable; use `sd` or `xvd`, or use a CD drive";
        reader.push(refused("A disk `hd…` cannot be read-only", atom.span, why));
    }
    let disk = Disk {
        vdev: vdev?,
        source: source?,
        format: DiskFormat::Raw,
        access: if cdrom || spec.read_only { Access::ReadOnly } else { Access::ReadWrite },
        kind: if cdrom { DiskKind::CdRom } else { DiskKind::Disk },
        backend: spec
            .backend
            .as_ref()
            .map(|word| word.text.clone())
            .filter(|name| !matches!(name.as_str(), "" | "0" | "Domain-0")),
        discard: spec.discard,
        direct_io_safe: spec.direct_io_safe,
        trusted: spec.trusted,
    };
    (reader.diagnostics.len() == before).then_some(disk)
}

fn bad(message: impl Into<String>, span: Span) -> Diagnostic {
    Diagnostic::error("config::bad-disk", message).at(span)
}

fn refused(message: impl Into<String>, span: Span, why: &str) -> Diagnostic {
    Diagnostic::error("config::refused", message).at(span).help(why)
}

fn check_format(spec: &Spec, reader: &mut Reader<'_>) {
    let Some(Word { text, span }) = &spec.format else { return };
    match text.as_str() {
        "" | "raw" => {}
        "empty" if spec.cdrom => {}
        "empty" => reader.push(bad("Only a CD drive can be empty", *span)),
        _ => reader.push(refused(
            format!("Images of format {text} cannot be used"),
            *span,
            "they need a QEMU in dom0, which this toolstack never runs; convert the image with `qemu-img convert -O \
             raw`, or serve it as a block device with `qemu-nbd`",
        )),
    }
}

fn check_backend(spec: &Spec, reader: &mut Reader<'_>) {
    if let Some(Word { text, span }) = &spec.backend_type
        && text != "phy"
    {
        let why = "disks are served by the kernel's blkback (`phy`); `qdisk` needs a QEMU in dom0";
        reader.push(refused(format!("`backendtype={text}` is not supported"), *span, why));
    }
    if let Some(Word { text, span }) = &spec.specification
        && text != "xen"
    {
        let why = "only Xen's own block protocol is served";
        reader.push(refused(format!("`specification={text}` is not supported"), *span, why));
    }
}

fn source(atom: &Atom, spec: &Spec, reader: &mut Reader<'_>) -> Option<DiskSource> {
    let target = spec.target.as_ref().filter(|word| !word.text.is_empty());
    let empty_format = spec.format.as_ref().is_some_and(|word| word.text == "empty");
    let Some(Word { text, span }) = target.filter(|_| !(empty_format && spec.cdrom)) else {
        if spec.cdrom {
            return Some(DiskSource::Empty);
        }
        reader.push(
            bad("The disk has no target", atom.span)
                .help("specify a block device or a raw image; only a CD drive may be empty"),
        );
        return None;
    };
    if let Some(script) = spec.script.as_ref().filter(|word| !word.text.is_empty()) {
        return Some(DiskSource::Script { script: script.text.clone(), target: text.clone() });
    }
    if text.contains('\0') {
        reader.push(bad("A path cannot contain a NUL byte", *span));
        return None;
    }
    // xl-disk-configuration(5): a path without a leading slash is in /dev.
    let path = if text.starts_with('/') { text.clone() } else { format!("/dev/{text}") };
    Some(DiskSource::Path(path))
}
