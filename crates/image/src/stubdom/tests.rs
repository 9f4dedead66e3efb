use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use super::*;
use crate::{
    root::Layer,
    testing::{Elf, module},
};

/// What QEMU answers to all questions.
const ANSWER: &str = "xenfv-3.1 Xen\nname \"e1000\", bus PCI\nname \"qxl\"\nSupported formats: raw\n";

/// Packages that have all that an image needs, very small.
struct Fixture {
    dir: tempfile::TempDir,
    root: Root,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["qemu-system-xen", "libc6", "linux-image-6.1.0-9-amd64", "data"]
            .map(|name| Layer { package: Some(package(name)), folder: dir.path().join("trees").join(name) });
        let this = Self { dir, root: Root::new(layers.to_vec()) };
        let elf = Elf::new(&["libc.so.6"]).interpreter("/lib64/ld-linux-x86-64.so.2");
        this.put("qemu-system-xen", QEMU, &elf.bytes());
        this.put(
            "qemu-system-xen",
            "/usr/share/doc/qemu-system-xen/copyright",
            b"/usr/share/common-licenses/GPL-2.",
        );
        this.put("libc6", "/lib/x86_64-linux-gnu/libc.so.6", &Elf::new(&[]).bytes());
        // The loader runs QEMU when the image is built; this one answers in its place.
        this.put("libc6", "/lib64/ld-linux-x86-64.so.2", &Elf::new(&[]).says(ANSWER).bytes());
        let loader = this.dir.path().join("trees/libc6/lib64/ld-linux-x86-64.so.2");
        fs::set_permissions(loader, fs::Permissions::from_mode(0o755)).unwrap();
        let kernel = "linux-image-6.1.0-9-amd64";
        this.put(kernel, "/boot/vmlinuz-6.1.0-9-amd64", b"a kernel");
        for name in
            ["xen-privcmd", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-blkfront", "xen-netfront"]
        {
            this.put(kernel, &format!("/lib/modules/6.1.0-9-amd64/kernel/{name}.ko"), &module(""));
        }
        for (name, depends) in [("tun", ""), ("bridge", "stp"), ("stp", ""), ("xenfs", "xen-privcmd")] {
            this.put(kernel, &format!("/lib/modules/6.1.0-9-amd64/kernel/{name}.ko"), &module(depends));
        }
        for path in contents::DATA_FILES.into_iter().chain([contents::SPICE_DATA]) {
            let path = if path.ends_with('/') { format!("{path}en-us") } else { path.to_owned() };
            this.put("data", &path, path.as_bytes());
        }
        fs::write(this.agent(), Elf::new(&[]).bytes()).unwrap();
        this
    }

    fn put(&self, package: &str, path: &str, bytes: &[u8]) {
        let file = self.dir.path().join("trees").join(package).join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }

    fn remove(&self, package: &str, path: &str) {
        fs::remove_file(self.dir.path().join("trees").join(package).join(path.trim_start_matches('/')))
            .unwrap();
    }

    fn agent(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn spec(&self, output: &str) -> StubdomSpec {
        let spec = StubdomSpec::debian(Debian::Bookworm, self.dir.path().join(output), self.agent(), "0.1.0");
        StubdomSpec { kernel_format: KernelFormat::BzImage, ..spec }
    }

    fn build(&self, output: &str) -> Result<Manifest> {
        build_from(&self.root, &self.spec(output), &mut |_| {})
    }

    fn outputs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn package(name: &str) -> Package {
    Package {
        name: name.to_owned(),
        version: "1.2-3".to_owned(),
        architecture: "amd64".to_owned(),
        section: "libs".to_owned(),
        size: 1,
        sha256: "ab".repeat(32),
    }
}

#[test]
fn test_build_twice_gives_the_same_bytes() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.build("one").unwrap(), fixture.build("two").unwrap());
    assert_eq!(one, two);
    for name in [Manifest::KERNEL, Manifest::INITRAMFS, Manifest::FILE] {
        let read = |folder: &str| fs::read(fixture.dir.path().join(folder).join(name)).unwrap();
        assert!(read("one") == read("two"), "{name} differs");
    }
    assert_eq!(Manifest::read(&fixture.dir.path().join("one")).unwrap(), one);
}

#[test]
fn test_build_manifest_says_what_is_in() {
    let fixture = Fixture::new();
    let manifest = fixture.build("image").unwrap();
    assert_eq!(manifest.kernel.package, "linux-image-6.1.0-9-amd64");
    assert_eq!(manifest.kernel.release, "6.1.0-9-amd64");
    assert_eq!(manifest.debian, Some(Debian::Bookworm));
    assert!(!manifest.qemu.sandbox);
    let abilities = manifest.qemu.abilities.as_ref().unwrap();
    assert!(
        abilities.has_machine("xenfv-3.1") && abilities.has_device("e1000") && abilities.has_format("raw")
    );
    // Its library has a stand-in.
    assert!(!abilities.has_device("qxl"));
    assert_eq!(manifest.modules[..2], ["/lib/modules/xen-privcmd.ko", "/lib/modules/xen-evtchn.ko"]);
    assert_eq!(
        manifest.modules[7..],
        ["/lib/modules/stp.ko", "/lib/modules/bridge.ko", "/lib/modules/xenfs.ko"]
    );
    let file = |path: &str| manifest.files.iter().find(|file| file.path == path).unwrap();
    assert_eq!((file(QEMU).package.as_str(), file(QEMU).licence.as_str()), ("qemu-system-xen", "GPL-2"));
    assert_eq!(file("/init").package, "outrigger");
    assert_eq!(file("/init").sha256, manifest.agent.sha256);
    assert_eq!(file("/etc/qemu-ifup").link.as_deref(), Some("/init"));
    assert!(manifest.files.iter().any(|file| file.path == stubdom_abi::ImageConfig::PATH));
    let sum: u64 = manifest.packages.iter().map(|package| package.bytes).sum();
    assert_eq!(sum, manifest.totals.bytes);
    assert_eq!(manifest.outputs[0].size, 8);
}

