//! Commands with a deadline.

use std::fmt;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::seconds;

/// Xen's own toolstack, in the folder of Xen's programs, which is in dom0's search path like those of ours.
pub(crate) const XL: &str = "xl";

/// What a command did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) command: String,
    /// Its exit status; a signal's number plus 128.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` exited with {}", self.command, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n  {name}: {}", text.trim().replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}

impl Output {
    /// Fails unless the command exited with 0.
    pub(crate) fn good(self) -> Result<Self> {
        if self.status == 0 { Ok(self) } else { bail!("{self}") }
    }

    /// Fails unless the command exited with `status` and said all of `words` on standard error.
    pub(crate) fn refused(self, status: i32, words: &[&str]) -> Result<Self> {
        if self.status != status {
            bail!("expected exit status {status}: {self}");
        }
        for word in words {
            if !self.stderr.contains(word) {
                bail!("expected \"{word}\" in the message: {self}");
            }
        }
        Ok(self)
    }
}

/// Runs a command to its end, at most `deadline`; it is killed then.
pub(crate) fn run_within(deadline: Duration, program: &str, args: &[&str]) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt;

    let command = format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{command}`"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(deadline), stderr.recv_timeout(seconds(5))) else {
        kill(&mut child);
        bail!("`{command}` did not end within {deadline:?}");
    };
    // Both pipes are closed, so the process has ended or will at once.
    let status = child.wait()?;
    let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(Output { command, status, stdout, stderr })
}

/// Runs a command to its end within two minutes.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<Output> {
    run_within(seconds(120), program, args)
}

/// Runs `outrigger` to its end within two minutes.
pub(crate) fn outrigger(args: &[&str]) -> Result<Output> {
    run("outrigger", args)
}

/// A process that is ended with the value.
#[derive(Debug)]
pub(crate) struct Stopped(pub(crate) Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A broken pipe ends the text; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
