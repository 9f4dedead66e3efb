//! What is in an image: `manifest.json` beside it.
//!
//! It has no times and no names of the build machine, so the same contents give the same manifest.

use std::{collections::BTreeSet, fs, path::Path};

use serde::{Deserialize, Serialize};

use stubdom_abi::QemuAbilities;

use crate::{Debian, ImageError, Result, packages::Package, root::Root};

/// The version of the format that this crate writes. A larger one may lack what this crate reads.
pub const FORMAT: u32 = 1;

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: [`FORMAT`].
    pub format: u32,
    /// A hash over the builder's own choices (which modules, data files, options), so that a newer builder knows
    /// an image as old even where packages and agent are the same.
    pub recipe: String,
    /// The Debian that everything was taken from; absent in images of older builders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debian: Option<Debian>,
    /// The stubdomain's kernel.
    pub kernel: Kernel,
    /// Its device model.
    pub qemu: Qemu,
    /// Its init.
    pub agent: Agent,
    /// How `initramfs.img` is packed: `none`, `gzip` or `lz4`.
    pub compression: String,
    /// Memory in KiB that a stubdomain with this image is to have, without video memory.
    pub memory_kib: u64,
    /// `vmlinuz` and `initramfs.img`.
    pub outputs: Vec<Output>,
    /// Sums over [`Manifest::files`].
    pub totals: Totals,
    /// The packages that files were taken from, sorted by name.
    pub packages: Vec<Source>,
    /// Kernel modules, in the order in which they are loaded.
    pub modules: Vec<String>,
    /// Every regular file and link of the initramfs, sorted by path.
    pub files: Vec<Content>,
}

/// The kernel of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The package that it comes from.
    pub package: String,
    /// That package's version.
    pub version: String,
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// `elf` or `bzImage`.
    pub format: String,
    /// Whether it can start in a PVH domain, too; false in images of older builders, which do not say it.
    #[serde(default)]
    pub pvh: bool,
}

/// QEMU of an image, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The package that it comes from.
    pub package: String,
    /// That package's version.
    pub version: String,
    /// Its path in the image.
    pub path: String,
    /// Whether it has `-sandbox` (is built with libseccomp).
    pub sandbox: bool,
    /// Whether it can offer SPICE, and the `qxl` display adapter.
    pub spice: bool,
    /// What it has; absent where it could not be run when the image was built, and in images of older builders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abilities: Option<QemuAbilities>,
}

/// The agent of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// SHA-256 of the program.
    pub sha256: String,
}

/// A file that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name, beside the manifest.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Sums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Their bytes, which is about the memory that they take in the stubdomain.
    pub bytes: u64,
}

/// A package that files were taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the .deb file; empty for what is not from a package.
    pub sha256: String,
    /// The licences that its copyright file names; it may name more than the files taken fall under.
    pub licence: String,
    /// How many of its files are in the initramfs.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A file or link of the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its path in the image.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes (of the target, for a link).
    pub sha256: String,
    /// The package that it is from.
    pub package: String,
    /// That package's version.
    pub version: String,
    /// That package's licences.
    pub licence: String,
    /// A link's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

impl Manifest {
    /// The manifest's file name, beside the image.
    pub const FILE: &str = "manifest.json";
    /// The kernel's file name.
    pub const KERNEL: &str = "vmlinuz";
    /// The initramfs's file name.
    pub const INITRAMFS: &str = "initramfs.img";

    /// The list of components in the form of CycloneDX, for other programs.
    pub const SBOM: &str = "sbom.cdx.json";

    /// Reads the manifest of the image in a folder.
    ///
    /// # Errors
    /// That there is none, or that it is not one that this crate understands.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE);
        let text = fs::read(&path).map_err(ImageError::io("read", &path))?;
        let bad = |reason: String| ImageError::BadManifest { path: path.clone(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(bad(format!("its format is {format}, but this program supports {FORMAT}")));
            }
            None => return Err(bad("it has no format number".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| bad(error.to_string()))
    }

    /// The bytes of `manifest.json`.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("strings and numbers always make JSON");
        text.push(b'\n');
        text
    }
}

/// Names the licences of a package, as well as its copyright file lets a program see them.
pub(crate) fn licence(root: &Root, package: &Package) -> Result<String> {
    let path = format!("/usr/share/doc/{}/copyright", package.name);
    let text = match root.lookup(&path)? {
        Some(found) => fs::read(&found.host).map_err(ImageError::io("read", &found.host))?,
        None => return Ok("unknown".to_owned()),
    };
    let text = String::from_utf8_lossy(&text);
    if let Some(licence) = licence_of_part(&package.name, &text) {
        return Ok(licence.to_owned());
    }
    let names = licence_names(&text);
    Ok(if names.is_empty() { format!("see {path}") } else { names.join(", ") })
}

