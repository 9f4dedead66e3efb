//! What is compiled from Debian's sources: the kernel and the QEMU of a stubdomain, the QEMU of the embedded host.
//!
//! What was compiled is kept in the cache's folder `compiled`, under a name made of everything that it depends on: our
//! own choices (the recipe), the hash of the source package, the versions of the tools and libraries. It looks there
//! like an unpacked package. It gets its name only when it is whole, so that an interrupted build is never used.
//!
//! Nothing depends on the build machine: sources have relative paths, times, users and host names are fixed, the
//! environment is empty. So the same sources and the same compiler give the same bytes.
//!
//! Where sources are of another Debian than the machine, so are compiler and libraries (`toolchain`).

mod debian_qemu;
mod emulator;
mod kernel;
mod merge;
mod qemu;
mod steps;
mod sums;
mod toolchain;
mod versioned;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    Debian, ImageError, Result,
    debian::Recipe,
    files::{rename_into_place, sha256_bytes},
    packages::{Package, Progress, Store},
    root::Layer,
};

use steps::Steps;
use toolchain::Toolchain;

/// What can be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Linux, of Debian's package of patched sources.
    Kernel,
    /// QEMU, of Debian's source package.
    Qemu,
    /// The QEMU that emulates the embedded host, of the same source package, with its faults removed.
    Emulator,
}

/// A compiled program in the cache.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Its files, and the source package that they were made from.
    pub layer: Layer,
    /// A hash over all that it depends on.
    pub key: String,
}

/// A step of compiling, for showing progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompileStep<'a> {
    /// Packages are looked for, fetched, unpacked.
    Packages(Progress<'a>),
    /// Sources are fetched.
    Fetching {
        /// What for.
        program: Program,
        /// How much, in bytes.
        bytes: u64,
    },
    /// Sources are unpacked.
    Unpacking(Program),
    /// The options are worked out.
    Configuring(Program),
    /// The compiler is at work, which takes minutes.
    Compiling(Program),
}

/// What is written beside the files of something compiled.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    key: String,
    package: Package,
    tools: Vec<String>,
}

/// Where [`Program::Emulator`] lies among its files.
pub const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
/// The facts' file name.
const FACTS: &str = "build.json";
/// The folder of files that go into images, beside the facts.
const TREE: &str = "tree";
/// How many of one kind are kept, the newest ones.
const KEPT: usize = 4;

impl Program {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "the minimal kernel",
            Self::Qemu => "the minimal QEMU",
            Self::Emulator => "the host's emulator",
        }
    }

    /// The Debian packages that this machine needs to compile sources of a release. Those of another release than the
    /// machine's have their compiler and libraries unpacked for them, and need little of the machine.
    pub fn needs(self, debian: Debian) -> Vec<&'static str> {
        match debian.recipe() {
            Some(recipe) if toolchain::is_machines(self, debian) => self.tools(&recipe),
            None if self == Self::Emulator => emulator::NEEDS.into(),
            _ => toolchain::MACHINE_NEEDS.into(),
        }
    }

    /// The Debian packages that compile it.
    fn tools(self, recipe: &Recipe) -> Vec<&'static str> {
        match self {
            Self::Kernel => kernel::NEEDS.into(),
            Self::Qemu => qemu::needs(recipe),
            Self::Emulator => emulator::NEEDS.into(),
        }
    }

    /// A hash over our own choices; nothing for a Debian whose sources are not known.
    pub(crate) fn recipe(self, debian: Debian) -> Option<String> {
        match self {
            Self::Kernel => debian.recipe().map(|recipe| kernel::recipe(&recipe)),
            Self::Qemu => debian.recipe().map(|recipe| qemu::recipe(&recipe)),
            Self::Emulator => Some(emulator::recipe()),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Qemu => "qemu",
            Self::Emulator => "emulator",
        }
    }

    /// The first part of the names of those that were compiled with today's choices.
    fn prefix(self, debian: Debian) -> Option<String> {
        Some(format!("{}-{}-", self.folder(), short(&self.recipe(debian)?)))
    }
}

/// Finds the newest one in the cache that was compiled with the choices of this program for the store's Debian, without
/// asking apt anything.
pub fn newest(store: &Store, program: Program) -> Option<Compiled> {
    let mut found = list(store, &program.prefix(store.debian())?);
    found.sort();
    found.into_iter().rev().find_map(|(_, folder)| read(&folder))
}

