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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all: largest, and fastest to boot where memory is plenty and the processor slow.
    #[default]
    None,
    /// gzip, level 9.
    Gzip,
    /// Zstandard, at the only level that the pure Rust encoder has (about zstd's level 1).
    Zstd,
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
            return Err(bad("it has a part that is not a plain name"));
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
                Some(_) => return Err(bad("what is above it is not a directory")),
            }
        }
        if let Some((_, Node::Directory)) = self.entries.get(&clean)
            && node != Node::Directory
        {
            return Err(bad("there is a directory already"));
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
            Compression::Zstd => {
                let mut plain = Vec::new();
                self.write_cpio(&mut plain, name)?;
                let packed = ruzstd::encoding::compress_to_vec(
                    &plain[..],
                    ruzstd::encoding::CompressionLevel::Fastest,
                );
                output.write_all(&packed).map_err(fail())?;
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
