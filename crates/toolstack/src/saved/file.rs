//! The file that a guest is saved to, or a named pipe.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use config::Uuid;
use migration_stream::header::Header;
use migration_stream::metadata::Metadata;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen::Cancel;
use xen_types::KiB;

use crate::Toolstack;
use crate::dom0::FileKind;
use crate::error::Cause;
use crate::operation::StepResult;

/// The most of a file that is looked at to know whose it is, in bytes.
const PEEK: u64 = 8 << 20;
/// The most that a pipe takes at once when it says that it takes anything (`PIPE_BUF` in Linux).
const PIPE_PIECE: usize = 4096;
/// How often it is looked whether a save was given up, in milliseconds.
const LOOK: u16 = 100;

/// The name that a file has until it is whole: in the same folder, and nobody else's.
pub(crate) fn partial(to: &Path, id: Uuid) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(format!(".{id}.partial"));
    PathBuf::from(name)
}

/// A guest can be saved to a named pipe, to a new file, or in place of an empty file or an earlier save of this guest:
/// nothing else is overwritten.
pub(crate) fn check_target(ts: &Toolstack, to: &Path, guest: Uuid) -> StepResult {
    let refuse = |why: &str| Err(Cause::NotASaveFile { path: to.to_owned(), why: why.to_owned() });
    match ts.host.file_kind(to)? {
        FileKind::Missing | FileKind::Pipe | FileKind::Regular { bytes: 0 } => Ok(()),
        FileKind::Regular { .. } => match metadata(ts, to)? {
            Some(metadata) if metadata.uuid == guest => Ok(()),
            Some(_) => refuse("another guest is saved in it: remove it, or give another name"),
            None => refuse("it has another content, which would be lost: remove it, or give another name"),
        },
        FileKind::Block { .. } | FileKind::Other => refuse("it is neither a regular file nor a named pipe"),
    }
}

/// Fails if a file of the guest's memory has no room there: before the guest is suspended for nothing.
pub(crate) fn check_room(ts: &Toolstack, to: &Path, need: KiB) -> StepResult {
    if ts.host.file_kind(to)? == FileKind::Pipe {
        return Ok(());
    }
    let free = KiB(ts.host.room_beside(to)? / 1024);
    if free >= need { Ok(()) } else { Err(Cause::NoRoom { path: to.to_owned(), need, free }) }
}

/// Whether a file is the save that this names.
pub(crate) fn is_of(ts: &Toolstack, path: &Path, id: Uuid) -> Result<bool, Cause> {
    if !matches!(ts.host.file_kind(path)?, FileKind::Regular { .. }) {
        return Ok(false);
    }
    Ok(metadata(ts, path)?.is_some_and(|metadata| metadata.id == id))
}

/// What we have said of the guest that is saved in a file; nothing where that is another file.
fn metadata(ts: &Toolstack, path: &Path) -> Result<Option<Metadata>, Cause> {
    let file = ts.host.open_stream(path, ts.deadlines.state)?;
    let header = Header::read(&mut file.take(PEEK)).ok();
    Ok(header.and_then(|header| Metadata::decode(&header.tail).ok()).flatten())
}

/// Writes all of it, but waits no longer than this for a pipe's reader.
pub(crate) fn write_within(
    mut to: &File,
    bytes: &[u8],
    deadline: Instant,
    cancel: &Cancel,
) -> io::Result<()> {
    for piece in bytes.chunks(PIPE_PIECE) {
        wait_for(to, PollFlags::POLLOUT, deadline, cancel)?;
        to.write_all(piece)?;
    }
    Ok(())
}

/// Waits until a descriptor is ready; a regular file always is.
fn wait_for(of: &File, what: PollFlags, deadline: Instant, cancel: &Cancel) -> io::Result<()> {
    loop {
        if poll(&mut [PollFd::new(of.as_fd(), what)], PollTimeout::from(LOOK))? > 0 {
            return Ok(());
        }
        if cancel.is_cancelled() || Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Reads, but waits no longer than this for a pipe's writer.
pub(super) struct Within<'a> {
    pub(super) from: &'a File,
    pub(super) deadline: Instant,
}

impl Read for Within<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        wait_for(self.from, PollFlags::POLLIN, self.deadline, &Cancel::new())?;
        self.from.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pipe_whose_other_end_does_nothing_is_given_up() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader, writer) =
            (File::from(std::os::fd::OwnedFd::from(reader)), std::os::fd::OwnedFd::from(writer));
        let (writer, soon) = (File::from(writer), || Instant::now() + Duration::from_millis(20));
        let kind = |result: io::Result<usize>| result.unwrap_err().kind();
        let mut within = Within { from: &reader, deadline: soon() };
        assert_eq!(kind(within.read(&mut [0])), io::ErrorKind::TimedOut);
        let much = vec![0; 1 << 20];
        let written = write_within(&writer, &much, soon(), &Cancel::new());
        assert_eq!(kind(written.map(|()| 0)), io::ErrorKind::TimedOut);
        let cancel = Cancel::new();
        cancel.cancel();
        let hour = Instant::now() + Duration::from_secs(3600);
        assert_eq!(kind(write_within(&writer, &much, hour, &cancel).map(|()| 0)), io::ErrorKind::TimedOut);
    }
}
