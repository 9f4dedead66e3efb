//! Files like those that people and programs publish, one for each kind of mistake or of foreign key: whether a guest
//! is made of it, and everything that is said.

use std::fs;
use std::path::{Path, PathBuf};

use config::{Action, DiskSource, Loaded};

/// A file, and for each diagnostic its place and id, and a part of its message and help.
type Case = (&'static str, &'static [(&'static str, &'static str)]);

/// Files of which a guest is made.
const ACCEPTED: &[Case] = &[
    ("F01-parallel-none", &[]),
    ("F02-device-model-override", &[("4:1: warning[config::no-effect]", "the stubdomain has its own")]),
    ("F03-qdisk-raw-file", &[("4:52: warning[config::no-effect]", "the kernel's blkback serves the disk")]),
    ("F04-qdisk-raw-cd", &[("4:52: warning[config::no-effect]", "the kernel's blkback serves the disk")]),
    (
        "F05-vncconsole",
        &[
            ("4:1: warning[config::no-effect]", "`vnc` has no effect"),
            ("5:1: warning[config::no-effect]", "a key of the old `xm`"),
        ],
    ),
    (
        "F07-on-xend-stop",
        &[
            ("4:1: warning[config::no-effect]", "a key of the old `xm`"),
            ("5:1: warning[config::no-effect]", "a key of the old `xm`"),
        ],
    ),
    (
        "F09-xen-tools",
        &[
            ("4:1: warning[config::no-effect]", "xen-tools keeps it"),
            ("5:1: warning[config::no-effect]", "xen-tools keeps it"),
        ],
    ),
    ("F10-vkb", &[("4:1: warning[config::no-effect]", "the emulated keyboard")]),
    ("F11-vfb-vnc", &[("4:1: warning[config::no-effect]", "offers no VNC yet")]),
    ("F13-coredump", &[("4:12: warning[config::no-effect]", "writes no core dump: the guest is restarted")]),
    ("F14-stubdom-0", &[("4:36: warning[config::no-effect]", "the line can be removed")]),
    ("F18-blank-before-comma", &[]),
    ("F19-blob-relative", &[("5:22: warning[config::relative-path]", "`/srv/guests/OVMF.fd` is used")]),
    ("S07-qcow2-as-raw", &[("4:16: warning[config::container-as-raw]", "qemu-img convert")]),
    ("S09-pod", &[("4:10: warning[config::populate-on-demand]", "once it uses more than 512 MiB")]),
    ("S10-dm-arg-with-blank", &[("4:27: warning[config::one-argument]", "`\"-device\", \"nec-usb-xhci\"`")]),
    ("S13-firmware-is-ovmf", &[("4:12: warning[config::not-hvmloader]", "`bios = \"ovmf\"`")]),
];

