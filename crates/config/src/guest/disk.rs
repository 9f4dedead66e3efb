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
    let mut images = Images::new();
    let mut disks = Vec::new();
    for atom in atoms.into_iter().take(MAX_DISKS) {
        let Some(disk) = disk(atom, reader) else { continue };
        if let Some(other) = seen.insert(disk.vdev.devid(), atom.span) {
            let message = format!("Two disks are `{}`", disk.vdev);
            reader.push(
                Diagnostic::error("config::conflict", message).at(atom.span).also(other, "the other one"),
            );
        }
        check_shared(&mut images, &disk, atom.span, reader);
        disks.push(disk);
    }
    disks
}

/// Where an image was first used, and whether a disk may write to it.
type Images = HashMap<String, (Span, bool)>;

/// Refuses an image that two disks have of which one may write. Links to one file are found when the guest is made.
fn check_shared(images: &mut Images, disk: &Disk, span: Span, reader: &mut Reader<'_>) {
    let (DiskSource::Path(path), None) = (&disk.source, &disk.backend) else { return };
    let Some((other, writes)) = images.get_mut(path) else {
        images.insert(path.clone(), (span, disk.is_writable()));
        return;
    };
    if *writes || disk.is_writable() {
        reader.push(
            Diagnostic::error(
                "config::conflict",
                format!("Two disks use {path}, and at least one is writable"),
            )
            .at(span)
            .also(*other, "the other one")
            .help("sharing a writable disk corrupts it"),
        );
    }
    *writes |= disk.is_writable();
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
    check_iso(spec, reader);
    let good_format = check_format(spec, reader);
    let source = source(atom, spec, reader);
    if good_format && source.is_some() {
        check_backend(spec, reader);
    }
    if spec.read_only
        && spec.iso.is_none()
        && !cdrom
        && vdev.is_some_and(|vdev| vdev.bus() == VdevBus::Hd && vdev.partition() == 0)
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
    let failed = reader.diagnostics.iter().skip(before).any(Diagnostic::is_error);
    (!failed).then_some(disk)
}

fn bad(message: impl Into<String>, span: Span) -> Diagnostic {
    Diagnostic::error("config::bad-disk", message).at(span)
}

fn refused(message: impl Into<String>, span: Span, why: &str) -> Diagnostic {
    Diagnostic::error("config::refused", message).at(span).help(why)
}

/// An ISO image has no format of its own.
fn check_iso(spec: &Spec, reader: &mut Reader<'_>) {
    let Some(span) = spec.iso else { return };
    let text =
        |word: &Option<Word>, default: &str| word.as_ref().map_or(default, |word| &word.text).to_owned();
    let (target, vdev) = (text(&spec.target, "/PATH.iso"), text(&spec.vdev, "hdc"));
    reader.push(
        bad("`format` has no value \"iso\"", span)
            .help(format!("an ISO image is a raw image in a CD drive: `{target},raw,{vdev},cdrom`")),
    );
}

/// Whether the format can be served.
fn check_format(spec: &Spec, reader: &mut Reader<'_>) -> bool {
    let Some(Word { text, span }) = &spec.format else { return true };
    let problem = match text.as_str() {
        "" | "raw" => return true,
        "empty" if spec.cdrom => return true,
        "empty" => bad("Only a CD drive can be empty", *span),
        _ => refused(
            format!("Images of format {text} cannot be used"),
            *span,
            "they need a QEMU in dom0, which this toolstack never runs; convert the image with `qemu-img convert -O \
             raw`, or serve it as a block device with `qemu-nbd`",
        ),
    };
    reader.push(problem);
    false
}

fn check_backend(spec: &Spec, reader: &mut Reader<'_>) {
    let empty = spec.target.as_ref().is_none_or(|word| word.text.is_empty())
        || spec.format.as_ref().is_some_and(|word| word.text == "empty");
    match &spec.backend_type {
        // What serves no medium makes no difference.
        Some(Word { text, .. }) if text == "phy" || (empty && text != "standalone") => {}
        // The guest gets the same bytes of a raw image from either.
        Some(Word { text, span }) if matches!(text.as_str(), "qdisk" | "tap") => reader.push(
            Diagnostic::warning("config::no-effect", format!("`backendtype={text}` has no effect"))
                .at(*span)
                .help("the kernel's blkback serves the disk, as with `backendtype=phy`"),
        ),
        Some(Word { text, span }) => {
            let why = "disks are served by the kernel's blkback (`phy`)";
            reader.push(refused(format!("`backendtype={text}` is not supported"), *span, why));
        }
        None => {}
    }
    if let Some(Word { text, span }) = &spec.specification
        && text != "xen"
    {
        let why = "only Xen's own block protocol is served";
        reader.push(refused(format!("`specification={text}` is not supported"), *span, why));
    }
}

/// Whether a target is an address that a QEMU in dom0 would open, such as `rbd:pool/image`.
fn is_address(target: &str) -> bool {
    target.split_once(':').is_some_and(|(scheme, rest)| {
        scheme.len() > 1
            && !rest.is_empty()
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

/// Ends of names of images that are not raw.
const CONTAINERS: &[&str] = &["qcow", "qcow2", "qed", "vdi", "vhd", "vhdx", "vmdk"];

fn warn_of_container(target: &str, span: Span, reader: &mut Reader<'_>) {
    let Some((_, end)) = target.rsplit_once('.') else { return };
    if CONTAINERS.iter().any(|container| end.eq_ignore_ascii_case(container)) {
        reader.push(
            Diagnostic::warning(
                "config::container-as-raw",
                format!("The file is named like a {end} image, but it is served as raw"),
            )
            .at(span)
            .help("if it is not a raw image, convert it with `qemu-img convert -O raw`"),
        );
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
    if is_address(text) {
        let why = "its image needs a QEMU in dom0, which this toolstack never runs; map it to a block device (for \
                   example with `rbd map` or `qemu-nbd`), or name a `script` that does";
        reader.push(refused("The disk's target is an address, not a file or device", *span, why));
        return None;
    }
    if spec.format.as_ref().is_none_or(|word| matches!(word.text.as_str(), "" | "raw")) {
        warn_of_container(text, *span, reader);
    }
    if text.contains('\0') {
        reader.push(bad("A path cannot contain a NUL byte", *span));
        return None;
    }
    // xl-disk-configuration(5): a path without a leading slash is in /dev.
    let path = if text.starts_with('/') { text.clone() } else { format!("/dev/{text}") };
    Some(DiskSource::Path(path))
}
