//! What can go wrong, in words for the person who builds an image.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::Debian;

/// Why an image, or a part of one, was not built.
///
/// Nothing that was being written is left in the place of the output when one of these comes back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Something that is compiled did not compile.
    #[error("Cannot build {program}: {step} failed; see {} for the full output\n{last_words}", log.display())]
    Compile {
        /// What was being made.
        program: &'static str,
        /// The step that failed.
        step: &'static str,
        /// The file with everything that the tools said.
        log: PathBuf,
        /// The last of it.
        last_words: String,
    },
    /// Tools or headers are missing on this machine.
    #[error(
        "To compile {program}, this machine needs Debian packages that are not installed; as root, run: \
         apt-get install --no-install-recommends {missing}"
    )]
    NoBuildPackages {
        /// What is to be made.
        program: &'static str,
        /// The packages, separated by blanks.
        missing: String,
    },
    /// Something that must already exist is missing.
    #[error(
        "{program} has not been compiled with this version's options; run `outrigger image build` with `minimal`"
    )]
    NotCompiled {
        /// What is missing.
        program: &'static str,
    },
    /// A file operation failed.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `create`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file system is full.
    #[error(
        "No space left while writing {} (an image takes 100 MB, the package cache about 1 GB, compiling 3 GB more for \
         as long as it runs; OUTRIGGER_CACHE moves the cache)",
        path.display()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Neither `OUTRIGGER_CACHE` nor `XDG_CACHE_HOME` nor `HOME` says where to keep packages.
    #[error("No directory for the package cache; set OUTRIGGER_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheFolder,
    /// A program that every Debian has could not be started.
    #[error(
        "Cannot run {program}: packages are taken from Debian through apt and dpkg, which must be installed"
    )]
    NoTool {
        /// Its name.
        program: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// apt has no package lists.
    #[error("apt knows no packages: run `apt-get update` as root, with the network up, then try again")]
    NoPackageLists,
    /// apt does not know a package.
    #[error(
        "No package {package} in the lists of Debian {debian}, main: check the name; where the machine's own apt is \
         used, check /etc/apt/sources.list, and run `apt-get update` as root"
    )]
    NoSuchPackage {
        /// Its name, or several.
        package: String,
        /// The release that was looked at.
        debian: Debian,
    },
    /// Debian's signatures cannot be checked.
    #[error(
        "Debian's keys for {debian} are missing: run `apt-get install debian-archive-keyring` as root; on Debian 12, \
         version 2023.3+deb12u2 or newer has the keys of Debian 13"
    )]
    NoKeys {
        /// The release whose lists they sign.
        debian: Debian,
    },
    /// Nothing is known of how to compile the sources of a release.
    #[error(
        "{program} cannot be compiled from the sources of Debian {debian}: its versions are not known to this \
         program; use Debian's own package, or another release"
    )]
    NoRecipe {
        /// What was to be made.
        program: &'static str,
        /// The release.
        debian: Debian,
    },
    /// The packages cannot be had together, or apt said something else.
    #[error("apt cannot resolve the dependencies of {wanted}: {stderr}")]
    Unresolvable {
        /// The packages asked for.
        wanted: String,
        /// apt's own words.
        stderr: String,
    },
    /// A package is for another processor.
    #[error("{what} is for {found}, but a stubdomain image needs {needed}")]
    WrongArchitecture {
        /// The package or file.
        what: String,
        /// Its architecture.
        found: String,
        /// The one that is needed.
        needed: &'static str,
    },
    /// A download failed.
    #[error(
        "Cannot fetch {package}: {stderr} (check the network; `apt-get update` refreshes outdated lists)"
    )]
    Fetch {
        /// Package and version.
        package: String,
        /// apt's own words.
        stderr: String,
    },
    /// What was downloaded is not what apt's signed lists promise.
    #[error(
        "Fetched {package}, but its SHA-256 is {found} where apt's lists say {expected}: run `apt-get update`"
    )]
    WrongHash {
        /// Package and version.
        package: String,
        /// From the lists.
        expected: String,
        /// Of the bytes that came.
        found: String,
    },
    /// A package could not be unpacked.
    #[error("Cannot unpack {package}: {stderr}")]
    Unpack {
        /// Package and version.
        package: String,
        /// dpkg's own words.
        stderr: String,
    },
    /// Something that should be in the packages is not.
    #[error("None of the packages contains {path} ({hint})")]
    NotInRoot {
        /// The path, as it would be in an installed system.
        path: String,
        /// Which packages were looked at, or what the file is for.
        hint: String,
    },
    /// Symbolic links lead round in a circle.
    #[error("Symbolic link loop at {path}")]
    LinkLoop {
        /// Where it was noticed.
        path: String,
    },
    /// A shared library is missing.
    #[error(
        "{needed_by} needs the library {library}, which none of the packages contains; specify its package too"
    )]
    MissingLibrary {
        /// The library's soname.
        library: String,
        /// The program or library whose dynamic section names it.
        needed_by: String,
    },
    /// A file is not the ELF file that it should be.
    #[error("{path} is not a usable ELF file: {reason}")]
    BadElf {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A kernel module is missing.
    #[error("The kernel {kernel} has no module {module} (needed by {needed_by})")]
    MissingModule {
        /// The kernel's release.
        kernel: String,
        /// The module's name.
        module: String,
        /// Another module, or `the image`.
        needed_by: String,
    },
    /// There is no kernel, or more than one.
    #[error("Found {found} where exactly one kernel package was expected")]
    KernelCount {
        /// The kernels found, or `no kernel`.
        found: String,
    },
    /// A QEMU of this machine's architecture cannot be asked what it has.
    #[error("The image's QEMU does not answer `{question}`: {stderr}")]
    QemuSilent {
        /// The arguments.
        question: String,
        /// Its own words.
        stderr: String,
    },
    /// It does not come to an end with its answer.
    #[error(
        "The image's QEMU did not answer `{question}` within {seconds} s; OUTRIGGER_TIME_SCALE extends the deadline on a \
         slow machine"
    )]
    QemuSlow {
        /// The arguments.
        question: String,
        /// How long it had.
        seconds: u64,
    },
    /// A QEMU that was compiled for stubdomains lacks devices.
    #[error("The QEMU that was compiled has no {devices}: its configuration, stubdom.mak, must name them")]
    QemuLacks {
        /// Their names.
        devices: String,
    },
    /// A bzImage cannot be taken apart.
    #[error(
        "{what} is not a Linux bzImage that can be unpacked: {reason} (use the bzImage format to keep it unchanged)"
    )]
    BadKernel {
        /// The file.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The agent needs an interpreter that the image may not have.
    #[error(
        "The agent {} is linked dynamically, but must run without libraries: build it with \
         `-C target-feature=+crt-static`",
        path.display()
    )]
    AgentNotStatic {
        /// The program.
        path: PathBuf,
    },
    /// A file is no initramfs.
    #[error("This is not a cpio archive, or it is damaged")]
    BadArchive,
    /// The output folder has something else in it.
    #[error(
        "The output directory {} contains {name}, which is not part of an image; specify a new directory, or \
         that of an earlier image",
        folder.display()
    )]
    ForeignOutput {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        name: String,
    },
    /// A manifest cannot be understood.
    #[error("{} is not the manifest of an image: {reason}", path.display())]
    BadManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A path cannot be in an initramfs.
    #[error("{path} cannot be put into an initramfs: {reason}")]
    BadEntry {
        /// The path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl ImageError {
    /// Makes the error of a file operation, telling a full disk apart.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { action, path, source },
        }
    }
}