/// Compiles from the newest sources that apt knows, or finds that it was done. `jobs` compilers run at once.
///
/// Sources of another Debian than the machine's are compiled by that Debian's compiler, which is unpacked for it; the
/// machine then only needs a few packages to do so. The emulator runs on this machine, and is always compiled by its
/// own.
///
/// # Errors
/// That the sources cannot be had or are not known, that Debian packages are missing on this machine, that the machine is
/// no x86-64 one, that the compiler fails (its words are kept in a file that the error names), or that the disk is full.
pub fn compile(
    store: &Store,
    program: Program,
    jobs: usize,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<Compiled> {
    let unknown = || ImageError::NoRecipe { program: program.name(), debian: store.debian() };
    let recipe = store.debian().recipe().ok_or_else(unknown)?;
    let prefix = program.prefix(store.debian()).ok_or_else(unknown)?;
    let toolchain = Toolchain::find(store, program, &recipe)?;
    let source = Source::resolve(store, program, &recipe, progress)?;
    let choices = program.recipe(store.debian()).ok_or_else(unknown)?;
    let tools = toolchain.versions().join("\n");
    let key = sha256_bytes(format!("{choices}\n{}\n{tools}", source.sha256()).as_bytes());
    let folder = store.folder().join("compiled");
    let place = folder.join(format!("{prefix}{}", short(&key)));
    // Two at once would do everything twice.
    let lock_path = folder.join(format!("{}.lock", program.folder()));
    let lock = File::create(&lock_path).map_err(ImageError::io("open", &lock_path))?;
    lock.lock().map_err(ImageError::io("lock", &lock_path))?;
    if let Some(done) = read(&place) {
        return Ok(done);
    }
    let temp = store.temp()?;
    let mut steps =
        Steps::begin(program, temp.path(), folder.join(format!("{}.log", program.folder())), jobs)?;
    steps.enter(toolchain.prepare(store, temp.path(), &mut |step| progress(CompileStep::Packages(step)))?);
    let package = match &source {
        Source::Kernel(tree, package) => kernel::compile(tree, package, &recipe, &mut steps, progress)?,
        Source::Qemu(source) if program == Program::Emulator => {
            emulator::compile(store, source, &mut steps, progress)?
        }
        Source::Qemu(source) => qemu::compile(store, source, &recipe, &mut steps, progress)?,
    };
    let facts = Facts { key, package, tools: toolchain.versions().to_vec() };
    let text = serde_json::to_vec_pretty(&facts).expect("strings and numbers always make JSON");
    let path = steps.output().join(FACTS);
    fs::write(&path, text).map_err(ImageError::io("write", &path))?;
    rename_into_place(&steps.output(), &place)?;
    prune(store, program);
    read(&place).ok_or_else(|| ImageError::Compile {
        program: program.name(),
        step: "keeping the result",
        log: place,
        last_words: "the files are missing".to_owned(),
    })
}

/// The sources of a program.
enum Source {
    /// An unpacked package, in which they are packed.
    Kernel(PathBuf, Package),
    Qemu(crate::sources::SourcePackage),
}

impl Source {
    fn resolve(
        store: &Store,
        program: Program,
        recipe: &Recipe,
        progress: &mut dyn FnMut(CompileStep<'_>),
    ) -> Result<Self> {
        match program {
            Program::Kernel => {
                let (folder, package) =
                    kernel::source(store, recipe, &mut |step| progress(CompileStep::Packages(step)))?;
                Ok(Self::Kernel(folder, package))
            }
            Program::Qemu | Program::Emulator => Ok(Self::Qemu(store.resolve_source(debian_qemu::SOURCE)?)),
        }
    }

    fn sha256(&self) -> &str {
        match self {
            Self::Kernel(_, package) => &package.sha256,
            Self::Qemu(source) => source.sha256(),
        }
    }
}

/// Reads something compiled; nothing when it is not there or not whole.
fn read(folder: &Path) -> Option<Compiled> {
    let facts: Facts = serde_json::from_slice(&fs::read(folder.join(FACTS)).ok()?).ok()?;
    let tree = folder.join(TREE);
    tree.is_dir()
        .then_some(Compiled { layer: Layer { package: Some(facts.package), folder: tree }, key: facts.key })
}

/// Those with a prefix, with the times at which they were finished.
fn list(store: &Store, prefix: &str) -> Vec<(SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(store.folder().join("compiled")) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter_map(|entry| {
            Some((fs::metadata(entry.path().join(FACTS)).ok()?.modified().ok()?, entry.path()))
        })
        .collect()
}

/// Removes old ones. A failure here is harmless.
fn prune(store: &Store, program: Program) {
    let mut found = list(store, &format!("{}-", program.folder()));
    found.sort();
    for (_, folder) in found.into_iter().rev().skip(KEPT) {
        let _ = fs::remove_dir_all(folder);
    }
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Package {
        Package {
            name: "linux-source-6.1".to_owned(),
            version: "6.1".to_owned(),
            architecture: "all".to_owned(),
            section: "kernel".to_owned(),
            size: 1,
            sha256: "ab".repeat(32),
        }
    }

    fn keep(store: &Store, name: &str) -> PathBuf {
        let folder = store.folder().join("compiled").join(name);
        fs::create_dir_all(folder.join(TREE)).unwrap();
        let facts = Facts { key: name.to_owned(), package: package(), tools: Vec::new() };
        fs::write(folder.join(FACTS), serde_json::to_vec(&facts).unwrap()).unwrap();
        folder
    }

    #[test]
    fn test_newest_takes_whole_ones_of_the_recipe() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path()).unwrap();
        assert!(newest(&store, Program::Kernel).is_none());
        let prefix = Program::Kernel.prefix(store.debian()).unwrap();
        keep(&store, "kernel-0000000000000000-1");
        assert!(newest(&store, Program::Kernel).is_none(), "another recipe");
        keep(&store, &format!("{prefix}1"));
        let second = keep(&store, &format!("{prefix}2"));
        let late = SystemTime::now() + std::time::Duration::from_secs(9);
        File::open(second.join(FACTS)).unwrap().set_modified(late).unwrap();
        assert_eq!(newest(&store, Program::Kernel).unwrap().key, format!("{prefix}2"));
        // Half of it is gone: the one before counts.
        fs::remove_dir_all(second.join(TREE)).unwrap();
        assert_eq!(newest(&store, Program::Kernel).unwrap().key, format!("{prefix}1"));
        assert!(newest(&store, Program::Qemu).is_none());
    }

    #[test]
    fn test_prune_keeps_a_few() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path()).unwrap();
        for number in 0..KEPT + 3 {
            keep(&store, &format!("kernel-x-{number}"));
        }
        keep(&store, "qemu-x-1");
        prune(&store, Program::Kernel);
        assert_eq!(list(&store, "kernel-").len(), KEPT);
        assert_eq!(list(&store, "qemu-").len(), 1);
    }
}
