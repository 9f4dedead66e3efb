//! Which shared libraries programs need, found in a [`Root`] and nowhere else.
//!
//! Follows what Debian's `ld.so` does at run time for 64-bit x86: `DT_NEEDED` names are looked for in
//! `DT_RUNPATH` (or `DT_RPATH`, where there is no `DT_RUNPATH`) with `$ORIGIN`, then in the multiarch and
//! ordinary library directories. The machine's own `/etc/ld.so.conf` and libraries are never read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use elf::{ElfBytes, abi, endian::AnyEndian, string_table::StringTable};

use crate::{
    ImageError, Result,
    packages::Package,
    root::{Found, Root, parent},
};

/// Where `ld.so` looks by default, in its order, on Debian for x86-64.
const SEARCH: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib",
    "/usr/lib",
    "/lib64",
    "/usr/lib64",
    "/usr/local/lib",
];

/// One file that has to be in the image.
#[derive(Debug, Clone)]
pub struct File {
    /// Where it has to be in the image.
    pub path: String,
    /// The file on the build machine that holds it.
    pub host: PathBuf,
    /// Its package.
    pub package: Option<Package>,
    /// Whether it is a program or library that was asked for, rather than needed by one.
    pub asked: bool,
}

/// What the dynamic section of an ELF file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Names of the libraries that it needs.
    pub needed: Vec<String>,
    /// Its own search path, entries separated by `:`.
    pub run_path: Vec<String>,
    /// Its program interpreter (`ld.so`).
    pub interpreter: Option<String>,
}

/// Collects programs and everything that they need.
#[derive(Debug)]
pub struct Closure<'a> {
    root: &'a Root,
    files: BTreeMap<String, File>,
    left_out: BTreeSet<String>,
}

impl<'a> Closure<'a> {
    /// Begins an empty closure over a tree.
    pub fn new(root: &'a Root) -> Self {
        Self { root, files: BTreeMap::new(), left_out: BTreeSet::new() }
    }

    /// Passes a library over from now on, with what only it needs: the caller puts something else in its place.
    /// Gives where `ld.so` would find it.
    ///
    /// # Errors
    /// That it is not there.
    pub fn leave_out(&mut self, soname: &str) -> Result<String> {
        let path = self.search(soname, &[])?.ok_or_else(|| ImageError::MissingLibrary {
            library: soname.to_owned(),
            needed_by: "the list of libraries to leave out".to_owned(),
        })?;
        self.left_out.insert(soname.to_owned());
        Ok(path)
    }

    /// Adds a program or library of the tree, and all libraries that it needs.
    ///
    /// # Errors
    /// That it, or a library, is missing or is not ELF for x86-64.
    pub fn add(&mut self, path: &str) -> Result<()> {
        let found = self.root.find(path)?;
        let dynamic = inspect(&found.host)?;
        let path = absolute(path);
        let real = found.path.clone();
        self.keep(&path, found, true);
        self.follow(&path, parent(&real), &dynamic)
    }

    /// Adds the libraries that a program from outside of the tree needs, but not the program: the caller places
    /// it where it belongs.
    ///
    /// # Errors
    /// That a library is missing, or that the program is not ELF for x86-64.
    pub fn add_needs_of(&mut self, program: &Path) -> Result<()> {
        let dynamic = inspect(program)?;
        self.follow(&program.display().to_string(), "/", &dynamic)
    }

    /// Adds a library by its soname, as `dlopen` would find it.
    ///
    /// # Errors
    /// As [`Closure::add`].
    pub fn add_dlopened(&mut self, soname: &str) -> Result<()> {
        let path = self.search(soname, &[])?.ok_or_else(|| ImageError::MissingLibrary {
            library: soname.to_owned(),
            needed_by: "the list of libraries loaded at run time".to_owned(),
        })?;
        self.add(&path)
    }

