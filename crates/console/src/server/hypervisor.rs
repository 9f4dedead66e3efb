//! The log of Xen's own console.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tracing::warn;
use xen_types::EventPort;

use super::console::with_cause;
use super::writer::{Done, FilesToOpen, Job, Owner, Piece, Writer, Writers};
use super::{Server, Settings};
use crate::logfile::LogStyle;
use crate::platform::Platform;

/// The file, and how far Xen's console was read.
///
/// Bytes are read from Xen only when those before them are in the file: until then Xen keeps them, as many as it does.
#[derive(Debug)]
pub(crate) struct HypervisorLog {
    port: EventPort,
    writer: Rc<Writer>,
    /// Up to where Xen's console is in the file, if that is known.
    index: Option<u32>,
    /// Where that is noted for the next process.
    note: PathBuf,
    /// Bytes that were given to the file or left out of it.
    at: u64,
    /// The index behind the bytes that the file is about to get.
    writing: Option<u32>,
    /// Whether the file is still being opened, or is missing.
    is_closed: bool,
    is_reopening: bool,
}

impl HypervisorLog {
    pub(crate) fn open<P: Platform>(
        platform: &mut P,
        writers: &mut Writers,
        settings: &Settings,
        style: LogStyle,
    ) -> Result<Self, String> {
        let path = settings.log_dir.join("hypervisor.log");
        let writer = writers.writer(&[path.as_path()]).map_err(|error| with_cause(&error))?;
        let port = platform.watch_hypervisor_log().map_err(|error| with_cause(&error))?;
        let note = settings.socket_dir.join("hypervisor");
        let index = read_note(&note);
        let wanted = FilesToOpen::new(Some((path, style)), None, None);
        writer.send(Owner::Hypervisor, Job::Open(Box::new(wanted)));
        let (at, writing, is_closed, is_reopening) = (0, None, true, false);
        Ok(Self { port, writer, index, note, at, writing, is_closed, is_reopening })
    }

    /// Reads what Xen has said, unless the file is not ready for it.
    fn read<P: Platform>(&mut self, platform: &mut P) -> io::Result<()> {
        if self.is_closed || self.writing.is_some() {
            return Ok(());
        }
        let (bytes, next) = platform.hypervisor_log(self.index.unwrap_or(0))?;
        if bytes.is_empty() {
            self.index = Some(next);
            return Ok(());
        }
        // Xen has overwritten what is missing between.
        let passed = self.index.map_or(0, |index| u64::from(next.wrapping_sub(index)));
        let from = self.at + passed.saturating_sub(bytes.len() as u64);
        self.at = from + bytes.len() as u64;
        self.writing = Some(next);
        let (piece, note) = (Piece { from, bytes }, self.note.clone());
        self.writer.send(Owner::Hypervisor, Job::WriteXen { piece, note, index: next });
        Ok(())
    }

    fn answered(&mut self, what: Done) {
        let result = match what {
            Done::Opened(opened) => {
                self.is_closed = !opened.any;
                opened.errors.into_iter().next().map_or(Ok(()), Err)
            }
            Done::Written { result, .. } => {
                self.index = self.writing.take().or(self.index);
                result
            }
            Done::Reopened(result) => {
                self.is_reopening = false;
                result
            }
            Done::Found { .. } | Done::Finished(_) | Done::Closed => Ok(()),
        };
        if let Err(error) = result {
            warn!("{}", with_cause(&error));
        }
    }

    pub(crate) fn reopen(&mut self) {
        if !core::mem::replace(&mut self.is_reopening, true) {
            self.writer.send(Owner::Hypervisor, Job::Reopen);
        }
    }
}

fn read_note(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl<P: Platform> Server<P> {
    /// Reads Xen's console if this is its port. Returns whether it is.
    pub(crate) fn has_hypervisor_event(&mut self, port: EventPort) -> bool {
        if self.hypervisor.as_ref().is_none_or(|own| own.port != port) {
            return false;
        }
        // Before reading: what comes meanwhile makes another event.
        self.platform.unmask(port);
        self.read_hypervisor();
        true
    }

    /// Takes an answer about the file, and reads what has come meanwhile.
    pub(crate) fn hypervisor_answered(&mut self, what: Done) {
        if let Some(hypervisor) = &mut self.hypervisor {
            hypervisor.answered(what);
        }
        self.read_hypervisor();
    }

    fn read_hypervisor(&mut self) {
        if let Some(hypervisor) = &mut self.hypervisor
            && let Err(error) = hypervisor.read(&mut self.platform)
        {
            warn!("cannot read Xen's console: {error}");
        }
    }
}
