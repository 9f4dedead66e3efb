//! Files that guests are saved to: real ones without a name, since libxenguest's stand-in reads and writes descriptors.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::SimHost;
use super::disks::missing;
use crate::dom0::HostError;

impl SimHost {
    /// Leaves room for so many bytes.
    pub fn put_room(&self, bytes: u64) {
        self.lock().room = Some(bytes);
    }

    pub(super) fn create_stream(&self, path: &Path) -> Result<File, HostError> {
        let mut state = self.call("create_file")?;
        if state.files.contains_key(path) {
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(HostError::File { operation: "make", path: path.to_owned(), source });
        }
        let unnamed = unnamed(path)?;
        let ours = unnamed.try_clone().map_err(failed("make", path))?;
        state.put(path, &[]);
        self.streams().insert(path.to_owned(), ours);
        Ok(unnamed)
    }

    pub(super) fn open_stream_at(&self, path: &Path) -> Result<File, HostError> {
        let state = self.call("open_stream")?;
        let content = state.files.get(path).ok_or_else(|| missing(path))?;
        let mut unnamed = unnamed(path)?;
        unnamed
            .write_all(content)
            .and_then(|()| unnamed.seek(SeekFrom::Start(0)).map(drop))
            .map_err(failed("open", path))?;
        Ok(unnamed)
    }

    pub(super) fn put_stream_in_place(&self, from: &Path, to: &Path) -> Result<(), HostError> {
        let mut state = self.call("put_in_place")?;
        if state.files.remove(from).is_none() {
            return Err(missing(from));
        }
        let mut content = Vec::new();
        if let Some(stream) = self.streams().remove(from) {
            // With a position of its own.
            File::open(format!("/proc/self/fd/{}", stream.as_raw_fd()))
                .and_then(|mut file| file.read_to_end(&mut content))
                .map_err(failed("put in place", to))?;
        }
        state.put(to, &content);
        Ok(())
    }
}

fn unnamed(path: &Path) -> Result<File, HostError> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memory = memfd_create(c"stream", MFdFlags::MFD_CLOEXEC);
    Ok(File::from(memory.map_err(|errno| failed("make", path)(errno.into()))?))
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::File { operation, path: path.clone(), source }
}
