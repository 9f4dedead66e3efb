//! Joins the caller's terminal to dom0's shell.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::thread;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::HostError;
use crate::vm::Vm;

/// The rows, columns and kind of the caller's terminal, as dom0's init takes them.
pub(crate) fn terminal() -> String {
    let (rows, columns) =
        terminal_size::terminal_size_of(io::stdin()).map_or((24, 80), |(width, height)| (height.0, width.0));
    let kind = std::env::var("TERM").unwrap_or_default();
    // It becomes a word of a line.
    let word = !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c));
    format!("{rows} {columns} {}", if word { &kind } else { "linux" })
}

/// The caller's terminal in raw mode; dropping it restores its mode.
pub(crate) struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    /// Sets raw mode, if standard input is a terminal, and starts to pass its bytes to the shell.
    pub(crate) fn join(vm: &Vm<'_>) -> Result<Self, HostError> {
        let stdin = io::stdin();
        // Not a terminal (a pipe, a file): there is no mode to set.
        let before = tcgetattr(stdin.as_fd()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(|errno| HostError::File {
                action: "set raw mode of",
                path: "standard input".into(),
                source: errno.into(),
            })?;
        }
        if let Some(mut stream) = vm.stream("shell") {
            // Ends with the process: a read of standard input cannot be called off.
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
                // The end of a piped input ends the shell.
                let _ = stream.write_all(b"\x04");
            });
        }
        Ok(Self { before })
    }
}

/// Shows what the shell wrote.
pub(crate) fn show(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    // A terminal that went away ends the run through its input.
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing more can be done about a terminal that went away.
            let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
        }
    }
}
