//! Consoles of guests and stubdomains, read through the console daemon's sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::attach::{SOCKET_DIR, connect};
use xen_types::DomId;

use super::guest::Made;
use super::seconds;

/// The stubdomain's console that is the guest's first serial port.
const FIRST_SERIAL: u32 = 3;

/// A console that is being read.
#[derive(Debug)]
pub(crate) struct Console {
    stream: UnixStream,
    /// Everything since the attachment, the daemon's replay first.
    pub(crate) seen: String,
    /// How much of `seen` earlier waits have passed.
    passed: usize,
    what: String,
}

impl Console {
    /// Attaches to serial port `port` of a guest.
    pub(crate) fn serial(guest: &Made, port: u32) -> Result<Self> {
        Self::attach(guest.stub()?, FIRST_SERIAL + port)
    }

    /// Attaches to a console by number.
    pub(crate) fn attach(domid: DomId, number: u32) -> Result<Self> {
        let stream = connect(Path::new(SOCKET_DIR), domid, number)?;
        let what = format!("console {number} of domain {domid}");
        Ok(Self { stream, seen: String::new(), passed: 0, what })
    }

    /// Waits until the console says `text` after what was waited for before. With 0 seconds, looks at what is there.
    pub(crate) fn wait_for(&mut self, text: &str, within: u64) -> Result<()> {
        let deadline = Instant::now() + seconds(within);
        // What is there already is read also when no time is left.
        let mut is_drained = false;
        loop {
            let new = self.seen.get(self.passed..).unwrap_or("");
            if let Some(at) = new.find(text) {
                self.passed += at + text.len();
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && (is_drained || deadline.elapsed() > seconds(30)) {
                bail!("{} did not say \"{text}\" within {within} s; it said: {}", self.what, self.tail());
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("{} ended before it said \"{text}\"; it said: {}", self.what, self.tail()),
                Ok(count) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => is_drained = true,
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.what)),
            }
        }
    }

    /// The rest of the line behind what was waited for last, and its end is passed.
    pub(crate) fn line(&mut self, within: u64) -> Result<String> {
        let start = self.passed;
        self.wait_for("\n", within)?;
        Ok(self.seen.get(start..self.passed).unwrap_or_default().trim_end().to_owned())
    }

    /// Types `text`.
    pub(crate) fn type_text(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", self.what))
    }

    /// Types `text` and waits until it comes back.
    pub(crate) fn echo(&mut self, text: &str) -> Result<()> {
        self.type_text(text)?;
        self.wait_for(text, 30)
    }

    fn tail(&self) -> String {
        let start = self.seen.len().saturating_sub(1500);
        let start = (start..self.seen.len()).find(|&at| self.seen.is_char_boundary(at)).unwrap_or(0);
        format!("{:?}", &self.seen[start..])
    }
}
