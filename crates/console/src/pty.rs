//! A pseudo-terminal that stands for a console: raw, never hung up, its path told in xenstore.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// A pseudo-terminal's both ends and its name.
///
/// The slave is kept open here too: with no slave open, reads of the master fail and a poll of it never rests.
#[derive(Debug)]
pub struct Pty {
    master: PtyMaster,
    _slave: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Opens a new pseudo-terminal in raw mode, its master non-blocking.
    ///
    /// # Errors
    /// When the system has none left or `/dev/pts` is not mounted.
    pub fn open() -> io::Result<Self> {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(ptsname_r(&master)?);
        let slave = open(&path, OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut attributes = tcgetattr(&slave)?;
        cfmakeraw(&mut attributes);
        tcsetattr(&slave, SetArg::TCSANOW, &attributes)?;
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { master, _slave: slave, path })
    }

    /// The slave's path, as `/dev/pts/3`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_pass_both_ways_unchanged() {
        let pty = Pty::open().unwrap();
        let mut tty = OpenOptions::new().read(true).write(true).open(pty.path()).unwrap();
        nix::unistd::write(&pty, b"a\x03\n\r\x00").unwrap();
        let mut buffer = [0; 5];
        tty.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"a\x03\n\r\x00");
        tty.write_all(b"\n\x04").unwrap();
        let mut buffer = [0; 16];
        let count = nix::unistd::read(&pty, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"\n\x04");
    }
}
