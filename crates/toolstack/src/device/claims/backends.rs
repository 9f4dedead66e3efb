//! Disks of all domains as xenstore lists them: those of the block backend, and those of QEMUs in dom0.
//!
//! Any toolstack may have written these entries, so they are used only to identify a disk.

use std::path::{Path, PathBuf};

use xen_types::DomId;
use xenstore::{Store, XsPath};

use super::Host;
use crate::dom0::{BlockNumber, DiskId};
use crate::error::Cause;
use crate::nodes::below;
use crate::record::DiskRecord;

/// The longest text that can name a block device, in bytes: `ffffffff:ffffffff`.
const NUMBER_MAX: usize = 17;

/// The kind of backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The kernel's block backend.
    Vbd,
    /// A QEMU in dom0.
    Qdisk,
}

/// The disk of a backend.
enum Image {
    /// One that is identified.
    Disk(DiskId),
    /// One whose file system fails or does not answer.
    Unknown(PathBuf),
}

impl Kind {
    fn parent(self) -> XsPath {
        let name = match self {
            Self::Vbd => "backend/vbd",
            Self::Qdisk => "backend/qdisk",
        };
        below(&XsPath::domain(DomId::DOM0), name)
    }
}

impl Host<'_> {
    /// A guest of any toolstack that has the disk in a way that conflicts with the claim.
    pub(super) fn find_backend(&self, wanted: &DiskRecord) -> Result<Option<DomId>, Cause> {
        for kind in [Kind::Vbd, Kind::Qdisk] {
            for (domid, parent) in self.domains_of(kind)? {
                let Some(owner) = self.owner(domid)? else { continue };
                for backend in self.children(&parent)? {
                    let overlaps = match self.disk_of(kind, &backend)? {
                        Some(Image::Disk(id)) => wanted.id.overlaps(&self.users.with_backing(id)),
                        Some(Image::Unknown(path)) => path == Path::new(&wanted.path),
                        None => false,
                    };
                    if overlaps && (wanted.writable || self.may_write(&backend)?) {
                        return Ok(Some(owner));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a loop device is the device of any PV disk.
    pub(super) fn has_backend(&self, number: BlockNumber) -> Result<bool, Cause> {
        for (_, parent) in self.domains_of(Kind::Vbd)? {
            for backend in self.children(&parent)? {
                if self.physical_device(&backend)? == Some(number) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The guest that a domain has its disks for; `None` when they do not count.
    ///
    /// The disks of the claiming guest do not count, nor do those of domains that are gone or have ended. A
    /// stubdomain's disks are those of the guest that it serves.
    fn owner(&self, domid: DomId) -> Result<Option<DomId>, Cause> {
        let Some(info) = self.domains.get(&domid) else { return Ok(None) };
        let counts = |info: &xen::DomainInfo| !self.has_ended(info) && !self.own.contains(&info.domid);
        if !counts(info) {
            return Ok(None);
        }
        // Only dom0 can write this.
        let target = self.ts.xenstore.read(&below(&XsPath::domain(domid), "target"))?;
        let target = target.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok());
        let Some(guest) = target.and_then(|target| self.domains.get(&target)) else { return Ok(Some(domid)) };
        Ok(counts(guest).then_some(guest.domid))
    }

    /// The domains that have such disks, with their directories.
    fn domains_of(&self, kind: Kind) -> Result<Vec<(DomId, XsPath)>, Cause> {
        let children = self.children(&kind.parent())?;
        Ok(children.into_iter().filter_map(|path| Some((last(&path).parse().ok()?, path))).collect())
    }

    fn children(&self, parent: &XsPath) -> Result<Vec<XsPath>, Cause> {
        let names = self.ts.xenstore.list(parent)?.unwrap_or_default();
        Ok(names.iter().filter_map(|name| parent.join(name).ok()).collect())
    }

    fn disk_of(&self, kind: Kind, backend: &XsPath) -> Result<Option<Image>, Cause> {
        if kind == Kind::Vbd
            && let Some(number) = self.physical_device(backend)?
        {
            return Ok(Some(Image::Disk(self.ts.host.block_disk(number)?)));
        }
        // Until its script has run, a PV disk has only this too.
        let params = self.ts.xenstore.read(&below(backend, "params"))?.unwrap_or_default();
        let Some(path) = std::str::from_utf8(&params).ok().and_then(|text| image_path(kind, text)) else {
            return Ok(None);
        };
        let path = Path::new(path);
        Ok(match self.ts.host.disk_at(path) {
            Ok(id) => id.map(Image::Disk),
            // It may not be ours, so that it does not stop us.
            Err(_) => Some(Image::Unknown(path.to_owned())),
        })
    }

    fn physical_device(&self, backend: &XsPath) -> Result<Option<BlockNumber>, Cause> {
        let value = self.ts.xenstore.read(&below(backend, "physical-device"))?;
        Ok(value.and_then(|value| parse_device(&value)))
    }

    /// Any mode other than read-only counts as writable.
    fn may_write(&self, backend: &XsPath) -> Result<bool, Cause> {
        let mode = self.ts.xenstore.read(&below(backend, "mode"))?;
        Ok(mode.is_none_or(|mode| mode.contains(&b'w') || !mode.contains(&b'r')))
    }
}

fn last(path: &XsPath) -> &str {
    path.as_str().rsplit('/').next().unwrap_or_default()
}

/// The image's absolute path, which follows the format for QEMU.
fn image_path(kind: Kind, params: &str) -> Option<&str> {
    let path = match kind {
        Kind::Vbd => params,
        Kind::Qdisk => params.split_once(':').map_or(params, |(_, path)| path),
    };
    path.starts_with('/').then_some(path)
}

/// Two hexadecimal numbers, as the block backend reads them.
fn parse_device(value: &[u8]) -> Option<BlockNumber> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= NUMBER_MAX)?;
    let (major, minor) = text.split_once(':')?;
    // `from_str_radix` would take a sign.
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => u32::from_str_radix(text, 16).ok(),
        false => None,
    };
    Some(BlockNumber { major: number(major)?, minor: number(minor)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_parsed_as_by_the_backend() {
        let read = |text: &str| parse_device(text.as_bytes()).map(|number| (number.major, number.minor));
        assert_eq!(read("fd:7"), Some((253, 7)));
        assert_eq!(read("ffffffff:ffffffff"), Some((u32::MAX, u32::MAX)));
        for bad in ["", ":", "7", "+7:1", "7:-1", "7:1:2", "1ffffffff:1", "000000000000000007:1", "7 :1"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_images_path_follows_its_format() {
        assert_eq!(image_path(Kind::Qdisk, "aio:/srv/a:b.img"), Some("/srv/a:b.img"));
        assert_eq!(image_path(Kind::Qdisk, "/srv/a.img"), Some("/srv/a.img"));
        assert_eq!(image_path(Kind::Vbd, "/dev/vg/a:b"), Some("/dev/vg/a:b"));
        for (kind, none) in
            [(Kind::Qdisk, "aio:"), (Kind::Qdisk, "nbd:host:10"), (Kind::Vbd, ""), (Kind::Vbd, "vol:1")]
        {
            assert_eq!(image_path(kind, none), None, "{none:?}");
        }
    }
}
