//! The stubdomain image: kernel, initramfs and manifest.

mod contents;
mod output;

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

pub use crate::manifest::Manifest;
use crate::{
    ImageError, Result,
    closure::inspect,
    files::{sha256_file, size_of},
    initramfs::Compression,
    kernel::{KernelFormat, extract_elf},
    manifest::{self, FORMAT},
    modules::Kernel,
    packages::{Package, Progress, Store, Take},
    root::Root,
};

use contents::Contents;
use output::OutputFolder;

/// Debian's packages that an image is made of, apart from libraries.
const PACKAGES: [&str; 3] = ["qemu-system-data", "seabios", "ipxe-qemu"];
/// Where Debian's `qemu-system-xen` has its one program. QEMU finds its data relative to its own path, so it
/// stays there.
const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";

/// What to build.
#[derive(Debug, Clone)]
pub struct StubdomSpec {
    /// The folder to write; its name must be new, or that of an earlier image.
    pub output: PathBuf,
    /// The agent's program, statically linked.
    pub agent: PathBuf,
    /// The agent's version.
    pub agent_version: String,
    /// Debian's kernel package, with `=version` if a certain one is wanted.
    pub kernel: String,
    /// How the kernel is kept.
    pub kernel_format: KernelFormat,
    /// Debian's QEMU package, with `=version` if a certain one is wanted.
    pub qemu: String,
    /// How the initramfs is packed.
    pub compression: Compression,
    /// Whether SPICE and the libraries that it needs are in. They are a third of the image; without them QEMU's
    /// SPICE functions end it with a message.
    pub spice: bool,
}

impl StubdomSpec {
    /// The usual image: Debian's newest kernel as ELF and Debian's QEMU for Xen.
    pub fn debian(
        output: impl Into<PathBuf>,
        agent: impl Into<PathBuf>,
        agent_version: impl Into<String>,
    ) -> Self {
        Self {
            output: output.into(),
            agent: agent.into(),
            agent_version: agent_version.into(),
            kernel: "linux-image-amd64".to_owned(),
            kernel_format: KernelFormat::default(),
            qemu: "qemu-system-xen".to_owned(),
            compression: Compression::default(),
            spice: false,
        }
    }

    /// The packages to ask apt for; libraries and the kernel itself come with them.
    pub fn packages(&self) -> Vec<&str> {
        PACKAGES.into_iter().chain([self.kernel.as_str(), self.qemu.as_str()]).collect()
    }
}

/// A step of building, for showing progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// Packages are looked for, fetched, unpacked.
    Packages(Progress<'a>),
    /// Libraries, modules and data files are chosen.
    Choosing,
    /// The kernel is taken out of its bzImage.
    Kernel,
    /// The initramfs is packed.
    Packing {
        /// How many bytes go in.
        bytes: u64,
    },
}

