//! Running other programs.

use std::{
    io::{self, Read},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use crate::{ImageError, Result};

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command, program: &'static str) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ImageError::NoTool { program, source },
        _ => ImageError::Io { action: "run", path: program.into(), source },
    })
}

/// The most that is read of each output of a program that is not trusted.
const OUTPUT_MAX: u64 = 4 << 20;
/// How often a program that has closed its outputs is asked whether it has ended.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// Runs a program that is not trusted: no longer than so long, and of what it says only so much is read. Nothing comes
/// back where it did not end; it is killed then.
pub(crate) fn run_within(limit: Duration, command: &mut Command) -> io::Result<Option<Output>> {
    let deadline = Instant::now() + limit;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let output = outputs(&mut child, deadline, [&stdout, &stderr]);
    if !matches!(output, Ok(Some(_))) {
        // One that has ended cannot be killed.
        let _ = child.kill();
        child.wait()?;
    }
    output
}

/// Waits for the end of the outputs and then of the program.
fn outputs(
    child: &mut Child,
    deadline: Instant,
    [stdout, stderr]: [&Receiver<Vec<u8>>; 2],
) -> io::Result<Option<Output>> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(left()), stderr.recv_timeout(left())) else {
        return Ok(None);
    };
    while !left().is_zero() {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(Output { status, stdout, stderr }));
        }
        thread::sleep(ASK_EVERY);
    }
    Ok(None)
}

/// Reads an output to its end. Where it says more than is read, the program finds its output closed.
fn drain(output: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            // What broke off is as good as an end.
            let _ = output.take(OUTPUT_MAX).read_to_end(&mut bytes);
        }
        // Nobody may wait any more.
        let _ = sender.send(bytes);
    });
    receiver
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(limit: Duration, script: &str) -> Option<Output> {
        run_within(limit, Command::new("/bin/sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn test_program_that_ends_in_time_is_heard() {
        let output = shell(Duration::from_secs(60), "echo out; echo err >&2; exit 3").unwrap();
        assert_eq!(
            (output.status.code(), &*output.stdout, &*output.stderr),
            (Some(3), &b"out\n"[..], &b"err\n"[..])
        );
    }

    #[test]
    fn test_program_that_does_not_end_is_killed() {
        for script in ["exec tail -f /dev/null", "exec >&- 2>&-; kill -STOP $$"] {
            assert!(shell(Duration::from_millis(100), script).is_none(), "{script}");
        }
    }

    #[test]
    fn test_program_that_says_too_much_is_cut_short() {
        let output = shell(Duration::from_secs(60), "exec cat /dev/zero").unwrap();
        assert_eq!(output.stdout.len() as u64, OUTPUT_MAX);
        assert!(!output.status.success());
    }
}
