//! `outrigger config` as a program uses it.
#![expect(clippy::unwrap_used, reason = "a test that cannot start the program has failed")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Runs `outrigger config` with these arguments and this standard input.
fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("config")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The one document that `config check --json` prints of a configuration, with an image's directory.
fn check_with(image: &Path, text: &str) -> Value {
    let output = run(&["check", "--json", "--image", image.to_str().unwrap(), "-"], text);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), document["usable"] == true, "{document}");
    document
}

/// The same with the lines of the smallest guest before it, and without an image.
fn check(lines: &str) -> Value {
    check_with(Path::new("/nonexistent"), &format!("type='hvm'\nname='g'\nmemory=64\n{lines}\n"))
}

/// Kind, severity, line and column of the only file's diagnostics.
fn said(document: &Value) -> Vec<(&str, &str, u64, u64)> {
    let diagnostics = document["files"][0]["diagnostics"].as_array().unwrap();
    diagnostics
        .iter()
        .map(|d| {
            let (id, severity) = (d["id"].as_str().unwrap(), d["severity"].as_str().unwrap());
            (id, severity, d["line"].as_u64().unwrap_or(0), d["column"].as_u64().unwrap_or(0))
        })
        .collect()
}

#[test]
fn json_is_one_document_with_every_diagnostic() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good.cfg", "type='hvm'\nname='g'\nmemory=64\nvnc=1\n");
    let bad = file("bad.cfg", "type='hvm'\nname='g'\nmemmory=64\nmaxmem=1\nmemory=2\n");
    let absent = folder.path().join("absent.cfg").to_str().unwrap().to_owned();
    let output = run(&["check", "--json", &good, &bad, &absent], "");
    assert_eq!(output.status.code(), Some(3));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["usable"], false);
    let files = document["files"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    assert_eq!((&files[0]["file"], &files[0]["usable"]), (&json!(good), &json!(true)));
    assert_eq!(files[0]["config"]["name"], "g");
    assert_eq!(files[0]["diagnostics"][0]["id"], "config::no-effect");
    assert_eq!(files[1]["config"], Value::Null);
    assert_eq!(
        files[1]["diagnostics"][0],
        json!({
            "id": "config::unknown-key",
            "severity": "error",
            "message": "`memmory` is not a key",
            "file": bad,
            "line": 3,
            "column": 1,
            "help": ["did you mean `memory`?"],
            "related": [],
        })
    );
    assert_eq!(
        files[1]["diagnostics"][1]["related"],
        json!([{ "message": "more than this", "line": 5, "column": 8 }])
    );
    assert_eq!(files[2]["diagnostics"][0]["id"], "config::unreadable");
    assert_eq!(files[2]["diagnostics"][0]["line"], Value::Null);
}

#[test]
fn disks_that_are_not_emulated_are_said_with_the_reason() {
    let document = check("disk = [\n'/a,,hda',\n'/b,,hdb1',\n'/c,,xvda',\n'/d,,xvde',\n'/e,,sdh',\n]");
    assert_eq!(
        said(&document),
        [
            ("config::not-emulated", "warning", 6, 1),
            ("config::not-emulated", "warning", 7, 1),
            ("config::not-emulated", "note", 8, 1),
            ("config::not-emulated", "warning", 9, 1),
        ]
    );
    let message = |at: usize| document["files"][0]["diagnostics"][at]["message"].as_str().unwrap();
    assert!(message(0).contains("hdb1 is not emulated: it is a partition"));
    assert!(message(1).contains("another disk has its place"));
}

#[test]
fn guest_of_partitions_alone_has_nothing_to_boot() {
    let document = check("disk = [ '/a,,xvda1', '/b,,xvda2' ]");
    let ids: Vec<&str> = said(&document).iter().map(|(id, ..)| *id).collect();
    assert!(ids.contains(&"config::nothing-to-boot"), "{ids:?}");
}

