//! Whether a raw image begins like one of another format.
//!
//! A guest may have written these bytes to its raw disk. So they are compared and nothing else: what they say is neither
//! read nor believed.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use config::{Diagnostic, DiskSource, GuestConfig};
use nix::fcntl::OFlag;

/// How much of a file is looked at.
const HEAD: usize = 68;

/// The formats, with where their magic numbers are.
const FORMATS: [(&str, usize, &[u8]); 10] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("QED", 0, b"QED\0"),
    ("VMDK", 0, b"KDMV"),
    ("VMDK", 0, b"COWD"),
    ("VMDK", 0, b"# Disk DescriptorFile"),
    ("VHD", 0, b"conectix"),
    ("VHDX", 0, b"vhdxfile"),
    ("VDI", 0x40, b"\x7f\x10\xda\xbe"),
    ("Parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", 0, b"WithouFreSpacExt"),
];

/// The warnings about a guest's disks, each with the disk's place in the list.
pub(super) fn warnings(config: &GuestConfig) -> Vec<(usize, Diagnostic)> {
    let warning = |(index, path): (usize, &str)| Some((index, warning(path, found(Path::new(path)).ok()??)));
    let images =
        config.disks.iter().enumerate().filter_map(|(index, disk)| match (&disk.source, &disk.backend) {
            (DiskSource::Path(path), None) => Some((index, path.as_str())),
            _ => None,
        });
    images.filter_map(warning).collect()
}

fn warning(path: &str, format: &str) -> Diagnostic {
    let message =
        format!("{path} begins like a {format} image, and the guest gets it as it is, as a raw disk");
    let help = format!(
        "if it is a {format} image, give the guest a raw copy: qemu-img convert -O raw. Do that only with a file that no \
         guest could write to: a header that a guest has written may name any file of this host"
    );
    Diagnostic::warning("config::image-format", message).help(help)
}

/// What a regular file begins like.
fn found(path: &Path) -> io::Result<Option<&'static str>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    // It may be another file by now, which is not waited for.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut head = Vec::with_capacity(HEAD);
    file.take(HEAD as u64).read_to_end(&mut head)?;
    let is_there =
        |(_, at, magic): &&(&str, usize, &[u8])| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(FORMATS.iter().find(is_there).map(|(name, ..)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_a_format_and_only_of_a_regular_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let vdi = [&[b' '; 0x40][..], b"\x7f\x10\xda\xbe"].concat();
        for (content, expected) in [
            (&b"QFI\xfb\0\0\0\x03"[..], Some("qcow2")),
            (b"KDMV\x01", Some("VMDK")),
            (b"# Disk DescriptorFile\nversion=1", Some("VMDK")),
            (b"conectix", Some("VHD")),
            (b"vhdxfile", Some("VHDX")),
            (&vdi, Some("VDI")),
            (b"QFI", None),
            (b"", None),
            (b"\xebc\x90", None),
            (&vdi[..0x42], None),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(found(&path).unwrap(), expected, "{content:?}");
        }
        assert_eq!(found(folder.path()).unwrap(), None);
        assert_eq!(found(Path::new("/dev/zero")).unwrap(), None);
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(found(&pipe).unwrap(), None, "nobody writes into it");
    }
}
