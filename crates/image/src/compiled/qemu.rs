//! The stubdomain's QEMU.

use crate::{
    Result,
    closure::inspect_bytes,
    debian::{Recipe, Version},
    files::sha256_bytes,
    packages::{Package, Store},
    sources::SourcePackage,
    stubdom::QEMU,
};

use super::{
    CompileStep, Steps,
    debian_qemu::{self, SOURCE, read, write},
    versioned::lines_for,
};

/// The devices, on top of none, of all versions.
const DEVICES: &str = include_str!("../../qemu/stubdom.mak");
/// What reads of QEMU's sockets, in the place of a function of QEMU's that reads once.
const READ_ON: &str = include_str!("../../qemu/read-on.c");
/// To be raised when the code of this file makes other programs of the same choices.
const RECIPE: u32 = 3;

/// Tools, and the libraries that it is linked with.
pub(super) const NEEDS: [&str; 14] = [
    "binutils",
    "dpkg-dev",
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libseccomp-dev",
    "libxen-dev",
    "meson",
    "ninja-build",
    "pkg-config",
    "python3",
    "zlib1g-dev",
];

/// What else newer versions need.
const NEWER_NEEDS: [&str; 1] = ["python3-venv"];
/// From this version on, QEMU's build makes an environment of Python's, and what VNC needs has a switch of its own.
const NEWER: Version = (8, 1);

/// Everything off, then what a stubdomain needs.
const CONFIGURE: [&str; 22] = [
    "--prefix=/usr",
    // Xen's device model is this program whatever the guest's width.
    "--target-list=i386-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-i386=stubdom",
    "--enable-system",
    "--enable-xen",
    "--enable-xen-pci-passthrough",
    // -sandbox.
    "--enable-seccomp",
    "--enable-vnc",
    "--enable-pie",
    // Xen runs the guest's processors.
    "--disable-tcg",
    "--disable-kvm",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-docs",
    "--disable-install-blobs",
    "--disable-debug-info",
    "--disable-werror",
    // Disks are whole block devices of the stubdomain. No format is parsed and no other kind of place is opened.
    "--block-drv-rw-whitelist=raw,file,host_device,host_cdrom",
    "--block-drv-ro-whitelist=raw,file,host_device,host_cdrom",
    // Emulated sound cards have no output.
    "--audio-drv-list=",
];

/// More of it for newer versions.
const NEWER_CONFIGURE: [&str; 1] = ["--enable-pixman"];
/// Where dictionaries are declared; newer versions have the second.
const DICTIONARIES: [&str; 2] = ["include/qapi/qmp/qdict.h", "include/qobject/qdict.h"];

pub(super) fn recipe(recipe: &Recipe) -> String {
    let (options, devices) = (configure(recipe), devices(recipe));
    sha256_bytes(format!("{RECIPE} {SOURCE} {options:?}\n{devices}\n{READ_ON}").as_bytes())
}

/// The Debian packages that compiling needs.
pub(super) fn needs(recipe: &Recipe) -> Vec<&'static str> {
    with_newer(&NEEDS, &NEWER_NEEDS, recipe)
}

fn configure(recipe: &Recipe) -> Vec<&'static str> {
    with_newer(&CONFIGURE, &NEWER_CONFIGURE, recipe)
}

/// The devices that the version has.
fn devices(recipe: &Recipe) -> String {
    lines_for(DEVICES, recipe.qemu)
}

fn with_newer(all: &[&'static str], newer: &[&'static str], recipe: &Recipe) -> Vec<&'static str> {
    let newer = if recipe.qemu >= NEWER { newer } else { &[] };
    all.iter().chain(newer).copied().collect()
}

/// Compiles QEMU.
pub(super) fn compile(
    store: &Store,
    source: &SourcePackage,
    recipe: &Recipe,
    steps: &mut Steps,
    progress: &mut dyn FnMut(CompileStep<'_>),
) -> Result<Package> {
    let sources = debian_qemu::unpack(store, source, steps, progress)?;
    let place = sources.join("configs/devices/i386-softmmu/stubdom.mak");
    let devices = devices(recipe);
    write(&place, devices.as_bytes())?;
    let sockets = sources.join("chardev/char-socket.c");
    let text = read(&sockets)?;
    let text = reads_on(&String::from_utf8_lossy(&text))
        .ok_or_else(|| steps.failed("changing", "chardev/char-socket.c is not as it is known".to_owned()))?;
    write(&sockets, text.as_bytes())?;
    let declared = DICTIONARIES.iter().map(|path| sources.join(path)).find(|path| path.is_file());
    let dictionaries = declared
        .ok_or_else(|| steps.failed("changing", "qdict.h is at no place that is known".to_owned()))?;
    let text = read(&dictionaries)?;
    let text = small_dictionaries(&String::from_utf8_lossy(&text)).ok_or_else(|| {
        steps.failed("changing", format!("{} is not as it is known", dictionaries.display()))
    })?;
    write(&dictionaries, text.as_bytes())?;

    let qemu = debian_qemu::build(source, steps, &configure(recipe), "qemu-system-i386", progress)?;
    let chosen = steps.made("build/i386-softmmu-config-devices.mak")?;
    let missing = missing_devices(&devices, &String::from_utf8_lossy(&chosen));
    if !missing.is_empty() {
        let words = format!("these sources do not accept {}", missing.join(", "));
        return Err(steps.failed("checking", words));
    }
    // Also refuses what is for another processor.
    if !inspect_bytes("qemu-system-i386", &qemu)?
        .needed
        .iter()
        .any(|library| library.starts_with("libseccomp.so."))
    {
        return Err(steps.failed("checking", "it is not linked with libseccomp".to_owned()));
    }
    steps.put(QEMU, &qemu)?;
    debian_qemu::keep_facts(source, steps)
}

/// The devices that were asked for and that a finished configuration does not have.
fn missing_devices<'a>(devices: &'a str, chosen: &str) -> Vec<&'a str> {
    let wanted = devices.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted.filter(|line| !chosen.lines().any(|other| other == *line)).collect()
}