#[test]
fn one_file_by_two_names_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (image, link) = (folder.path().join("a.img"), folder.path().join("b.img"));
    fs::write(&image, [0; 512]).unwrap();
    symlink(&image, &link).unwrap();
    let disks = |access: &str| {
        let (image, link) = (image.display(), link.display());
        check(&format!("disk = [ '{image},,xvda,{access}',\n'{link},,xvdb,r' ]"))
    };
    assert_eq!(said(&disks("w")).first(), Some(&("config::conflict", "error", 5, 1)));
    assert_eq!(disks("r")["usable"], true);
}

#[test]
fn model_that_the_images_qemu_lacks_is_an_error_at_its_nic() {
    let image = tempfile::tempdir().unwrap();
    let abilities = json!({
        "machines": ["xenfv", "xenfv-3.1", "xenfv-4.2", "pc"],
        "devices": ["rtl8139", "cirrus-vga", "VGA", "ide-hd", "ide-cd", "xen-platform"],
        "formats": ["host_device", "raw"],
    });
    let manifest = json!({
        "format": image::manifest::FORMAT, "recipe": "r",
        "kernel": { "package": "k", "version": "1", "release": "6.1", "format": "elf" },
        "qemu": { "package": "q", "version": "7.2", "path": "/q", "sandbox": true, "spice": false,
                  "abilities": abilities },
        "agent": { "version": "0.1.0", "sha256": "00" },
        "compression": "none", "memory_kib": 65536, "outputs": [], "totals": { "files": 1, "bytes": 5 },
        "packages": [], "modules": [], "files": [],
    });
    fs::write(image.path().join("manifest.json"), manifest.to_string()).unwrap();
    let with_model = |model: &str| {
        let text = format!("type='hvm'\nname='g'\nmemory=64\nvif=[ '',\n'model={model}' ]\n");
        check_with(image.path(), &text)
    };
    assert_eq!(with_model("rtl8139")["usable"], true, "{}", with_model("rtl8139"));
    let document = with_model("vmxnet3");
    assert_eq!(said(&document), [("config::device-model", "error", 5, 1)]);
    // Nothing is known of another image.
    let other = "type='hvm'\nname='g'\nmemory=64\nvif=[ 'model=vmxnet3' ]\nstubdomain_ramdisk='/x'\n";
    assert_eq!(check_with(image.path(), other)["usable"], true);
}

#[test]
fn converted_file_means_the_same_and_is_quiet() {
    let old = "builder='hvm'\nname='g'\nmemory=64; vcpus = 2\nlocaltime = 0\nparallel='none'\nvnc=1\non_crash='coredump-restart'\n\
               disk = ['phy:/dev/vg/a,hda,w']\ntimer_mode = 2\naltp2mhvm = 1\n";
    let output = run(&["convert", "-"], old);
    assert!(output.status.success());
    let new = String::from_utf8(output.stdout).unwrap();
    let effective = |text: &str| check_with(Path::new("/nonexistent"), text)["files"][0]["config"].clone();
    assert_eq!(effective(&new), effective(old), "{new}");
    assert_eq!(said(&check_with(Path::new("/nonexistent"), &new)), []);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.cfg");
    assert!(run(&["convert", "--output", path.to_str().unwrap(), "-"], old).status.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), new);

    fs::write(&path, "kept").unwrap();
    let refused = run(&["convert", "--output", path.to_str().unwrap(), "-"], old);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--force"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    assert!(run(&["convert", "--force", "--output", path.to_str().unwrap(), "-"], old).status.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), new);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(run(&["convert", "-"], "memmory = 1\n").status.code(), Some(3));
}

#[test]
fn standard_input_has_no_directory_for_relative_paths() {
    let text = "type='hvm'\nname='g'\nmemory=64\nsmbios_firmware='x.bin'\n";
    for words in [&["config", "check", "-"][..], &["config", "convert", "-"], &["create", "--dryrun", "-"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("config::relative-path") && said.contains("<stdin>:4:17"), "{said}");
    }
}
