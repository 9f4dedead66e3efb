//! The contents of a packed initramfs: a check of the finished file.

use std::io::Read as _;

use cpio::newc::Reader;

use crate::{
    ImageError, Result,
    initramfs::{LZ4_CHUNK, LZ4_MAGIC},
};

/// The most bytes that an archive may unpack to.
const UNPACKED_MAX: u64 = 1 << 30;
/// Names of programs that run what they are given.
const INTERPRETERS: [&str; 8] = ["ash", "bash", "busybox", "dash", "lua", "perl", "python3", "sh"];

/// What counts about an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Regular files.
    pub files: u64,
    /// Bytes of the whole archive, unpacked.
    pub bytes: u64,
    /// Files that run with their owner's or group's rights.
    pub setuid: Vec<String>,
    /// Scripts, and programs that run what they are given.
    pub interpreters: Vec<String>,
}

/// Looks into an archive that is packed in one of the ways of [`Compression`](crate::initramfs::Compression).
///
/// # Errors
/// [`ImageError::BadArchive`].
pub fn list(packed: &[u8]) -> Result<Listing> {
    let plain = unpack(packed).ok_or(ImageError::BadArchive)?;
    let mut listing = Listing { bytes: plain.len() as u64, ..Listing::default() };
    let mut rest = &plain[..];
    loop {
        let mut reader = Reader::new(rest).map_err(|_| ImageError::BadArchive)?;
        if reader.entry().is_trailer() {
            return Ok(listing);
        }
        let mut start = [0; 2];
        let count = reader.read(&mut start).map_err(|_| ImageError::BadArchive)?;
        let entry = reader.entry();
        let (path, mode) = (format!("/{}", entry.name().trim_start_matches('/')), entry.mode());
        if mode & 0o170_000 == 0o100_000 {
            listing.files += 1;
            let name = path.rsplit('/').next().unwrap_or_default();
            if start[..count] == *b"#!" || INTERPRETERS.contains(&name) {
                listing.interpreters.push(path.clone());
            }
            if mode & 0o6000 != 0 {
                listing.setuid.push(path);
            }
        }
        rest = reader.finish().map_err(|_| ImageError::BadArchive)?;
    }
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    if packed.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed).take(UNPACKED_MAX).read_to_end(&mut plain).ok()?;
        return Some(plain);
    }
    let Some(mut rest) = packed.strip_prefix(&LZ4_MAGIC.to_le_bytes()) else { return Some(packed.to_vec()) };
    let mut plain = Vec::new();
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let (block, more) = blocks.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        plain.extend(lz4_flex::block::decompress(block, LZ4_CHUNK).ok()?);
        rest = more;
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::{Compression, Initramfs};

    #[test]
    fn test_list_finds_what_has_no_business_in_an_image() {
        let mut archive = Initramfs::new();
        archive.bytes("/usr/bin/su", 0o4755, *b"\x7fELF").unwrap();
        archive.bytes("/bin/busybox", 0o755, *b"\x7fELF").unwrap();
        archive.bytes("/etc/rc", 0o755, *b"#!/bin/sh\n").unwrap();
        archive.bytes("/init", 0o755, *b"\x7fELF").unwrap();
        archive.link("/bin/sh", "busybox").unwrap();
        for compression in [Compression::None, Compression::Gzip, Compression::Lz4] {
            let mut packed = Vec::new();
            archive.write(&mut packed, compression, "test").unwrap();
            let listing = list(&packed).unwrap();
            assert_eq!(listing.files, 4, "{compression:?}");
            assert_eq!(listing.setuid, ["/usr/bin/su"]);
            assert_eq!(listing.interpreters, ["/bin/busybox", "/etc/rc"]);
        }
    }

    #[test]
    fn test_list_damaged_is_refused() {
        for bytes in [b"".as_slice(), b"07070", &[0x1f, 0x8b, 0, 0], &[2, 0x21, 0x4c, 0x18, 9, 0, 0, 0, 1]] {
            assert!(matches!(list(bytes), Err(ImageError::BadArchive)), "{bytes:?}");
        }
    }
}
