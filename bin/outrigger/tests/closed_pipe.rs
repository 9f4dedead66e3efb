//! A reader that goes away ends the program without a word.
#![expect(clippy::unwrap_used, reason = "a test that cannot start the program has failed")]

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// The program with these arguments, whose output nobody reads; its exit status and what it complains of.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    (child.wait().unwrap().code(), complaint)
}

#[test]
fn no_reader_no_word() {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"name='a'\ntype='hvm'\nmemory=64\n").unwrap();
    let path = config.path().to_str().unwrap();
    assert_eq!(unread(&["config", "check", path]), (Some(141), String::new()));
    assert_eq!(unread(&["completion", "fish"]), (Some(0), String::new()));
}
