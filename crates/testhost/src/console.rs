//! Reads the Xen console line by line: keeps its end for error texts and recognises a crash.

use std::collections::VecDeque;

/// Console lines kept for the text of an error.
const TAIL_LINES: usize = 30;
/// What stands before each of them.
const INDENT: &str = "  | ";
/// A line longer than this is cut: the console is written by software under test.
const MAX_LINE: usize = 4096;

/// The state of one console stream.
#[derive(Debug, Default)]
pub(crate) struct ConsoleWatch {
    partial: Vec<u8>,
    tail: VecDeque<String>,
}

impl ConsoleWatch {
    /// Takes the next bytes; returns the line that says that Xen or dom0 crashed, if one does.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<String> {
        let mut crash = None;
        for &byte in bytes {
            if byte != b'\n' {
                if self.partial.len() < MAX_LINE {
                    self.partial.push(byte);
                }
                continue;
            }
            let line = self.take_line();
            if is_crash(&line) {
                crash.get_or_insert_with(|| line.clone());
            }
            if !line.is_empty() {
                if self.tail.len() == TAIL_LINES {
                    self.tail.pop_front();
                }
                self.tail.push_back(line);
            }
        }
        crash
    }

    /// Begins with the last lines that another machine kept: the boot of which this one is a copy.
    pub(crate) fn seed(&mut self, kept: &str) {
        let lines = kept.lines().map(|line| line.strip_prefix(INDENT).unwrap_or(line).to_owned());
        self.tail.extend(lines.chain(["(restored here)".to_owned()]));
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_LINES));
    }

    fn take_line(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.partial);
        let line = text.chars().filter(|c| !c.is_control()).collect::<String>().trim_end().to_owned();
        self.partial.clear();
        line
    }

    /// The last lines, one a line, indented for an error text.
    pub(crate) fn tail(&self) -> String {
        let mut lines: Vec<String> = self.tail.iter().map(|line| format!("{INDENT}{line}")).collect();
        let rest = String::from_utf8_lossy(&self.partial);
        if !rest.trim().is_empty() {
            lines.push(format!("{INDENT}{}", rest.trim_end()));
        }
        if lines.is_empty() { "  | (nothing was printed)".to_owned() } else { lines.join("\n") }
    }
}

/// Whether a line says that Xen or dom0's kernel is dead.
///
/// Xen puts `(dN)` before what a guest writes to its debug port; a guest's panic is no concern of the host's.
/// Xen's texts: `xen/common/keyhandler.c`, `xen/common/shutdown.c`, `xen/drivers/char/console.c` (`panic`).
fn is_crash(line: &str) -> bool {
    let by_guest = line.starts_with("(d") && !line.starts_with("(d0)");
    let by_xen = line.starts_with("(XEN)");
    !by_guest
        && (by_xen
            && ["Panic on CPU", "Manual reset required", "'noreboot' set", "Hardware Dom0 crashed"]
                .iter()
                .any(|mark| line.contains(mark))
            || !by_xen && line.contains("Kernel panic - not syncing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(console: &str, crash: Option<&str>) {
        let mut watch = ConsoleWatch::default();
        let mut found = None;
        for piece in console.as_bytes().chunks(3) {
            found = found.or(watch.push(piece));
        }
        assert_eq!(found.as_deref(), crash);
    }

    #[test]
    fn crash_of_xen_or_dom0_is_seen_across_pieces() {
        check("(XEN) [ 1.2] Panic on CPU 1:\r\nrest\n", Some("(XEN) [ 1.2] Panic on CPU 1:"));
        check("[ 3.1] Kernel panic - not syncing: x\r\n", Some("[ 3.1] Kernel panic - not syncing: x"));
    }

    #[test]
    fn crash_of_a_guest_is_not_the_hosts() {
        check("(d3) Kernel panic - not syncing: x\r\n(XEN) d3v0 Panic\r\n", None);
    }

    #[test]
    fn tail_keeps_only_the_last_lines() {
        let mut watch = ConsoleWatch::default();
        for number in 0..100 {
            watch.push(format!("line {number}\r\n").as_bytes());
        }
        assert!(watch.tail().starts_with("  | line 70\n"));
        assert!(watch.tail().ends_with("  | line 99"));
    }

    #[test]
    fn tail_of_a_restored_machine_begins_with_its_boots() {
        let mut booted = ConsoleWatch::default();
        booted.push(b"one\ntwo\nthr");
        let mut restored = ConsoleWatch::default();
        restored.seed(&booted.tail());
        restored.push(b"four\n");
        assert_eq!(restored.tail(), "  | one\n  | two\n  | thr\n  | (restored here)\n  | four");
    }

    #[test]
    fn line_without_end_is_bounded() {
        let mut watch = ConsoleWatch::default();
        watch.push(&[b'x'; 100_000]);
        assert!(watch.tail().len() < MAX_LINE + 10);
    }
}
