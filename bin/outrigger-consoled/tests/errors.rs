//! What a person sees when the daemon cannot run. None of this needs Xen.

use std::path::Path;
use std::process::{Command, Output};

use console::lock::Lock;

fn consoled(folder: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger-consoled"))
        .arg("--log-dir")
        .arg(folder.join("log"))
        .arg("--run-dir")
        .arg(folder.join("run"))
        .arg("--own-log")
        .arg(folder.join("own.log"))
        .args(more)
        .output()
        .expect("the program can be started")
}

#[track_caller]
fn check(output: &Output, code: i32, said: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(said), "expected {said:?} in: {stderr}");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
}

#[test]
fn a_second_daemon_is_told_who_is_first() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("run")).expect("a folder");
    let _first = Lock::take(&folder.path().join("run/consoled.lock")).expect("the lock");
    let said = format!("Another outrigger-consoled runs as process {}", std::process::id());
    check(&consoled(folder.path(), &["--foreground"]), 1, &said);
    // In the background too: who started it hears why it ended.
    check(&consoled(folder.path(), &[]), 1, &said);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("run"), b"").expect("a file in the way");
    check(&consoled(folder.path(), &["-i"]), 1, "Cannot make the folder");
}

#[test]
fn wrong_options_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    check(&consoled(folder.path(), &["--log-limit=12"]), 2, "a log must have at least 4096 bytes");
    check(&consoled(folder.path(), &["--no-such-option"]), 2, "unexpected argument");
}
