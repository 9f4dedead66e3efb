//! The stubdomain image: kernel, initramfs and manifest.

mod contents;
mod output;

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use xen_types::KiB;

pub use crate::manifest::Manifest;
use crate::{
    Debian, ImageError, Result,
    closure::inspect,
    compiled::{self, CompileStep, Compiled, Program},
    files::{sha256_bytes, sha256_file, size_of},
    initramfs::Compression,
    kernel::{KernelFormat, extract_elf, starts_as_pvh},
    manifest::{self, FORMAT},
    modules::Kernel,
    packages::{Package, Progress, Store, Take},
    root::Root,
    sbom,
};

use contents::Contents;
use output::OutputFolder;

/// Debian's packages that an image is made of, apart from libraries.
const PACKAGES: [&str; 3] = ["qemu-system-data", "seabios", "ipxe-qemu"];
/// Where Debian's `qemu-system-xen` has its one program. QEMU finds its data relative to its own path, so it
/// stays there.
pub(crate) const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";
/// Memory of a stubdomain whose kernel is Debian's, without video memory. That kernel takes about 50 MiB of it, and for
/// a moment the image is there packed and unpacked at once: with 128 MiB, 4 of 21 starts ended in "System is
/// deadlocked on memory".
const DEBIAN_MEMORY: KiB = KiB::from_mib(160);
/// The same for the minimal kernel with the minimal QEMU.
const MINIMAL_MEMORY: KiB = KiB::from_mib(64);

/// What to build.
#[derive(Debug, Clone)]
pub struct StubdomSpec {
    /// The Debian that everything is taken from; need not be that of any host.
    pub debian: Debian,
    /// The folder to write; its name must be new, or that of an earlier image.
    pub output: PathBuf,
    /// The agent's program, statically linked.
    pub agent: PathBuf,
    /// The agent's version.
    pub agent_version: String,
    /// Where the kernel comes from.
    pub kernel: Origin,
    /// How the kernel is kept.
    pub kernel_format: KernelFormat,
    /// Where QEMU comes from.
    pub qemu: Origin,
    /// How many compilers run at once, where something is compiled.
    pub jobs: usize,
    /// How the initramfs is packed.
    pub compression: Compression,
    /// Whether SPICE and the libraries that it needs are in. They are a third of the image; without them QEMU's
    /// SPICE functions end it with a message.
    pub spice: bool,
}

/// Where the kernel or QEMU comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A Debian package, with `=version` if a certain one is wanted.
    Package(String),
    /// Compiled from the newest sources that apt knows, now or earlier.
    Minimal,
    /// The newest one that was compiled earlier; it is an error if there is none.
    Compiled,
}

impl Origin {
    /// Debian's newest kernel.
    pub fn debian_kernel() -> Self {
        Self::Package("linux-image-amd64".to_owned())
    }

    /// Debian's QEMU for Xen.
    pub fn debian_qemu() -> Self {
        Self::Package("qemu-system-xen".to_owned())
    }

    /// Whether it is compiled rather than Debian's own.
    fn is_compiled(&self) -> bool {
        self.package().is_none()
    }

    fn package(&self) -> Option<&str> {
        match self {
            Self::Package(name) => Some(name),
            Self::Minimal | Self::Compiled => None,
        }
    }
}

impl StubdomSpec {
    /// The quick start: Debian's newest kernel as ELF and Debian's QEMU for Xen.
    pub fn debian(
        debian: Debian,
        output: impl Into<PathBuf>,
        agent: impl Into<PathBuf>,
        agent_version: impl Into<String>,
    ) -> Self {
        Self {
            debian,
            output: output.into(),
            agent: agent.into(),
            agent_version: agent_version.into(),
            kernel: Origin::debian_kernel(),
            kernel_format: KernelFormat::default(),
            qemu: Origin::debian_qemu(),
            jobs: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            compression: Compression::default(),
            spice: false,
        }
    }

    /// The usual image: what was compiled earlier, as far as it was, and Debian's for the rest.
    pub fn usual(
        store: &Store,
        output: impl Into<PathBuf>,
        agent: impl Into<PathBuf>,
        agent_version: impl Into<String>,
    ) -> Self {
        let mut spec = Self::debian(store.debian(), output, agent, agent_version);
        if compiled::newest(store, Program::Kernel).is_some() {
            spec.kernel = Origin::Compiled;
        }
        if compiled::newest(store, Program::Qemu).is_some() {
            spec.qemu = Origin::Compiled;
        }
        spec
    }

    /// The packages to ask apt for; libraries and the kernel itself come with them.
    pub fn packages(&self) -> Vec<String> {
        let mut packages: Vec<String> = PACKAGES.map(str::to_owned).into();
        if self.qemu.is_compiled() {
            packages.extend(qemu_libraries(self.debian));
        }
        let chosen = [&self.kernel, &self.qemu].into_iter().filter_map(Origin::package);
        packages.extend(chosen.map(str::to_owned));
        packages
    }