/// Files that are refused.
const REFUSED: &[Case] = &[
    (
        "F16-newer-keys",
        &[
            ("5:1: warning[config::no-effect]", "came with Xen 4.21"),
            ("6:12: error[config::bad-smbios]", "`product` is no SMBIOS string"),
        ],
    ),
    ("M01-python", &[("4:1: error[config::python]", "keep the lines `key = value`")]),
    (
        "M04-true-none",
        &[("4:8: error[config::syntax]", "write `1`"), ("5:8: error[config::syntax]", "remove the line")],
    ),
    (
        "M06-memory-unit",
        &[
            ("3:10: error[config::syntax]", "`memory = 2048`"),
            ("4:10: error[config::not-a-number]", "`maxmem = 4096`"),
        ],
    ),
    ("M09-iso-as-format", &[("4:22: error[config::bad-disk]", "`/srv/a.iso,raw,hdc,cdrom`")]),
    ("M10-hyphen-in-key", &[("4:1: error[config::syntax]", "`device_model` has no effect either")]),
    ("M11-colon", &[("4:6: error[config::syntax]", "write `vcpus = 2`")]),
    ("M13-tsc-3", &[("4:12: error[config::refused]", "write `tsc_mode = \"native\"`")]),
    ("M14-traditional", &[("4:24: error[config::refused]", "write `qemu-xen` or remove the line")]),
    ("M15-vif-positional", &[("4:10: error[config::bad-vif]", "did you mean `bridge=xenbr0`?")]),
    ("M17-type-case", &[("1:8: error[config::unknown-value]", "did you mean `hvm`?")]),
    ("M18-builder-linux", &[("1:11: error[config::not-hvm]", "use xl for PV")]),
    ("M19-vga-std", &[("4:7: error[config::unknown-value]", "did you mean `stdvga`?")]),
    ("S04-nested-without-hap", &[("4:13: error[config::conflict]", "remove `hap = 0`")]),
    ("S05-vmtrace-size", &[("4:18: error[config::out-of-range]", "for example 1024")]),
    ("S11-rbd", &[("4:11: error[config::refused]", "map it to a block device")]),
    ("S12-viridian-without-base", &[("4:12: error[config::conflict]", "add `\"base\"`")]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realworld")
}

/// Reads a file as if it were in a directory that every machine has the same name for.
fn load(name: &str) -> Loaded {
    let text =
        fs::read_to_string(folder().join(format!("{name}.cfg"))).expect("the file of the list is there");
    config::load_str(&format!("/srv/guests/{name}.cfg"), &text)
}

fn check(&(name, expected): &Case, accepted: bool) {
    let loaded = load(name);
    let said: Vec<String> = loaded
        .diagnostics
        .iter()
        .map(|d| format!("{} | {}", d.one_line(&loaded.source), d.help.join(" | ")))
        .collect();
    assert_eq!(loaded.config.is_some(), accepted, "{name}: {said:#?}");
    assert_eq!(said.len(), expected.len(), "{name}: {said:#?}");
    for (said, (place, words)) in said.iter().zip(expected) {
        let place = format!("/srv/guests/{name}.cfg:{place}");
        assert!(said.starts_with(&place) && said.contains(words), "{said}\nis not {place} … {words}");
    }
}

#[test]
fn what_does_not_matter_is_a_warning_at_most() {
    for case in ACCEPTED {
        check(case, true);
    }
}

#[test]
fn what_is_wrong_is_said_once_and_with_what_to_write() {
    for case in REFUSED {
        check(case, false);
    }
}

#[test]
fn every_file_is_in_one_of_the_lists() {
    let mut files: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut listed: Vec<&str> = ACCEPTED.iter().chain(REFUSED).map(|(name, _)| *name).collect();
    files.sort();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

#[test]
fn what_is_accepted_means_what_was_written() {
    let guest = |name| load(name).config.unwrap();
    assert_eq!(guest("F03-qdisk-raw-file").disks[0].source, DiskSource::Path("/srv/a.img".to_owned()));
    assert!(guest("F04-qdisk-raw-cd").disks[0].is_cdrom());
    assert_eq!(guest("F13-coredump").lifecycle.on_crash, Action::Restart);
    assert_eq!(guest("F19-blob-relative").firmware.bios_path.as_deref(), Some("/srv/guests/OVMF.fd"));
    let nic = &guest("F18-blank-before-comma").nics[0];
    assert_eq!(nic.mac.unwrap().to_string(), "00:16:3e:00:00:01");
    assert_eq!(nic.bridge.as_deref(), Some("xenbr0"));
}

/// The rest of each kind, of which the files have one example.
#[test]
fn neighbours_of_the_files_are_judged_alike() {
    for (line, expected) in [
        // Dead keys and values that change nothing.
        ("parallel = '/dev/parport0'", "warning[config::no-effect]"),
        ("cpu = 2", "warning[config::no-effect]"),
        ("arch = 'x86_64'", "warning[config::no-effect]"),
        ("guest_os_type = 'default'", "warning[config::no-effect]"),
        ("frobnicate = 1", "warning[config::unknown-key]"),
        ("on_crash = 'coredump-destroy'", "warning[config::no-effect]"),
        ("disk = [ '/srv/a.img , raw , xvda , w ' ]", ""),
        ("disk = [ 'format=empty,vdev=hdc,backendtype=qdisk,devtype=cdrom' ]", ""),
        ("usbctrl = [ 'type=qusb,version=2,ports=8' ]", "warning[config::no-effect]"),
        ("viridian = [ 'base', 'stimer' ]", ""),
        ("viridian = 1", ""),
        ("vmtrace_buf_kb = 64", ""),
        // What was asked for cannot be had.
        ("on_soft_reset = 'soft-reset'", "error[config::refused]"),
        ("usbctrl = [ 'type=devicemodel,version=3' ]", "error[config::refused]"),
        ("firmware_override = 'boot/hvmloader'", "error[config::relative-path]"),
        ("usbdev = [ 'hostbus=1,hostaddr=2' ]", "error[config::refused]"),
        ("disk = [ 'backendtype=standalone,vdev=xvda,target=/a' ]", "error[config::refused]"),
        ("disk = [ 'format=qcow2,backendtype=qdisk,vdev=xvda,target=/a' ]", "error[config::refused]"),
        ("disk = [ 'vdev=xvda,target=nbd://host:10809/x' ]", "error[config::refused]"),
        ("disk = [ '/a,raw,xvda,w', '/a,raw,xvdb,w' ]", "error[config::conflict]"),
        ("viridian = [ 'defaults', '!base' ]", "error[config::conflict]"),
        ("videoram = 32", "error[config::out-of-range]"),
        ("vga = 'stdvga'; videoram = 4", "error[config::out-of-range]"),
        ("max_grant_frames = 0", "error[config::out-of-range]"),
        ("max_grant_frames = 256", "warning[config::above-limit]"),
        // Mistakes, each of them one.
        ("memmory = 4", "error[config::unknown-key]"),
        ("pcii = [ '00:1f.0' ]", "error[config::unknown-key]"),
        ("vnclistn = '0.0.0.0'", "warning[config::unknown-key]"),
        ("max-mem = 4", "error[config::syntax]"),
        ("acpi = true", "error[config::syntax]"),
        ("keymap = en-us", "error[config::syntax]"),
        ("vcpus = two", "error[config::syntax]"),
        ("vcpus = -1", "error[config::syntax]"),
        ("cpus = 0-3", "error[config::syntax]"),
        ("vcpus = int(2)", "error[config::syntax]"),
        ("memory_ = 2GB", "error[config::syntax]"),
        ("Vcpus = 2", "error[config::syntax]"),
        ("boot = \"c\" % d", "error[config::unexpected-character]"),
        ("vif = [ '00:16:3e:00:00:01' ]", "error[config::bad-vif]"),
    ] {
        let text = format!("type='hvm'\nname='t'\nmemory=512\n{line}\n");
        let loaded = config::load_str("t.cfg", &text);
        let said: Vec<String> = loaded.diagnostics.iter().map(|d| d.one_line(&loaded.source)).collect();
        assert_eq!(said.len(), usize::from(!expected.is_empty()), "{line}: {said:#?}");
        assert!(said.iter().all(|said| said.contains(expected)), "{line}: {said:#?}");
    }
}

#[test]
fn help_recommends_nothing_that_is_refused() {
    for (line, never) in [
        ("vga = 'qx'", "`qxl`"),
        ("vga = 'stt'", "`qxl`"),
        ("disk = [ '/a,rav,xvda,w' ]", "`qcow2`"),
        ("disk = [ '/a,raw,xvda,w,backendtype=ph' ]", "`qdisk`"),
        ("tsc_mode = 'native_'", "native_paravirt"),
        ("smbioss = 1", "`bios`"),
        ("virtioo = 1", "did you mean"),
        ("pcii = 1", "did you mean"),
        ("memory = -1", "\"-1\""),
        ("memory = many", "\"many\""),
        ("acpi = Maybe", "\"Maybe\""),
    ] {
        let loaded = config::load_str("t.cfg", &format!("type='hvm'\nname='t'\nmemory=512\n{line}\n"));
        let help: Vec<&String> = loaded.diagnostics.iter().flat_map(|d| &d.help).collect();
        assert!(loaded.config.is_none() && !help.is_empty(), "{line}");
        assert!(help.iter().all(|help| !help.contains(never)), "{line}: {help:?}");
    }
}
