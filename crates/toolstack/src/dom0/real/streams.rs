//! Files and pipes that a guest is saved to and restored from.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{file, sync_folder};
use nix::sys::statvfs::statvfs;

use crate::dom0::HostError;

/// Opens without waiting for the other end of a pipe, and without becoming the owner of a terminal.
const AT_ONCE: i32 = OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits();

pub(super) fn create(path: &Path) -> Result<File, HostError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(file("make", path))
}

pub(super) fn modified(path: &Path) -> Result<Option<SystemTime>, HostError> {
    match fs::metadata(path) {
        Ok(about) if about.is_file() => about.modified().map(Some).map_err(file("look at", path)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("look at", path)(error)),
    }
}

pub(super) fn room_beside(path: &Path) -> Result<u64, HostError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let about = statvfs(folder).map_err(|errno| file("ask the file system of", folder)(errno.into()))?;
    Ok(about.blocks_available().saturating_mul(about.fragment_size()))
}

pub(super) fn open(path: &Path, patience: Duration) -> Result<File, HostError> {
    let opened =
        OpenOptions::new().read(true).custom_flags(AT_ONCE).open(path).map_err(file("open", path))?;
    let kind = opened.metadata().map_err(file("look at", path))?.file_type();
    if kind.is_fifo() {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut ends = [PollFd::new(opened.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut ends, timeout).map_err(|errno| file("wait for", path)(errno.into()))?;
        if ready == 0 {
            return Err(HostError::LonelyPipe { path: path.to_owned() });
        }
    } else if !kind.is_file() {
        return Err(HostError::NoStream { path: path.to_owned() });
    }
    set_blocking(&opened).map_err(file("set up", path))?;
    Ok(opened)
}

pub(super) fn open_pipe(path: &Path) -> Result<File, HostError> {
    let opened = match OpenOptions::new().write(true).custom_flags(AT_ONCE).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
            return Err(HostError::LonelyPipe { path: path.to_owned() });
        }
        other => other.map_err(file("open", path))?,
    };
    if !opened.metadata().map_err(file("look at", path))?.file_type().is_fifo() {
        return Err(HostError::NoStream { path: path.to_owned() });
    }
    set_blocking(&opened).map_err(file("set up", path))?;
    Ok(opened)
}

/// libxenguest reads and writes without asking whether it can.
fn set_blocking(handle: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(handle, FcntlArg::F_GETFL)?);
    fcntl(handle, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<(), HostError> {
    fs::rename(from, to).map_err(file("put in place", to))?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::stat::Mode;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn file_is_made_once_and_put_in_place_once() {
        let folder = tempfile::tempdir().unwrap();
        let (part, whole) = (folder.path().join("x.part"), folder.path().join("x"));
        create(&part).unwrap().write_all(b"saved").unwrap();
        assert!(create(&part).is_err(), "it is there");
        put_in_place(&part, &whole).unwrap();
        assert!(put_in_place(&part, &whole).is_err(), "what is there is not what was made");
        let mut text = String::new();
        open(&whole, SOON).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "saved");
        assert!(put_in_place(&part, &folder.path().join("y")).is_err());
    }

    #[test]
    fn pipe_without_another_end_is_not_waited_for_forever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(open_pipe(&path), Err(HostError::LonelyPipe { .. })));
        assert!(matches!(open(&path, SOON), Err(HostError::LonelyPipe { .. })));
        let mut both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        open_pipe(&path).unwrap().write_all(b"in").unwrap();
        let mut two = [0; 2];
        both.read_exact(&mut two).unwrap();
        both.write_all(b"go").unwrap();
        open(&path, SOON).unwrap().read_exact(&mut two).unwrap();
        assert_eq!(&two, b"go");
    }

    #[test]
    fn folders_and_devices_are_no_streams() {
        let null = Path::new("/dev/null");
        assert!(matches!(open(null, SOON), Err(HostError::NoStream { .. })));
        assert!(matches!(open_pipe(null), Err(HostError::NoStream { .. })));
        assert!(matches!(open(Path::new("/"), SOON), Err(HostError::NoStream { .. })));
    }
}
