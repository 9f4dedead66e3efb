//! An initramfs that is the same to the byte for the same contents.
//!
//! The format is the kernel's `newc` cpio (Documentation/driver-api/early-userspace/buffer-format.rst). Entries
//! are written sorted by path, parents first, with time 0, owner 0 and inode numbers counted from 1.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::PathBuf,
};

use cpio::newc::{Builder, ModeFileType, trailer};
use flate2::{Compression as Level, GzBuilder};

use crate::{ImageError, Result, root::parent};

/// How an archive is packed.
///
/// What counts is a stubdomain's memory. Until the archive is unpacked it is there twice; and the kernel gives its
/// first file system half of the memory that is left beside the archive as it was loaded. The builder of a PV domain
/// (libxenguest) unpacks gzip before it loads the archive, so gzip is of no use there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all. Fastest where memory is plenty.
    None,
    /// gzip, level 9. Smallest on disk.
    Gzip,
    /// LZ4, in the older format that Linux reads. Loaded as it is, and unpacked nearly as fast as it can be copied.
    #[default]
    Lz4,
}

impl Compression {
    /// Its name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }
}

/// The first four bytes of LZ4's older format; `ARCHIVE_MAGICNUMBER` in Linux `lib/decompress_unlz4.c`.
pub(crate) const LZ4_MAGIC: u32 = 0x184c_2102;
/// Each block of that format unpacks to this much, but for the last (`LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE` there).
pub(crate) const LZ4_CHUNK: usize = 8 << 20;

/// Packs into LZ4's older format: the magic, then blocks, each after its packed length.
fn lz4(plain: &[u8]) -> Vec<u8> {
    let mut packed = LZ4_MAGIC.to_le_bytes().to_vec();
    for chunk in plain.chunks(LZ4_CHUNK) {
        let block = lz4_flex::block::compress(chunk);
        let length =
            u32::try_from(block.len()).expect("a block of 8 MiB grows by less than one in 255 bytes");
        packed.extend(length.to_le_bytes());
        packed.extend(block);
    }
    packed
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file with these bytes.
    Bytes(Vec<u8>),
    /// A regular file with the bytes of a file on the build machine.
    Copy(PathBuf),
    /// A symbolic link to this target.
    Link(String),
    /// A character device.
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// An archive under construction, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Initramfs {
    entries: BTreeMap<String, (u32, Node)>,
}