    /// The packages that apt would install for [`Self::packages`].
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn resolve(&self, store: &Store) -> Result<Vec<Package>> {
        let wanted = self.packages();
        store.resolve(&wanted.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A hash over all our own choices that make this image.
    fn recipe(&self) -> String {
        let mut recipes = vec![contents::recipe()];
        for (origin, program) in [(&self.kernel, Program::Kernel), (&self.qemu, Program::Qemu)] {
            recipes.extend(origin.is_compiled().then(|| program.recipe(self.debian)).flatten());
        }
        sha256_bytes(recipes.join("\n").as_bytes())
    }

    /// The stubdomain's memory, without video memory.
    fn memory(&self) -> KiB {
        if self.kernel.is_compiled() && self.qemu.is_compiled() { MINIMAL_MEMORY } else { DEBIAN_MEMORY }
    }

    /// What was compiled for the image, or is compiled now.
    ///
    /// # Errors
    /// As [`compiled::compile`], and [`ImageError::NotCompiled`].
    pub fn compiled(&self, store: &Store, progress: &mut dyn FnMut(Step<'_>)) -> Result<Vec<Compiled>> {
        let mut all = Vec::new();
        for (origin, program) in [(&self.kernel, Program::Kernel), (&self.qemu, Program::Qemu)] {
            match origin {
                Origin::Package(_) => {}
                Origin::Minimal => all.push(compiled::compile(store, program, self.jobs, &mut |step| {
                    progress(Step::Compiling(step));
                })?),
                Origin::Compiled => all.push(
                    compiled::newest(store, program)
                        .ok_or(ImageError::NotCompiled { program: program.name() })?,
                ),
            }
        }
        Ok(all)
    }
}

/// The libraries of a QEMU that was compiled here; what they need in turn comes with them, Xen's small ones with
/// those of its release.
fn qemu_libraries(debian: Debian) -> Vec<String> {
    // Where there is no recipe, nothing was compiled.
    let glib = debian.recipe().map_or("libglib2.0-0", |recipe| recipe.glib);
    let xen = debian.xen().libraries_package();
    ["libc6", "libfdt1", glib, "libpixman-1-0", "libseccomp2", &xen, "zlib1g"].map(str::to_owned).into()
}

/// A step of building, for showing progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// The kernel or QEMU is compiled.
    Compiling(CompileStep<'a>),
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
    let compiled = spec.compiled(store, progress)?;
    let wanted = spec.packages();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let root = store.root(&wanted, Take::Libraries, &mut |step| progress(Step::Packages(step)))?;
    // What was compiled comes first: where two have the same file, the first one counts.
    let layers = compiled.into_iter().map(|one| one.layer).chain(root.layers().iter().cloned());
    build_from(&Root::new(layers.collect()), spec, progress)
}

/// Whether the output folder has the image already that [`build_in`] would write: same packages in apt's lists, same
/// agent, same options. Takes milliseconds when apt's lists have not changed since the last time. A missing or
/// damaged image is not current.
///
/// # Errors
/// As [`Store::resolve`], and that the agent cannot be read.
pub fn is_current(store: &Store, spec: &StubdomSpec) -> Result<bool> {
    let Ok(manifest) = Manifest::read(&spec.output) else { return Ok(false) };
    let mut packages = spec.resolve(store)?;
    packages.extend(spec.compiled(store, &mut |_| {})?.into_iter().filter_map(|one| one.layer.package));
    Ok(describes(&manifest, spec, &packages)? && outputs_are_whole(&manifest, &spec.output))
}

/// Whether a manifest is that of the image that a specification and packages give.
fn describes(manifest: &Manifest, spec: &StubdomSpec, packages: &[Package]) -> Result<bool> {
    let known = |name: &str, sha256: &str| packages.iter().any(|p| p.name == name && p.sha256 == sha256);
    Ok(manifest.recipe == spec.recipe()
        && manifest.debian == Some(spec.debian)
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
    let pvh = starts_as_pvh(&bytes);
    output.write(Manifest::KERNEL, &bytes)?;
    drop(bytes);
    let (files, totals) = contents.list(root)?;
    progress(Step::Packing { bytes: totals.bytes });
    let path = output.path(Manifest::INITRAMFS);
    let file = File::create(&path).map_err(ImageError::io("create", &path))?;
    contents.archive.write(BufWriter::new(file), spec.compression, &path.display().to_string())?;
    let manifest = Manifest {
        format: FORMAT,
        recipe: spec.recipe(),
        debian: Some(spec.debian),
        kernel: manifest::Kernel {
            package: image.package.as_ref().map_or_else(String::new, |package| package.name.clone()),
            version: image.package.as_ref().map_or_else(String::new, |package| package.version.clone()),
            release: kernel.release().to_owned(),
            format: spec.kernel_format.name().to_owned(),
            pvh,
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
        memory_kib: spec.memory().get(),
        packages: contents.sources(&files),
        modules: contents.modules.clone(),
        files,
    };
    output.write(Manifest::FILE, &manifest.to_json())?;
    output.write(Manifest::SBOM, &sbom::cyclone_dx(&manifest))?;
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
