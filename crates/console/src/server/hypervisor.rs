//! The log of Xen's own console.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;
use xen_types::EventPort;

use super::console::with_cause;
use super::{Server, Settings};
use crate::logfile::{LogFile, LogStyle};
use crate::platform::Platform;

/// Pieces of Xen's console that are read in one go: all that it keeps, a few times over.
const PIECES_MAX: usize = 256;

/// The file, and how far Xen's console was read.
#[derive(Debug)]
pub(crate) struct HypervisorLog {
    pub(crate) port: EventPort,
    index: u32,
    /// Holds `index` for the next process.
    note: PathBuf,
    log: LogFile,
    broken: bool,
}

impl HypervisorLog {
    pub(crate) fn open<P: Platform>(
        platform: &mut P,
        settings: &Settings,
        style: LogStyle,
    ) -> Result<Self, String> {
        let path = settings.log_dir.join("hypervisor.log");
        let log = LogFile::open(path, style).map_err(|error| with_cause(&error))?;
        let port = platform.watch_hypervisor_log().map_err(|error| with_cause(&error))?;
        let note = settings.socket_dir.join("hypervisor");
        let index = read_note(&note).unwrap_or(0);
        let mut own = Self { port, index, note, log, broken: false };
        // What Xen said before made no event.
        own.read(platform).map_err(|error| with_cause(&error))?;
        Ok(own)
    }

    fn read<P: Platform>(&mut self, platform: &mut P) -> io::Result<()> {
        for _ in 0..PIECES_MAX {
            let (bytes, next) = platform.hypervisor_log(self.index)?;
            self.index = next;
            if bytes.is_empty() {
                break;
            }
            let done = self.log.append(&bytes);
            if let (Err(error), false) = (&done, self.broken) {
                warn!("{}", with_cause(error));
            }
            self.broken = done.is_err();
        }
        // Without it, the next process begins with what Xen still keeps.
        let _ = fs::write(&self.note, self.index.to_string());
        Ok(())
    }

    pub(crate) fn reopen(&mut self) {
        if let Err(error) = self.log.reopen() {
            warn!("{}", with_cause(&error));
        }
    }
}

fn read_note(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl<P: Platform> Server<P> {
    /// Reads Xen's console if this port says so.
    pub(crate) fn hear_hypervisor(&mut self, port: EventPort) -> bool {
        let Some(hypervisor) = self.hypervisor.as_mut().filter(|own| own.port == port) else { return false };
        // Before reading: what comes meanwhile makes another event.
        self.platform.unmask(port);
        if let Err(error) = hypervisor.read(&mut self.platform) {
            warn!("cannot read Xen's console: {error}");
        }
        true
    }
}