impl Initramfs {
    /// Begins an empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a directory (and its parents) with permission bits `mode`.
    ///
    /// # Errors
    /// [`ImageError::BadEntry`] when the path cannot be in an archive.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.put(path, mode, Node::Directory)
    }

    /// Puts a file with these bytes.
    ///
    /// # Errors
    /// As [`Initramfs::directory`].
    pub fn bytes(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Result<()> {
        self.put(path, mode, Node::Bytes(bytes.into()))
    }

    /// Puts a file with the bytes of one on the build machine, read when the archive is written.
    ///
    /// # Errors
    /// As [`Initramfs::directory`].
    pub fn copy(&mut self, path: &str, mode: u32, from: impl Into<PathBuf>) -> Result<()> {
        self.put(path, mode, Node::Copy(from.into()))
    }

    /// Puts a symbolic link.
    ///
    /// # Errors
    /// As [`Initramfs::directory`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.put(path, 0o777, Node::Link(target.to_owned()))
    }

    /// Puts a character device.
    ///
    /// # Errors
    /// As [`Initramfs::directory`].
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.put(path, mode, Node::Device { major, minor })
    }

    /// Puts anything. A later entry replaces an earlier one at the same path; directories are made as needed.
    ///
    /// # Errors
    /// As [`Initramfs::directory`].
    pub fn put(&mut self, path: &str, mode: u32, node: Node) -> Result<()> {
        let bad = |reason| ImageError::BadEntry { path: path.to_owned(), reason };
        if !path.starts_with('/') {
            return Err(bad("it is not an absolute path"));
        }
        let clean =
            format!("/{}", path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
        if clean.split('/').any(|part| part == "." || part == "..") || clean.contains('\0') {
            return Err(bad("it has a component that is not a plain name"));
        }
        if clean == "/" {
            return Err(bad("it has no name"));
        }
        if mode & !0o7777 != 0 {
            return Err(bad("its mode has more than permission bits"));
        }
        let above = parent(&clean).to_owned();
        if above != "/" {
            match self.entries.get(&above) {
                None => self.put(&above, 0o755, Node::Directory)?,
                Some((_, Node::Directory)) => {}
                Some(_) => return Err(bad("its parent is not a directory")),
            }
        }
        if let Some((_, Node::Directory)) = self.entries.get(&clean)
            && node != Node::Directory
        {
            return Err(bad("a directory already exists there"));
        }
        self.entries.insert(clean, (mode, node));
        Ok(())
    }

    /// All entries, sorted by path: path, permission bits, node.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u32, &Node)> {
        self.entries.iter().map(|(path, (mode, node))| (path.as_str(), *mode, node))
    }

    /// The bytes of a file entry, or of a link's target.
    ///
    /// # Errors
    /// That the file on the build machine cannot be read.
    pub fn contents(node: &Node) -> Result<Vec<u8>> {
        match node {
            Node::Directory | Node::Device { .. } => Ok(Vec::new()),
            Node::Bytes(bytes) => Ok(bytes.clone()),
            Node::Copy(from) => fs::read(from).map_err(ImageError::io("read", from)),
            Node::Link(target) => Ok(target.clone().into_bytes()),
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// That a file cannot be read or the output cannot be written; `name` is the output's, for the error.
    pub fn write(&self, mut output: impl Write, compression: Compression, name: &str) -> Result<()> {
        let fail = || ImageError::io("write", name);
        match compression {
            Compression::None => {
                self.write_cpio(&mut output, name)?;
            }
            Compression::Gzip => {
                // No file name, no time, and an unknown system: nothing of the build machine gets in.
                let mut packed =
                    GzBuilder::new().mtime(0).operating_system(255).write(&mut output, Level::best());
                self.write_cpio(&mut packed, name)?;
                packed.finish().map_err(fail())?;
            }
            Compression::Lz4 => {
                let mut plain = Vec::new();
                self.write_cpio(&mut plain, name)?;
                output.write_all(&lz4(&plain)).map_err(fail())?;
            }
        }
        output.flush().map_err(fail())
    }

    fn write_cpio(&self, output: &mut dyn Write, name: &str) -> Result<()> {
        let mut number = 0;
        for (path, mode, node) in self.entries() {
            let data = Self::contents(node)?;
            let size = u32::try_from(data.len()).map_err(|_| ImageError::BadEntry {
                path: path.to_owned(),
                reason: "it is larger than 4 GiB",
            })?;
            number += 1;
            let kind = match node {
                Node::Directory => ModeFileType::Directory,
                Node::Bytes(_) | Node::Copy(_) => ModeFileType::Regular,
                Node::Link(_) => ModeFileType::Symlink,
                Node::Device { .. } => ModeFileType::Char,
            };
            let mut header = Builder::new(path.trim_start_matches('/'))
                .ino(number)
                .mode(mode)
                .set_mode_file_type(kind)
                .nlink(if *node == Node::Directory { 2 } else { 1 });
            if let Node::Device { major, minor } = node {
                header = header.rdev_major(*major).rdev_minor(*minor);
            }
            write_entry(header, &mut *output, size, &data).map_err(ImageError::io("write", name))?;
        }
        trailer(output).map(|_| ()).map_err(ImageError::io("write", name))
    }
}

fn write_entry(header: Builder, output: &mut dyn Write, size: u32, data: &[u8]) -> io::Result<()> {
    let mut entry = header.write(output, size);
    entry.write_all(data)?;
    entry.finish().map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cpio::newc::Reader;

    use super::*;

    fn sample() -> Initramfs {
        let mut archive = Initramfs::new();
        archive.bytes("/usr/bin/tool", 0o755, *b"tool").unwrap();
        archive.link("/bin", "usr/bin").unwrap();
        archive.device("/dev/console", 0o600, 5, 1).unwrap();
        archive.directory("/tmp", 0o1777).unwrap();
        archive.bytes("/init", 0o755, vec![7; 10_001]).unwrap();
        archive
    }

    fn written(archive: &Initramfs, compression: Compression) -> Vec<u8> {
        let mut output = Vec::new();
        archive.write(&mut output, compression, "test").unwrap();
        output
    }

    #[test]
    fn test_write_is_sorted_and_bare_of_times() {
        let bytes = written(&sample(), Compression::None);
        let (mut rest, mut seen) = (&bytes[..], Vec::new());
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut data = String::new();
            if reader.entry().file_size() < 100 {
                reader.read_to_string(&mut data).unwrap();
            }
            let entry = reader.entry();
            assert_eq!((entry.mtime(), entry.uid(), entry.gid(), entry.dev_major()), (0, 0, 0, 0));
            assert_eq!(entry.ino() as usize, seen.len() + 1);
            let device = format!("{}:{}", entry.rdev_major(), entry.rdev_minor());
            seen.push(format!("{:o} {} {device} {data}", entry.mode(), entry.name()));
            rest = reader.finish().unwrap();
        }
        assert_eq!(
            seen,
            [
                "120777 bin 0:0 usr/bin",
                "40755 dev 0:0 ",
                "20600 dev/console 5:1 ",
                "100755 init 0:0 ",
                "41777 tmp 0:0 ",
                "40755 usr 0:0 ",
                "40755 usr/bin 0:0 ",
                "100755 usr/bin/tool 0:0 tool",
            ]
        );
    }

    #[test]
    fn test_write_twice_gives_the_same_bytes() {
        let mut other = Initramfs::new();
        for (path, mode, node) in sample().entries().collect::<Vec<_>>().into_iter().rev() {
            other.put(path, mode, node.clone()).unwrap();
        }
        for compression in [Compression::None, Compression::Gzip, Compression::Lz4] {
            let bytes = written(&sample(), compression);
            assert_eq!(bytes, written(&sample(), compression), "{compression:?}");
            assert_eq!(bytes, written(&other, compression), "{compression:?}, other order");
        }
    }

    #[test]
    fn test_write_packed_unpacks_to_plain() {
        let plain = written(&sample(), Compression::None);
        let (packed, mut unpacked) = (written(&sample(), Compression::Gzip), Vec::new());
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }

    #[test]
    fn test_lz4_unpacks_to_plain() {
        let mut plain: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n % 1013).to_le_bytes()).collect();
        plain.truncate(LZ4_CHUNK + 12_345);
        let packed = lz4(&plain);
        assert_eq!(packed[..4], [0x02, 0x21, 0x4c, 0x18]);
        let (mut rest, mut unpacked) = (&packed[4..], Vec::new());
        while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
            let (block, more) = blocks.split_at(u32::from_le_bytes(*length) as usize);
            unpacked.extend(lz4_flex::block::decompress(block, LZ4_CHUNK).unwrap());
            rest = more;
        }
        assert!(unpacked == plain && packed.len() < plain.len());
    }

    #[test]
    fn test_put_bad_paths_are_refused() {
        let mut archive = sample();
        for path in ["relative", "/", "/a/../b", "/./a", "/nul\0", "/init/below", "/bin/below", "/tmp"] {
            let error = archive.bytes(path, 0o644, *b"x").unwrap_err();
            assert!(matches!(error, ImageError::BadEntry { .. }), "{path}: {error:?}");
        }
        assert!(archive.bytes("/ok", 0o100_644, *b"x").is_err());
        assert_eq!(archive, sample());
    }
}
