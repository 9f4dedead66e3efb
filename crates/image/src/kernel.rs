//! The ELF kernel inside a bzImage.
//!
//! A PV domain's kernel is loaded as ELF; from a bzImage it has to be decompressed each time a domain is built.
//! Doing it once, when the image is built, makes every `create` faster.
//! Header fields: Linux `Documentation/x86/boot.rst`.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

use crate::{
    ImageError, Result,
    elf_kernel::{has_pvh_entry, slim},
};

/// How the kernel is kept in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelFormat {
    /// As uncompressed ELF: larger on disk, no decompression when a domain is built.
    #[default]
    Elf,
    /// As the distribution's bzImage.
    BzImage,
}

impl KernelFormat {
    /// Its name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Elf => "elf",
            Self::BzImage => "bzImage",
        }
    }
}

/// A larger kernel than this is a broken one (Debian's has 40 MiB to 70 MiB).
const MAX_KERNEL: u64 = 512 << 20;
/// The largest window or dictionary that a kernel's compressor is run with.
const MAX_WINDOW: u64 = 128 << 20;

/// Offset of the number of 512-byte set-up sectors.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the protocol's magic, `HdrS`.
const MAGIC: usize = 0x202;
/// Offset of the protocol's version; 2.08 brought the payload fields.
const VERSION: usize = 0x206;
/// Offset of the payload's offset from the start of the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;

/// Extracts the uncompressed ELF kernel from a bzImage, without padding, spelled-out zeros and section headers.
/// Bytes that are ELF already only lose those. `name` is for errors only.
///
/// # Errors
/// [`ImageError::BadKernel`] when it is no bzImage, or compressed in an unknown way, or damaged.
pub fn extract_elf(name: &str, image: &[u8]) -> Result<Vec<u8>> {
    let bad = |reason: String| ImageError::BadKernel { what: name.to_owned(), reason };
    let kernel = if image.starts_with(b"\x7fELF") {
        image.to_vec()
    } else {
        let payload = payload(image).map_err(|reason| bad(reason.to_owned()))?;
        decompress(payload).map_err(|error| bad(error.to_string()))?
    };
    if !kernel.starts_with(b"\x7fELF") {
        return Err(bad("its payload is not an ELF kernel".to_owned()));
    }
    slim(&kernel).map_err(bad)
}

/// Whether the kernel in a file of an image can start in a PVH domain, besides a PV one. One that is not understood is
/// taken for one that cannot.
pub(crate) fn starts_as_pvh(kernel: &[u8]) -> bool {
    if kernel.starts_with(b"\x7fELF") {
        return has_pvh_entry(kernel);
    }
    extract_elf("kernel", kernel).is_ok_and(|kernel| has_pvh_entry(&kernel))
}

/// Finds the compressed payload.
fn payload(image: &[u8]) -> std::result::Result<&[u8], &'static str> {
    const SHORT: &str = "it is too short";
    let byte = |at: usize| image.get(at).copied().ok_or(SHORT);
    let word = |at: usize| -> std::result::Result<usize, &'static str> {
        let bytes = image.get(at..at + 4).ok_or(SHORT)?;
        Ok(bytes.iter().rev().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err("it has no boot header");
    }
    if (byte(VERSION + 1)?, byte(VERSION)?) < (2, 8) {
        return Err("its boot protocol is older than 2.08");
    }
    // 0 stands for 4, as ever.
    let sectors = match byte(SETUP_SECTS)? {
        0 => 4,
        more => usize::from(more),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let end = start.checked_add(word(PAYLOAD_LENGTH)?).ok_or(SHORT)?;
    image.get(start..end).filter(|payload| payload.len() > 8).ok_or("its payload is outside the file")
}

/// Decompresses a kernel's payload or a module, telling its kind by its first bytes. The kernel's build appends the size
/// to most kinds, which the decoders leave unread.
pub(crate) fn decompress(payload: &[u8]) -> io::Result<Vec<u8>> {
    let other = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let reader: Box<dyn Read + '_> = match payload {
        [0x1f, 0x8b, ..] => Box::new(GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let limit = u32::try_from(MAX_WINDOW >> 10).map_err(|error| other(&error))?;
            Box::new(XzReader::new_mem_limit(payload, false, limit))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(
            StreamingDecoder::new_with_max_window_size(payload, MAX_WINDOW).map_err(|error| other(&error))?,
        ),
        [0x7f, b'E', b'L', b'F', ..] => Box::new(payload),
        _ => return Err(io::Error::other("its compression is none of gzip, xz, zstd")),
    };
    let mut kernel = Vec::new();
    let read = reader.take(MAX_KERNEL + 1).read_to_end(&mut kernel)?;
    if u64::try_from(read).map_or(true, |read| read > MAX_KERNEL) {
        return Err(io::Error::other("it unpacks to more than 512 MiB"));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A bzImage with this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[SETUP_SECTS] = 2;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&[15, 2]);
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0xee; 64]);
        image
    }

    fn unpack(image: &[u8]) -> io::Result<Vec<u8>> {
        decompress(payload(image).map_err(io::Error::other)?)
    }

    fn plain() -> Vec<u8> {
        let mut bytes = b"\x7fELF kernel ".to_vec();
        bytes.extend((0..9000_u32).flat_map(u32::to_le_bytes));
        bytes
    }

    #[test]
    fn test_gzip_payload_unpacks() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&plain()).unwrap();
        assert_eq!(unpack(&bzimage(&packed.finish().unwrap())).unwrap(), plain());
    }

    #[test]
    fn test_zstd_payload_with_size_appended_unpacks() {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut packed = ruzstd::encoding::compress_to_vec(&plain()[..], level);
        packed.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(unpack(&bzimage(&packed)).unwrap(), plain());
    }

    #[test]
    fn test_xz_payload_with_size_appended_unpacks() {
        // `printf '\177ELFELFELFELF' | xz -9e --check=crc32`
        let packed = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
            0x1c, 0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0xe0, 0x00, 0x0c, 0x00, 0x09, 0x5d, 0x00, 0x3f,
            0x91, 0x45, 0x84, 0x73, 0x12, 0xd0, 0x60, 0x00, 0x00, 0x00, 0x00, 0x00, 0x44, 0x80, 0xe1, 0x71,
            0x00, 0x01, 0x21, 0x0d, 0x75, 0xdc, 0xa8, 0xd2, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00,
            0x00, 0x01, 0x59, 0x5a, 0x0d, 0x00, 0x00, 0x00,
        ];
        assert_eq!(unpack(&bzimage(&packed)).unwrap(), b"\x7fELFELFELFELF");
        // Cut short: an error rather than half a kernel.
        assert!(unpack(&bzimage(&packed[..40])).is_err());
    }

    #[test]
    fn test_extract_damaged_images_are_refused() {
        let good = bzimage(&plain());
        assert_eq!(unpack(&good).unwrap(), plain());
        let mut outside = good.clone();
        outside[PAYLOAD_LENGTH + 3] = 0x7f;
        let mut old = good.clone();
        old[VERSION] = 7;
        let mut unknown = good.clone();
        unknown[3 * 512 + 16] = b'?';
        for image in [&good, &outside, &old, &unknown, &good[..0x240].to_vec(), &b"MZ".to_vec(), &Vec::new()]
        {
            assert!(matches!(extract_elf("k", image), Err(ImageError::BadKernel { .. })));
        }
    }
}
