//! Running other programs.

use std::{
    io,
    process::{Command, Output, Stdio},
};

use crate::{ImageError, Result};

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command, program: &'static str) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ImageError::NoTool { program, source },
        _ => ImageError::Io { action: "run", path: program.into(), source },
    })
}

/// What a program said on its error output, in one short line.
pub(crate) fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = text.lines().filter(|line| !line.starts_with("W:")).map(str::trim).collect();
    let mut line = errors.join("; ");
    if line.is_empty() {
        line = format!("it ended with {}", output.status);
    }
    if line.len() > 2000 {
        line = line.chars().take(2000).chain("…".chars()).collect();
    }
    line
}

/// Whether a program's words say that the file system is full.
pub(crate) fn tells_of_full_disk(text: &str) -> bool {
    text.contains("No space left on device") || text.contains("enough free space")
}
