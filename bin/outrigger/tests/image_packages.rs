//! `outrigger image build` on a machine whose apt lacks what an image needs.
#![expect(clippy::unwrap_used, reason = "a test that cannot make its lists has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// A record of apt's lists.
const DPKG: &str = "\
Package: dpkg
Version: 1.21.22
Architecture: amd64
Maintainer: Nobody <nobody@example.org>
Filename: ./dpkg.deb
Size: 1
SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
Description: the one package here
";

/// Builds an image with a cache of its own, where apt's only source has these records; gives the exit status, what the
/// program complained of, and checks that it left neither an image nor a package.
fn build(records: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["source", "lists/partial", "cache"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    fs::write(path("source/Packages"), records).unwrap();
    fs::write(path("sources.list"), format!("deb [trusted=yes] file:{} ./\n", path("source").display()))
        .unwrap();
    let settings = [
        ("Dir::State::lists", path("lists")),
        ("Dir::Etc::sourcelist", path("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Cache::pkgcache", "".into()),
        ("Dir::Cache::srcpkgcache", "".into()),
        ("APT::Sandbox::User", "root".into()),
        ("Acquire::Languages", "none".into()),
        ("Debug::NoLocking", "true".into()),
    ];
    let settings = settings.map(|(name, value)| format!("{name} \"{}\";\n", value.display())).concat();
    fs::write(path("apt.conf"), settings).unwrap();
    let with_lists = |program: &str| {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", path("apt.conf")).env("OUTRIGGER_CACHE", path("cache"));
        command
    };
    let update = with_lists("apt-get").args(["update", "--quiet=2"]).output().unwrap();
    assert!(update.status.success(), "{}", String::from_utf8_lossy(&update.stderr));

    let output = with_lists(env!("CARGO_BIN_EXE_outrigger"))
        .args(["image", "build", "--kernel", "debian", "--qemu", "debian"])
        // Any static program serves: it does not come to looking into it.
        .args(["--agent", "/sbin/ldconfig", "--output"])
        .arg(path("image"))
        .output()
        .unwrap();
    assert!(!path("image").exists(), "there is an image");
    for name in ["debs", "trees", "resolved"] {
        assert!(is_empty(&path("cache").join(name)), "{name} of the cache is not empty");
    }
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn packages_that_apt_does_not_know_are_named() {
    let (status, complaint) = build(DPKG);
    assert_eq!(status, Some(1), "{complaint}");
    let line = complaint.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(line.starts_with("error: No package "), "{complaint}");
    assert!(line.contains("linux-image-amd64") && line.contains("apt-get update"), "{complaint}");
    assert!(!line.contains("Unable to locate"), "apt's words stand in the name: {complaint}");
}

#[test]
fn lists_that_are_empty_are_told_from_a_missing_package() {
    let (status, complaint) = build("");
    assert_eq!(status, Some(1), "{complaint}");
    assert!(complaint.contains("error: apt knows no packages: run `apt-get update`"), "{complaint}");
}
