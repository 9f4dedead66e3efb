//! A reader that goes away ends the program without a word.
#![expect(clippy::unwrap_used, reason = "a test that cannot start the program has failed")]

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// The program with these arguments, whose output nobody reads from its first byte on; its exit status and complaints.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn no_reader_no_word() {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"name='a'\ntype='hvm'\nmemory=64\n").unwrap();
    let path = config.path().to_str().unwrap();
    assert_eq!(unread(&["config", "check", path]), (Some(141), String::new()));
    assert_eq!(unread(&["config", "check", "--json", path]), (Some(141), String::new()));
    assert_eq!(unread(&["config", "convert", path]), (Some(141), String::new()));
    assert_eq!(unread(&["create", "--dryrun", path]), (Some(141), String::new()));
    assert_eq!(unread(&["completion", "fish"]), (Some(0), String::new()));
}

#[test]
fn full_file_system_is_an_error_and_not_a_panic() {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"name='a'\ntype='hvm'\nmemory=64\n").unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["config", "convert", config.path().to_str().unwrap()])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Cannot write to standard output") && !said.contains("panicked"), "{said}");
}
