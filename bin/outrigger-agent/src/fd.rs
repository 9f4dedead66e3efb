//! Descriptors: the numbers at which QEMU finds its own, and what is polled.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use stubdom_abi::{STATE_IN_FD, STATE_OUT_FD};

use crate::error::AgentError;

/// The descriptor of QEMU's end of the agent's own QMP session.
pub(crate) const QMP_FD: i32 = 5;

/// Descriptors 3, 4 and 5, taken before anything else can get those numbers. They close in QEMU unless they were
/// [filled](Self::fill).
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    reserved: Vec<OwnedFd>,
}

impl Descriptors {
    /// Takes the numbers. To be called before any other file is open.
    pub(crate) fn reserve() -> Result<Self, AgentError> {
        let mut reserved = Vec::new();
        for expected in [STATE_IN_FD, STATE_OUT_FD, QMP_FD] {
            // A folder, because there are no devices yet.
            let fd =
                OwnedFd::from(File::open("/").map_err(|e| AgentError::System("open the root folder", e))?);
            if fd.as_raw_fd() != expected {
                return Err(AgentError::Descriptor { expected, found: fd.as_raw_fd() });
            }
            reserved.push(fd);
        }
        Ok(Self { reserved })
    }

    /// Lets QEMU find `file` at descriptor `number`.
    pub(crate) fn fill<F: AsFd>(&mut self, number: i32, file: F) -> Result<(), AgentError> {
        let found = self.reserved.iter_mut().find(|fd| fd.as_raw_fd() == number);
        let fd = found.ok_or(AgentError::Descriptor { expected: number, found: -1 })?;
        nix::unistd::dup2(file, fd).map_err(AgentError::system("duplicate a descriptor"))
    }
}

/// Makes reads from a pipe, or writes to it, return at once.
pub(crate) fn set_nonblocking<F: AsFd>(pipe: &F) -> Result<(), AgentError> {
    let failed = || AgentError::system("make a pipe non-blocking");
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL).map_err(failed())?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed())?;
    Ok(())
}

/// Adds a descriptor to an epoll; its events carry `token`.
pub(crate) fn poll(epoll: &Epoll, fd: impl AsFd, token: u64, flags: EpollFlags) -> Result<(), AgentError> {
    epoll.add(fd, EpollEvent::new(flags, token)).map_err(AgentError::system("poll a descriptor"))
}