#[test]
fn test_compiled_qemu_that_lacks_a_device_is_refused() {
    let fixture = Fixture::new();
    let spec = StubdomSpec { qemu: Origin::Minimal, ..fixture.spec("image") };
    let error = build_from(&fixture.root, &spec, &mut |_| {}).unwrap_err();
    let ImageError::QemuLacks { devices } = error else { panic!("{error:?}") };
    assert!(devices.contains("usb-tablet") && !devices.contains("e1000"), "{devices}");
    assert!(!spec.output.exists());
}

#[test]
fn test_build_sandbox_is_seen_by_its_library() {
    let fixture = Fixture::new();
    fixture.put("qemu-system-xen", QEMU, &Elf::new(&["libseccomp.so.2"]).bytes());
    fixture.put("libc6", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2", &Elf::new(&[]).bytes());
    assert!(fixture.build("image").unwrap().qemu.sandbox);
}

#[test]
fn test_build_with_spice_has_the_real_library() {
    let fixture = Fixture::new();
    let spice = "/usr/lib/x86_64-linux-gnu/libspice-server.so.1";
    fixture.put("qemu-system-xen", QEMU, &Elf::new(&["libspice-server.so.1"]).bytes());
    fixture.put("data", spice, &Elf::new(&["libssl.so.3"]).bytes());
    fixture.put("data", "/usr/lib/x86_64-linux-gnu/libssl.so.3", &Elf::new(&[]).bytes());
    let spec = StubdomSpec { spice: true, ..fixture.spec("image") };
    let manifest = build_from(&fixture.root, &spec, &mut |_| {}).unwrap();
    let paths: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert!(manifest.qemu.spice);
    for path in [spice, "/usr/lib/x86_64-linux-gnu/libssl.so.3", contents::SPICE_DATA] {
        assert!(paths.contains(&path), "{path}");
    }
}

#[test]
fn test_build_failure_leaves_the_earlier_image() {
    let fixture = Fixture::new();
    let first = fixture.build("image").unwrap();
    let before = fixture.outputs();
    let kernel = "linux-image-6.1.0-9-amd64";
    // Each removal makes the build fail later than the one before.
    for (package, path) in [
        ("data", "/usr/share/qemu/kvmvapic.bin"),
        ("libc6", "/lib/x86_64-linux-gnu/libc.so.6"),
        (kernel, "/boot/vmlinuz-6.1.0-9-amd64"),
    ] {
        let fixture = Fixture::new();
        fixture.build("image").unwrap();
        fixture.remove(package, path);
        fixture.build("image").unwrap_err();
        assert_eq!(fixture.outputs(), before, "{path}");
        assert_eq!(Manifest::read(&fixture.dir.path().join("image")).unwrap(), first, "{path}");
    }
}

#[test]
fn test_build_dynamic_agent_is_refused() {
    let fixture = Fixture::new();
    fs::write(fixture.agent(), Elf::new(&["libc.so.6"]).interpreter("/lib64/ld.so").bytes()).unwrap();
    assert!(matches!(fixture.build("image"), Err(ImageError::AgentNotStatic { .. })));
}

#[test]
fn test_describes_sees_every_change() {
    let fixture = Fixture::new();
    let manifest = fixture.build("image").unwrap();
    let packages: Vec<Package> = fixture.root.packages().cloned().collect();
    let spec = fixture.spec("image");
    assert!(describes(&manifest, &spec, &packages).unwrap());
    assert!(outputs_are_whole(&manifest, &spec.output));

    let mut newer = packages.clone();
    newer[1].sha256 = "cd".repeat(32);
    assert!(!describes(&manifest, &spec, &newer).unwrap());
    for other in [
        StubdomSpec { debian: Debian::Trixie, ..spec.clone() },
        StubdomSpec { kernel_format: KernelFormat::Elf, ..spec.clone() },
        StubdomSpec { compression: Compression::Gzip, ..spec.clone() },
        StubdomSpec { agent_version: "0.2.0".to_owned(), ..spec.clone() },
        StubdomSpec { spice: true, ..spec.clone() },
    ] {
        assert!(!describes(&manifest, &other, &packages).unwrap(), "{other:?}");
    }
    fs::write(fixture.agent(), Elf::new(&["other"]).bytes()).unwrap();
    assert!(!describes(&manifest, &spec, &packages).unwrap());
    fs::write(spec.output.join(Manifest::INITRAMFS), "cut").unwrap();
    assert!(!outputs_are_whole(&manifest, &spec.output));
}
