//! Console 0: the agent's own lines and QEMU's output, never waited for while QEMU runs.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use stubdom_abi::{StubConsole, harmless};

use super::consoles::set_raw;
use crate::error::chain;

/// How many bytes wait for dom0 at most. Beyond it, QEMU's output is left in its pipe and the agent's own lines
/// are dropped and counted.
const PENDING_MAX: usize = 32 * 1024;

/// Time since the kernel's start; zero when the kernel does not report it.
pub(crate) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The log on console 0.
#[derive(Debug, Default)]
pub(crate) struct Log {
    console: Option<File>,
    text: Text,
}

impl Log {
    /// Opens console 0 in raw mode; what was written before goes out first. Without the console, nothing does.
    pub(crate) fn open_console(&mut self) {
        if self.console.is_some() {
            return;
        }
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let console =
            OpenOptions::new().write(true).custom_flags(flags.bits()).open(StubConsole::Log.device());
        if let Ok(console) = console {
            // A console that is not raw would echo what dom0 sends; the log is readable nevertheless.
            let _ = set_raw(&console);
            self.console = Some(console);
        }
        self.pump();
    }

    /// Writes one line.
    pub(crate) fn line(&mut self, line: &str) {
        self.text.line(uptime(), line);
        self.pump();
    }

    /// Writes an error and its causes on one line.
    pub(crate) fn error(&mut self, error: &dyn core::error::Error) {
        self.line(&chain(error));
    }

    /// Passes on what QEMU wrote.
    pub(crate) fn qemu(&mut self, output: &[u8]) {
        self.text.foreign(output);
        self.pump();
    }

    /// The last whole line that QEMU wrote, made harmless.
    pub(crate) fn last_qemu_line(&self) -> String {
        harmless(&self.text.last_line)
    }

    /// Whether QEMU's output may be read: there is room for it.
    pub(crate) fn has_room(&self) -> bool {
        self.text.pending.len() < PENDING_MAX
    }

    /// Whether bytes wait for the console.
    pub(crate) fn is_pending(&self) -> bool {
        self.console.is_some() && !self.text.pending.is_empty()
    }

    /// Writes what the console takes now.
    pub(crate) fn pump(&mut self) {
        let Some(console) = &mut self.console else { return };
        while !self.text.pending.is_empty() {
            let (front, _) = self.text.pending.as_slices();
            match console.write(front) {
                Ok(count @ 1..) => drop(self.text.pending.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Full (an event comes when it is not), or gone.
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Writes all that waits, for at most `limit`.
    pub(crate) fn flush(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            self.pump();
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.is_pending() || left.is_zero() {
                return;
            }
            let Some(console) = &self.console else { return };
            let timeout =
                PollTimeout::try_from(left.min(Duration::from_secs(10))).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(console.as_fd(), PollFlags::POLLOUT)], timeout);
        }
    }

    /// The console, to be polled.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.console.as_ref().map(AsFd::as_fd)
    }
}

/// The bytes that wait, without I/O.
#[derive(Debug, Default)]
struct Text {
    pending: VecDeque<u8>,
    /// How many lines were dropped since the last one that was not.
    dropped: u32,
    line: Vec<u8>,
    last_line: Vec<u8>,
    /// Whether the last byte that waits or was written ends a line.
    in_line: bool,
}

impl Text {
    fn line(&mut self, time: Duration, line: &str) {
        if self.pending.len() >= PENDING_MAX {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        if self.in_line {
            self.end_line();
        }
        let dropped = core::mem::take(&mut self.dropped);
        if dropped > 0 {
            self.put(time, &format!("({dropped} lines dropped here: dom0 did not read them)"));
        }
        self.put(time, line);
    }

    fn put(&mut self, time: Duration, line: &str) {
        let stamp = format!("outrigger-agent: {}.{:03} ", time.as_secs(), time.subsec_millis());
        self.pending.extend(stamp.bytes().chain(line.bytes()));
        self.end_line();
    }

    fn end_line(&mut self) {
        // The console is raw, and the kernel ends its lines in the same way.
        self.pending.extend(*b"\r\n");
        self.in_line = false;
    }

    fn foreign(&mut self, output: &[u8]) {
        for &byte in output {
            match byte {
                b'\n' => {
                    self.end_line();
                    if !self.line.is_empty() {
                        self.last_line = core::mem::take(&mut self.line);
                    }
                }
                b'\r' => {}
                _ => {
                    self.pending.push_back(byte);
                    self.in_line = true;
                    if self.line.len() < stubdom_abi::MAX_STUB_VALUE {
                        self.line.push(byte);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &Text) -> String {
        String::from_utf8(text.pending.iter().copied().collect()).unwrap()
    }

    #[test]
    fn the_agents_lines_never_continue_one_of_qemu() {
        let mut log = Text::default();
        log.foreign(b"half");
        log.line(Duration::from_millis(1234), "ready");
        log.foreign(b"whole\n");
        log.line(Duration::from_secs(2), "done");
        assert_eq!(
            text(&log),
            "half\r\noutrigger-agent: 1.234 ready\r\nwhole\r\noutrigger-agent: 2.000 done\r\n"
        );
    }

    #[test]
    fn the_last_whole_line_is_kept_for_the_report() {
        let mut log = Text::default();
        log.foreign(b"first\r\nqemu: bad option\n\nrest");
        assert_eq!(log.last_line, b"qemu: bad option");
    }

    #[test]
    fn lines_that_do_not_fit_are_counted() {
        let mut log = Text::default();
        log.foreign(&vec![b'x'; PENDING_MAX]);
        log.line(Duration::ZERO, "lost");
        log.line(Duration::ZERO, "lost");
        log.pending.clear();
        log.line(Duration::ZERO, "seen");
        let text = text(&log);
        assert!(
            text.contains("2 lines dropped") && text.contains("seen") && !text.contains("lost\r\n"),
            "{text}"
        );
    }
}