/// Gives QEMU's dictionaries, one for each JSON object, tables of 128 bytes rather than of 4 KiB: the answer to
/// `query-qmp-schema` has thousands, for which a stubdomain of 64 MiB has no room.
fn small_dictionaries(source: &str) -> Option<String> {
    let known = "#define QDICT_BUCKET_MAX 512\n";
    source.contains(known).then(|| source.replace(known, "#define QDICT_BUCKET_MAX 16\n"))
}

/// Has sockets read all that has come at once. Of a monitor's requests, QEMU otherwise takes one byte each time that its
/// event loop goes round, which is most of what a request costs.
fn reads_on(source: &str) -> Option<String> {
    let head = "static gboolean tcp_chr_read(QIOChannel *chan, GIOCondition cond, void *opaque)\n{";
    let (before, rest) = source.split_once(head)?;
    let (body, after) = rest.split_once("\n}\n")?;
    // What it calls has to be there before it.
    if !before.contains("static int tcp_chr_read_poll(void *opaque)\n{") {
        return None;
    }
    let once = head.replace("tcp_chr_read(", "tcp_chr_read_once(");
    Some(format!("{before}{once}{body}\n}}\n{READ_ON}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Debian, compiled::versioned::is_well_formed};

    #[test]
    fn test_function_that_reads_once_is_kept_under_another_name() {
        let poll = "static int tcp_chr_read_poll(void *opaque)\n{\n}\n";
        let read = "static gboolean tcp_chr_read(QIOChannel *chan, GIOCondition cond, void *opaque)\n{\n    read();\n}\n";
        let changed = reads_on(&format!("{poll}{read}after\n")).unwrap();
        let once = "static gboolean tcp_chr_read_once(QIOChannel *chan, GIOCondition cond, void *opaque)\n{\n    read();\n}\n";
        assert_eq!(changed, format!("{poll}{once}{READ_ON}after\n"));
        assert_eq!(reads_on(&format!("{read}{poll}")), None, "the one is not known to the other");
        assert_eq!(reads_on(poll), None);
    }

    #[test]
    fn test_dictionaries_are_made_small_where_they_are_known() {
        let known = "#define QDICT_BUCKET_MAX 512\nstruct QDict {\n";
        assert_eq!(small_dictionaries(known).unwrap(), "#define QDICT_BUCKET_MAX 16\nstruct QDict {\n");
        assert_eq!(small_dictionaries("#define QDICT_BUCKET_MAX 64\n"), None);
    }

    #[test]
    fn test_devices_of_each_version_are_names_with_reasons() {
        assert!(is_well_formed(DEVICES));
        for recipe in Debian::ALL.into_iter().filter_map(Debian::recipe) {
            for line in devices(&recipe).lines().filter(|line| !line.is_empty()) {
                let is_name = line.starts_with("CONFIG_") && line.ends_with("=y");
                assert!(line.starts_with("# ") || is_name, "{line}");
            }
        }
    }

    #[test]
    fn test_devices_that_were_not_taken_are_named() {
        let chosen = "CONFIG_A=y\nCONFIG_AB=y\nCONFIG_C=n\n";
        assert_eq!(missing_devices("# words\nCONFIG_A=y\n", chosen), [""; 0]);
        assert_eq!(
            missing_devices("CONFIG_B=y\nCONFIG_C=y\nCONFIG_AB=y", chosen),
            ["CONFIG_B=y", "CONFIG_C=y"]
        );
    }

    #[test]
    fn test_newer_versions_have_what_they_need() {
        let (old, new) = (Debian::Bookworm.recipe().unwrap(), Debian::Trixie.recipe().unwrap());
        assert!(configure(&new).contains(&"--enable-pixman") && needs(&new).contains(&"python3-venv"));
        assert!(configure(&old) == CONFIGURE && needs(&old) == NEEDS);
        // Brought by others in 7.2, and to be named in 10.0; without the first, a state of 7.2 does not load.
        for name in ["FDC_ISA", "USB_HID"] {
            let line = format!("CONFIG_{name}=y\n");
            assert!(devices(&new).contains(&line) && !devices(&old).contains(&line), "{name}");
        }
        // Debian's own QEMU has one: without, a state that was saved by it does not load.
        assert!([&old, &new].iter().all(|recipe| devices(recipe).contains("CONFIG_HPET=y\n")));
    }
}