/// Builds an image from Debian's packages in the cache of the environment (see [`Store::from_environment`]).
///
/// # Errors
/// Whatever stopped it; an earlier image in the output folder is then as it was.
pub fn build(spec: &StubdomSpec, progress: &mut dyn FnMut(Step<'_>)) -> Result<Manifest> {
    build_in(&Store::from_environment()?, spec, progress)
}

/// Builds an image from Debian's packages in a certain cache.
///
/// # Errors
/// As [`build`].
pub fn build_in(store: &Store, spec: &StubdomSpec, progress: &mut dyn FnMut(Step<'_>)) -> Result<Manifest> {
    // What can be wrong without any package is said before any is fetched.
    check_agent(&spec.agent)?;
    OutputFolder::check(&spec.output)?;
    let root = store.root(&spec.packages(), Take::Libraries, &mut |step| progress(Step::Packages(step)))?;
    build_from(&root, spec, progress)
}

/// Whether the output folder has the image already that [`build_in`] would write: same packages in apt's lists, same
/// agent, same options. Takes milliseconds when apt's lists have not changed since the last time. A missing or
/// damaged image is not current.
///
/// # Errors
/// As [`Store::resolve`], and that the agent cannot be read.
pub fn is_current(store: &Store, spec: &StubdomSpec) -> Result<bool> {
    let Ok(manifest) = Manifest::read(&spec.output) else { return Ok(false) };
    let packages = store.resolve(&spec.packages())?;
    Ok(describes(&manifest, spec, &packages)? && outputs_are_whole(&manifest, &spec.output))
}

/// Whether a manifest is that of the image that a specification and packages give.
fn describes(manifest: &Manifest, spec: &StubdomSpec, packages: &[Package]) -> Result<bool> {
    let known = |name: &str, sha256: &str| packages.iter().any(|p| p.name == name && p.sha256 == sha256);
    Ok(manifest.recipe == contents::recipe()
        && manifest.compression == spec.compression.name()
        && manifest.kernel.format == spec.kernel_format.name()
        && manifest.qemu.spice == spec.spice
        && manifest.agent.version == spec.agent_version
        && manifest
            .packages
            .iter()
            .all(|source| source.sha256.is_empty() || known(&source.name, &source.sha256))
        && manifest.agent.sha256 == sha256_file(&spec.agent)?)
}

/// Whether the files beside a manifest have the sizes that it says. An image is put into its place as a whole, so
/// that this finds what was done to it later.
fn outputs_are_whole(manifest: &Manifest, folder: &Path) -> bool {
    manifest.outputs.len() == 2
        && manifest
            .outputs
            .iter()
            .all(|output| size_of(&folder.join(&output.name)).is_ok_and(|n| n == output.size))
}

/// Builds an image from packages that are unpacked already.
///
/// # Errors
/// As [`build`].
pub fn build_from(root: &Root, spec: &StubdomSpec, progress: &mut dyn FnMut(Step<'_>)) -> Result<Manifest> {
    check_agent(&spec.agent)?;
    let output = OutputFolder::begin(&spec.output)?;
    progress(Step::Choosing);
    let kernel = Kernel::find(root)?;
    let contents = Contents::choose(root, &kernel, spec)?;
    progress(Step::Kernel);
    let image = kernel.image()?;
    let bytes = root.read(&image.path)?;
    let bytes = match spec.kernel_format {
        KernelFormat::BzImage => bytes,
        KernelFormat::Elf => extract_elf(&image.path, &bytes)?,
    };
    output.write(Manifest::KERNEL, &bytes)?;
    drop(bytes);
    let (files, totals) = contents.list(root)?;
    progress(Step::Packing { bytes: totals.bytes });
    let path = output.path(Manifest::INITRAMFS);
    let file = File::create(&path).map_err(ImageError::io("create", &path))?;
    contents.archive.write(BufWriter::new(file), spec.compression, &path.display().to_string())?;
    let manifest = Manifest {
        format: FORMAT,
        recipe: contents::recipe(),
        kernel: manifest::Kernel {
            package: image.package.as_ref().map_or_else(String::new, |package| package.name.clone()),
            version: image.package.as_ref().map_or_else(String::new, |package| package.version.clone()),
            release: kernel.release().to_owned(),
            format: spec.kernel_format.name().to_owned(),
        },
        qemu: contents.qemu.clone(),
        agent: manifest::Agent { version: spec.agent_version.clone(), sha256: sha256_file(&spec.agent)? },
        compression: spec.compression.name().to_owned(),
        outputs: [Manifest::KERNEL, Manifest::INITRAMFS]
            .into_iter()
            .map(|name| {
                let path = output.path(name);
                let (size, sha256) = (size_of(&path)?, sha256_file(&path)?);
                Ok(manifest::Output { name: name.to_owned(), size, sha256 })
            })
            .collect::<Result<_>>()?,
        totals,
        packages: contents.sources(&files),
        modules: contents.modules.clone(),
        files,
    };
    output.write(Manifest::FILE, &manifest.to_json())?;
    output.finish()?;
    Ok(manifest)
}

/// The agent runs as the first program of an image whose C library may be older than the build machine's.
fn check_agent(agent: &Path) -> Result<()> {
    match inspect(agent)?.interpreter {
        None => Ok(()),
        Some(_) => Err(ImageError::AgentNotStatic { path: agent.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
