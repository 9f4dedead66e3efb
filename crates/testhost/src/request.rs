//! The request for a run, and its report.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::hash::{add_content, hex};
use crate::machine::Machine;
use crate::{HostError, Stopper, TimeScale};

/// A built host: a folder with `xen`, `vmlinuz` and `initramfs.img`.
#[derive(Debug, Clone)]
pub struct Host {
    /// The folder. Snapshots are kept in it too.
    pub folder: PathBuf,
}

/// A file or folder to bring into dom0 before the job starts.
#[derive(Debug, Clone)]
pub struct Put {
    /// What to copy.
    pub source: PathBuf,
    /// Its absolute path in dom0.
    pub target: PathBuf,
}

/// What to do once dom0 and its daemons are up.
#[derive(Debug, Clone)]
pub enum Job {
    /// Run this file as root; its `#!` line says what reads it (`/bin/sh` is busybox's).
    Script(PathBuf),
    /// Join the caller's terminal to a shell.
    Shell,
}

/// Something that is done in dom0 once, before the job: its outcome is kept as a snapshot, from which later runs start.
#[derive(Debug, Clone)]
pub struct Preparation {
    name: &'static str,
    script: String,
    puts: Vec<Put>,
    timeout: Duration,
    key: String,
}

impl Preparation {
    /// Brings `puts` into dom0 and runs `script` there, for at most `timeout` before scaling. `name` is a word of ASCII
    /// letters for messages and for the snapshot's folder.
    ///
    /// # Errors
    /// [`HostError::File`] when something that is to be brought in cannot be read, [`HostError::Setting`] for a name
    /// that is no such word.
    pub fn new(
        name: &'static str,
        script: &str,
        puts: Vec<Put>,
        timeout: Duration,
    ) -> Result<Self, HostError> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            let reason = "a word of ASCII letters is expected";
            return Err(HostError::Setting { name: "preparation", value: name.to_owned(), reason });
        }
        let mut hash = Sha256::new();
        for part in [name, script] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        for put in &puts {
            hash.update(put.target.as_os_str().as_encoded_bytes());
            hash.update([0]);
            add_content(&mut hash, &put.source)?;
        }
        let key = hex(&hash.finalize());
        Ok(Self { name, script: script.to_owned(), puts, timeout, key })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A hash of all that goes into it.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn script(&self) -> &str {
        &self.script
    }

    pub(crate) fn puts(&self) -> &[Put] {
        &self.puts
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// A run to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// The machine's size.
    pub machine: Machine,
    /// What is done before the job, one after the other; all of it kept as snapshots.
    pub preparations: Vec<Preparation>,
    /// What to do.
    pub job: Job,
    /// What to bring in for the job alone.
    pub puts: Vec<Put>,
    /// How long the job may take, before scaling; none for as long as it lives.
    pub timeout: Option<Duration>,
    /// Boots from scratch and neither uses nor makes a snapshot.
    pub fresh: bool,
    /// The folder for logs; made if missing.
    pub logs: PathBuf,
    /// The factor of every deadline.
    pub scale: TimeScale,
}

/// How the host came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From scratch.
    Booted,
    /// From a snapshot.
    Restored,
}

/// A run that was made.
#[derive(Debug, Clone)]
pub struct Report {
    /// The job's exit status.
    pub status: i32,
    /// How the host came up.
    pub origin: Origin,
    /// From the request until dom0 was ready for the job.
    pub startup: Duration,
    /// How long the job took.
    pub job: Duration,
    /// The folder of logs: `console.log` (Xen's and dom0's), `output.log`, `qemu.log`, `dom0/` (logs of dom0).
    pub logs: PathBuf,
}

/// Hears about a run while it goes on. Each method does nothing unless it is written.
pub trait Observer {
    /// The run has come to this point.
    fn progress(&mut self, _what: &str) {}
    /// The same, of what does not come up in every run.
    fn news(&mut self, what: &str) {
        self.progress(what);
    }
    /// The emulated machine is this process.
    fn machine(&mut self, _pid: u32) {}
    /// What ends the run from another thread, as long as this machine runs.
    fn stopper(&mut self, _stopper: Stopper) {}
    /// dom0 is up and prepared, and gets its job when this returns.
    fn up(&mut self) {}
    /// The script wrote these bytes.
    fn output(&mut self, _bytes: &[u8]) {}
    /// Xen or dom0's kernel wrote these bytes.
    fn console(&mut self, _bytes: &[u8]) {}
    /// The job ended with this status; the machine ends when this returns.
    fn ended(&mut self, _status: i32) {}
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn key(name: &'static str, script: &str, source: &Path) -> String {
        let put = Put { source: source.to_owned(), target: "/root/x".into() };
        Preparation::new(name, script, vec![put], Duration::from_secs(1)).unwrap().key
    }

    #[test]
    fn every_part_of_a_preparation_makes_another_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let before = key("tools", "true", folder.path());
        assert_eq!(key("tools", "true", folder.path()), before);
        assert_ne!(key("linux", "true", folder.path()), before);
        assert_ne!(key("tools", "false", folder.path()), before);
        fs::write(&file, "two").unwrap();
        let changed = key("tools", "true", folder.path());
        assert_ne!(changed, before);
        fs::rename(&file, folder.path().join("b")).unwrap();
        assert_ne!(key("tools", "true", folder.path()), changed);
    }

    #[test]
    fn preparation_without_a_usable_name_is_refused() {
        for name in ["", "a b", "../x"] {
            assert!(Preparation::new(name, "", Vec::new(), Duration::ZERO).is_err(), "{name:?}");
        }
    }
}