    /// All files, sorted by path.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.files.values()
    }

    fn keep(&mut self, path: &str, found: Found, asked: bool) {
        let file = File { path: path.to_owned(), host: found.host, package: found.package, asked };
        let kept = self.files.entry(path.to_owned()).or_insert(file);
        kept.asked |= asked;
    }

    /// Adds everything that a file needs; the list of work instead of recursion bounds the stack.
    fn follow(&mut self, name: &str, origin: &str, dynamic: &Dynamic) -> Result<()> {
        let mut todo = vec![(name.to_owned(), origin.to_owned(), dynamic.clone())];
        while let Some((name, origin, dynamic)) = todo.pop() {
            let run_path: Vec<String> = dynamic
                .run_path
                .iter()
                .map(|entry| entry.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
                .collect();
            let mut paths = Vec::new();
            paths.extend(dynamic.interpreter.clone());
            for soname in dynamic.needed.iter().filter(|soname| !self.left_out.contains(*soname)) {
                paths.push(self.search(soname, &run_path)?.ok_or_else(|| ImageError::MissingLibrary {
                    library: soname.clone(),
                    needed_by: name.clone(),
                })?);
            }
            for path in paths {
                if self.files.contains_key(&path) {
                    continue;
                }
                let found = self.root.find(&path)?;
                if self.has_soname(&path, &found) {
                    continue;
                }
                let inner = inspect(&found.host)?;
                let real = found.path.clone();
                self.keep(&path, found, false);
                todo.push((path, parent(&real).to_owned(), inner));
            }
        }
        Ok(())
    }

    /// Whether the same library is there in another folder: `ld.so` takes what is loaded already by its soname.
    /// So the interpreter, which libc names as a library too, is there once.
    fn has_soname(&self, path: &str, found: &Found) -> bool {
        let name = path.rsplit('/').next();
        self.files.values().any(|file| file.host == found.host && file.path.rsplit('/').next() == name)
    }

    /// The path at which `ld.so` would find a library.
    fn search(&self, soname: &str, run_path: &[String]) -> Result<Option<String>> {
        if soname.contains('/') {
            return Ok(self.root.lookup(soname)?.map(|_| absolute(soname)));
        }
        let places = run_path.iter().map(String::as_str).chain(SEARCH);
        for place in places.filter(|place| place.starts_with('/')) {
            let path = format!("{}/{soname}", place.trim_end_matches('/'));
            if self.root.lookup(&path)?.is_some() {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// Reads the dynamic section of an ELF file for x86-64 (a static program has an empty one).
///
/// # Errors
/// That the file cannot be read, is not ELF, or is for another processor.
pub fn inspect(path: &Path) -> Result<Dynamic> {
    let bytes = fs::read(path).map_err(ImageError::io("read", path))?;
    inspect_bytes(&path.display().to_string(), &bytes)
}

/// Reads the dynamic section of an ELF file that is in memory; `name` is for errors only.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_bytes(name: &str, bytes: &[u8]) -> Result<Dynamic> {
    let bad = |reason: &dyn std::fmt::Display| ImageError::BadElf {
        path: name.to_owned(),
        reason: reason.to_string(),
    };
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).map_err(|error| bad(&error))?;
    if file.ehdr.e_machine != abi::EM_X86_64 {
        return Err(ImageError::WrongArchitecture {
            what: name.to_owned(),
            found: elf::to_str::e_machine_to_human_str(file.ehdr.e_machine)
                .unwrap_or("another processor")
                .into(),
            needed: "x86-64",
        });
    }
    let mut result = Dynamic::default();
    for segment in file.segments().into_iter().flatten().filter(|s| s.p_type == abi::PT_INTERP) {
        let data = file.segment_data(&segment).map_err(|error| bad(&error))?;
        let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
        result.interpreter = Some(String::from_utf8_lossy(text).into_owned());
    }
    let Some(dynamic) = file.dynamic().map_err(|error| bad(&error))? else { return Ok(result) };
    let entries: Vec<(i64, u64)> = dynamic
        .iter()
        .take_while(|entry| entry.d_tag != abi::DT_NULL)
        .map(|entry| (entry.d_tag, entry.d_val()))
        .collect();
    let value = |tag| entries.iter().find(|(other, _)| *other == tag).map(|(_, value)| *value);
    let strings = match (value(abi::DT_STRTAB), value(abi::DT_STRSZ)) {
        (Some(address), Some(size)) => loaded(&file, bytes, address, size)
            .ok_or_else(|| bad(&"its string table is outside the loaded segments"))?,
        _ => &[],
    };
    let strings = StringTable::new(strings);
    let text = |offset: u64| -> Result<String> {
        let offset = usize::try_from(offset).map_err(|error| bad(&error))?;
        Ok(strings.get(offset).map_err(|error| bad(&error))?.to_owned())
    };
    for (tag, value) in &entries {
        if *tag == abi::DT_NEEDED {
            result.needed.push(text(*value)?);
        }
    }
    let path = match value(abi::DT_RUNPATH).or(value(abi::DT_RPATH)) {
        Some(offset) => text(offset)?,
        None => String::new(),
    };
    result.run_path = path.split(':').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    Ok(result)
}

/// The bytes of the file that are loaded at an address.
fn loaded<'a>(file: &ElfBytes<'_, AnyEndian>, bytes: &'a [u8], address: u64, size: u64) -> Option<&'a [u8]> {
    file.segments()?.iter().filter(|segment| segment.p_type == abi::PT_LOAD).find_map(|segment| {
        let inside = address.checked_sub(segment.p_vaddr)?;
        if inside.checked_add(size)? > segment.p_filesz {
            return None;
        }
        let start = segment.p_offset.checked_add(inside)?;
        bytes.get(usize::try_from(start).ok()?..usize::try_from(start.checked_add(size)?).ok()?)
    })
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Elf;

    /// A tree: `app` needs `liba` and is interpreted by `ld.so`, `liba` needs `libb` by its own search path, and
    /// everything needs `libc`, which needs `ld.so` as a library.
    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let multi = "lib/x86_64-linux-gnu";
        let interpreter = format!("{multi}/ld-linux-x86-64.so.2");
        let put = |path: &str, elf: Elf| elf.write(&dir.path().join(path));
        put("usr/bin/app", Elf::new(&["liba.so.1", "libc.so.6"]).interpreter("/lib64/ld-linux-x86-64.so.2"));
        put(
            &format!("usr/{multi}/liba.so.1.2"),
            Elf::new(&["libb.so", "libc.so.6"]).run_path("$ORIGIN/../private"),
        );
        put("usr/lib/private/libb.so", Elf::new(&["libc.so.6"]));
        put(&format!("{multi}/libc.so.6"), Elf::new(&["ld-linux-x86-64.so.2"]));
        put(&interpreter, Elf::new(&[]));
        put("usr/lib/liblate.so.1", Elf::new(&["libc.so.6"]));
        put("usr/bin/lost", Elf::new(&["libnone.so.3"]));
        std::os::unix::fs::symlink("liba.so.1.2", dir.path().join(format!("usr/{multi}/liba.so.1"))).unwrap();
        fs::create_dir(dir.path().join("lib64")).unwrap();
        std::os::unix::fs::symlink(format!("/{interpreter}"), dir.path().join("lib64/ld-linux-x86-64.so.2"))
            .unwrap();
        let root = Root::of_folder(dir.path());
        (dir, root)
    }

    #[test]
    fn test_add_takes_all_that_is_needed_once() {
        let (_dir, root) = tree();
        let mut closure = Closure::new(&root);
        closure.add("/usr/bin/app").unwrap();
        let paths: Vec<&str> = closure.files().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2",
                "/usr/bin/app",
                "/usr/lib/x86_64-linux-gnu/../private/libb.so",
                "/usr/lib/x86_64-linux-gnu/liba.so.1",
            ]
        );
        assert!(closure.files().all(|file| file.asked == (file.path == "/usr/bin/app")));
    }

    #[test]
    fn test_add_dlopened_takes_its_needs() {
        let (_dir, root) = tree();
        let mut closure = Closure::new(&root);
        closure.add_dlopened("liblate.so.1").unwrap();
        assert_eq!(closure.files().count(), 3);
        assert!(matches!(closure.add_dlopened("libx.so"), Err(ImageError::MissingLibrary { .. })));
    }

    #[test]
    fn test_leave_out_passes_over_what_only_it_needs() {
        let (_dir, root) = tree();
        let mut closure = Closure::new(&root);
        assert_eq!(closure.leave_out("liba.so.1").unwrap(), "/usr/lib/x86_64-linux-gnu/liba.so.1");
        closure.add("/usr/bin/app").unwrap();
        assert!(closure.files().all(|file| !file.path.contains("liba") && !file.path.contains("libb")));
        assert!(closure.leave_out("libnone.so.3").is_err());
    }

    #[test]
    fn test_add_needs_of_leaves_the_program_out() {
        let (dir, root) = tree();
        let program = dir.path().join("elsewhere");
        Elf::new(&["libb.so", "libc.so.6"]).run_path("/usr/lib/private").write(&program);
        let mut closure = Closure::new(&root);
        closure.add_needs_of(&program).unwrap();
        assert!(closure.files().all(|file| !file.path.contains("elsewhere")));
        assert_eq!(closure.files().count(), 3);
    }

    #[test]
    fn test_add_missing_library_names_both() {
        let (_dir, root) = tree();
        let error = Closure::new(&root).add("/usr/bin/lost").unwrap_err().to_string();
        assert!(error.contains("libnone.so.3") && error.contains("/usr/bin/lost"), "{error}");
    }

    #[test]
    fn test_inspect_other_files_are_refused() {
        let arm = Elf::new(&[]).machine(183).bytes();
        assert!(matches!(inspect_bytes("x", &arm), Err(ImageError::WrongArchitecture { .. })));
        let mut far = Elf::new(&["libc.so.6"]).bytes();
        let whole = far.len();
        far.truncate(whole - 4);
        for bytes in [&b"#!/bin/sh"[..], &far, &far[..70]] {
            assert!(inspect_bytes("x", bytes).is_err());
        }
    }
}
