//! Shows a run of the embedded host to a person.

use std::io::Write as _;
use std::time::Instant;

use testhost::Observer;

/// Progress to standard error, the script's output to standard output.
#[derive(Debug)]
pub(crate) struct View {
    started: Instant,
    quiet: bool,
    console: bool,
    hidden: bool,
}

impl View {
    /// A view that shows progress unless `quiet`, and Xen's console if `console`.
    pub(crate) fn new(quiet: bool, console: bool) -> Self {
        Self { started: Instant::now(), quiet, console, hidden: false }
    }

    /// Sends the script's output to standard error, because standard output is for a machine.
    pub(crate) fn hide_output(&mut self) {
        self.hidden = true;
    }
}

impl Observer for View {
    fn progress(&mut self, what: &str) {
        if !self.quiet {
            eprintln!("[{:6.1}] {what}", self.started.elapsed().as_secs_f64());
        }
    }

    fn output(&mut self, bytes: &[u8]) {
        if self.hidden {
            let _ = std::io::stderr().lock().write_all(bytes);
            return;
        }
        let mut stdout = std::io::stdout().lock();
        // A reader that went away does not end the run: its exit status still counts.
        let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
    }

    fn console(&mut self, bytes: &[u8]) {
        if self.console {
            let _ = std::io::stderr().lock().write_all(bytes);
        }
    }
}
