//! The least memory that dom0 has left while something goes on.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);

/// Looks again and again until it is asked.
#[derive(Debug)]
pub(crate) struct Lowest {
    end: Sender<()>,
    thread: JoinHandle<Result<u64>>,
}

impl Lowest {
    /// Begins.
    pub(crate) fn begin() -> Self {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut lowest = available()?;
            while ended.recv_timeout(AGAIN) == Err(RecvTimeoutError::Timeout) {
                lowest = lowest.min(available()?);
            }
            Ok(lowest)
        });
        Self { end, thread }
    }

    /// Ends, and returns the least memory, in KiB.
    pub(crate) fn end(self) -> Result<u64> {
        drop(self.end);
        self.thread.join().ok().context("the thread panicked")?
    }
}

/// The memory that programs in dom0 can still have, in KiB.
fn available() -> Result<u64> {
    parse(&fs::read_to_string("/proc/meminfo")?).context("/proc/meminfo has no MemAvailable")
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:  900 kB\nMemFree:  100 kB\nMemAvailable:  700 kB\n";
        assert_eq!(super::parse(text), Some(700));
        assert_eq!(super::parse("MemTotal: 1 kB\n"), None);
    }
}
