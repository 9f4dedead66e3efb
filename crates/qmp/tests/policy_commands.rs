//! The classification of QEMU's commands against what QEMUs have.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use qmp::policy::Class;
use serde_json::Value;

/// What `query-commands` of Debian 12's QEMU returns on x86, and the commands of a later schema on all machines.
const LISTS: [(&str, &str); 2] =
    [("7.2", include_str!("commands/qemu-7.2")), ("9.1", include_str!("commands/qemu-9.1"))];
const QEMU: &str = "qemu-system-x86_64";

#[test]
fn every_command_of_known_releases_is_classified() {
    for (release, list) in LISTS {
        let unknown: Vec<_> = list.lines().filter(|name| Class::of(name).is_none()).collect();
        assert!(list.lines().count() > 200 && unknown.is_empty(), "QEMU {release}: {unknown:?}");
    }
}

/// Those of the QEMU that is installed here. A new one may have more.
#[test]
fn every_command_of_the_installed_qemu_is_classified() {
    let child = Command::new(QEMU)
        .args(["-machine", "none", "-display", "none", "-nodefaults", "-S", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("there is no {QEMU} here");
        return;
    };
    let requests = ["qmp_capabilities", "query-commands", "quit"];
    let text: String = requests.iter().map(|name| format!("{{\"execute\": \"{name}\"}}\n")).collect();
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("QEMU reads");
    let output = child.wait_with_output().expect("QEMU ends").stdout;
    let answers = String::from_utf8(output).expect("QMP is UTF-8");
    let commands: BTreeSet<String> = answers
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|answer| answer["return"].as_array().cloned())
        .flatten()
        .filter_map(|command| Some(command["name"].as_str()?.to_owned()))
        .collect();
    assert!(commands.len() > 100, "{answers}");
    let unknown: Vec<_> = commands.iter().filter(|name| Class::of(name).is_none()).collect();
    assert!(unknown.is_empty(), "{unknown:?}: classify them in src/policy/commands.rs");
}
