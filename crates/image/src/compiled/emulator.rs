//! The QEMU that emulates the embedded host: Debian's, with its faults in the emulation of AMD's SVM removed.
//!
//! Firmware and option ROMs are those of Debian's packages, which the machine has installed.

use crate::{
    Result,
    files::sha256_bytes,
    packages::{Package, Store},
    sources::SourcePackage,
};

use super::{
    CompileStep, EMULATOR, Steps,
    debian_qemu::{self, SOURCE, write},
};

/// A fault of the emulator, removed: the name and the text of a patch that says what it does.
type Patch = (&'static str, &'static str);

macro_rules! patches {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../emulator/", $path)))),*]
    };
}

/// The patches of each release of QEMU that is known, by the beginning of its version. Those for 10.0 were compiled and
/// not run.
const RELEASES: [(&str, &[Patch]); 2] = [
    (
        "7.2",
        &patches![
            "7.2/0001-ignne.patch",
            "7.2/0002-cr8-lock.patch",
            "7.2/0003-vmrun-lock.patch",
            "7.2/0004-vmrun-once.patch",
            "7.2/0005-rdtscp.patch",
            "7.2/0006-return-rights.patch",
            "7.2/0007-xsave-ts.patch",
        ],
    ),
    (
        "10.0",
        &patches![
            "10.0/0001-ignne.patch",
            "10.0/0002-cr8-lock.patch",
            "10.0/0003-vmrun-lock.patch",
            "10.0/0004-vmrun-once.patch",
            "10.0/0005-rdtscp.patch",
            "10.0/0006-cr-reads.patch",
            "10.0/0007-xsave-ts.patch",
        ],
    ),
];
/// To be raised when the code of this file makes other programs of the same choices.
const RECIPE: u32 = 1;

/// Tools, and the libraries that it is linked with.
pub(super) const NEEDS: [&str; 14] = [
    "binutils",
    "dpkg-dev",
    "gcc",
    "libattr1-dev",
    "libc6-dev",
    "libcap-ng-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "meson",
    "ninja-build",
    "patch",
    "pkg-config",
    "python3",
    "zlib1g-dev",
];

/// Everything off but the emulation of a processor and the sharing of folders; all devices.
const CONFIGURE: [&str; 20] = [
    // Nothing is looked for beside the program.
    "--prefix=/emulator",
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tcg",
    // The folder that is shared with dom0.
    "--enable-virtfs",
    "--enable-attr",
    "--enable-cap-ng",
    "--enable-coroutine-pool",
    "--enable-pie",
    "--disable-kvm",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-docs",
    "--disable-install-blobs",
    "--disable-debug-info",
    "--disable-qom-cast-debug",
    "--disable-werror",
    "--audio-drv-list=",
];

pub(super) fn recipe() -> String {
    sha256_bytes(format!("{RECIPE} {SOURCE} {CONFIGURE:?}\n{RELEASES:?}").as_bytes())
}

/// Compiles it.
pub(super) fn compile(
    store: &Store,
    source: &SourcePackage,
    steps: &mut Steps,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<Package> {
    let Some(patches) = patches(&source.version) else {
        return Err(steps.failed("changing", format!("QEMU {} is not known", source.version)));
    };
    let sources = debian_qemu::unpack(store, source, steps, progress)?;
    let changes = sources.join("change.patch");
    for (name, text) in patches {
        write(&changes, text.as_bytes())?;
        let mut patch = steps.command("patch", &sources);
        // The log names the patch before the words of the program.
        steps.note(name);
        steps.run(
            "changing",
            patch.args(["-p1", "--batch", "--forward", "--fuzz=0", "--input"]).arg(&changes),
        )?;
    }
    let qemu = debian_qemu::build(source, steps, &CONFIGURE, "qemu-system-x86_64", progress)?;
    steps.put_program(EMULATOR, &qemu)?;
    debian_qemu::keep_facts(source, steps)
}

/// The patches for a version of Debian's source package.
fn patches(version: &str) -> Option<&'static [Patch]> {
    let is_of =
        |release: &str| version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['.', '+']));
    RELEASES.iter().find(|(release, _)| is_of(release)).map(|(_, patches)| *patches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_patches_are_those_of_the_release() {
        assert!(patches("7.2+dfsg-7+deb12u18").is_some());
        assert!(patches("7.2.22+dfsg-7").is_some());
        assert_eq!(patches("10.0.13+ds-0+deb13u1").unwrap()[0].0, "10.0/0001-ignne.patch");
        assert!(patches("7.20+dfsg-7").is_none() && patches("17.2+dfsg-1").is_none());
    }

    #[test]
    fn test_patches_have_messages() {
        for (name, text) in RELEASES.iter().flat_map(|(_, patches)| *patches) {
            let (head, rest) = text.split_once("\n---\n").unwrap();
            assert!(head.contains("\nSubject: [PATCH] target/i386: "), "{name}");
            assert!(head.split_once("\n\n").unwrap().1.len() > 300, "{name} says too little");
            assert!(rest.contains("\ndiff --git a/target/i386/"), "{name}");
        }
    }
}