/// Packages that hold a part of a larger source, whose copyright file is for the whole: the beginning of the name, the
/// part's own licence, and words without which the file is not the one that was read for this.
const PARTS: [(&str, &str, &str); 3] = [
    ("libfdt", "GPL-2+ or BSD-2-clause", "License: GPL-2+ or BSD-2-clause"),
    ("libgcc-s", "GPL-3+ with GCC-exception-3.1", " - libgcc (libgcc/,"),
    // The heads of the files below tools/libs; Debian names what holds for most of Xen, GPL-2.
    ("libxen", "LGPL-2.1", "LGPL 2.1"),
];

fn licence_of_part(package: &str, text: &str) -> Option<&'static str> {
    let part = PARTS.iter().find(|(name, _, words)| package.starts_with(name) && text.contains(words))?;
    Some(part.1)
}

/// So many names tell enough; the copyright file has the rest.
const MAX_NAMES: usize = 4;

/// Reads licence names: the main ones of a machine-readable copyright file, or else the common licences that it
/// refers to, or else what its text sounds like.
fn licence_names(text: &str) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    if text.starts_with("Format:") {
        let mut everything = Vec::new();
        for paragraph in text.split("\n\n") {
            let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let Some(licence) = field("License:").filter(|name| !name.is_empty()) else { continue };
            everything.push(licence);
            if field("Files:") == Some("*") {
                names.push(licence);
            }
        }
        if names.is_empty() {
            names = everything;
        }
    }
    if names.is_empty() {
        names = text.split("/usr/share/common-licenses/").skip(1).map(leading_name).collect();
    }
    if names.is_empty() {
        let sounds = [
            ("Permission is hereby granted, free of charge", "MIT-style"),
            ("Redistribution and use in source and binary forms", "BSD-style"),
        ];
        names = sounds.iter().filter(|(words, _)| text.contains(words)).map(|(_, name)| *name).collect();
    }
    let names: BTreeSet<&str> = names.into_iter().filter(|name| !name.is_empty()).collect();
    let more = names.len() > MAX_NAMES;
    let mut names: Vec<String> = names.into_iter().take(MAX_NAMES).map(str::to_owned).collect();
    if more {
        names.push("others".to_owned());
    }
    names
}

/// The file name that a text begins with.
fn leading_name(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "-.+".contains(c))).unwrap_or(text.len());
    text[..end].trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_licence_of_part_needs_the_words() {
        let text = "runtime libraries\n\n - libgcc (libgcc/, gcc/libgcc2.[ch])";
        assert_eq!(licence_of_part("libgcc-s1", text), Some("GPL-3+ with GCC-exception-3.1"));
        assert_eq!(licence_of_part("libgcc-s1", "other words"), None);
        assert_eq!(licence_of_part("zlib1g", text), None);
    }

    #[test]
    fn test_licence_names_machine_readable() {
        let format = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n";
        let text = format!("{format}\nFiles: *\nLicense: LGPL-2.1\n\nFiles: m4\nLicense: GPL-2+\n text\n");
        assert_eq!(licence_names(&text), ["LGPL-2.1"]);
        let text = format!("{format}\nFiles: a\nLicense: B\n\nFiles: b\nLicense: A\n\nLicense: B\n text\n");
        assert_eq!(licence_names(&text), ["A", "B"]);
    }

    #[test]
    fn test_licence_names_references_and_sounds() {
        let text = "See `/usr/share/common-licenses/GPL-2'.\nOr /usr/share/common-licenses/LGPL-2.1.\nGPL-2";
        assert_eq!(licence_names(text), ["GPL-2", "LGPL-2.1"]);
        let many: String = (0..9).map(|n| format!("/usr/share/common-licenses/L{n} ")).collect();
        assert_eq!(licence_names(&many), ["L0", "L1", "L2", "L3", "others"]);
        assert_eq!(licence_names("Permission is hereby granted, free of charge, to"), ["MIT-style"]);
        assert_eq!(licence_names("All rights given."), Vec::<String>::new());
    }

    #[test]
    fn test_read_foreign_manifest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [("{}", "no format"), ("{\"format\": 9}", "format is 9"), ("no", "expected")] {
            fs::write(dir.path().join(Manifest::FILE), text).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
