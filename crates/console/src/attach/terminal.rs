//! The person's terminal: raw while a console is shown, as it was afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Standard input in raw mode; dropping it brings the former mode back.
#[derive(Debug)]
pub struct RawTerminal {
    former: Termios,
}

impl RawTerminal {
    /// Switches standard input to raw mode, if it is a terminal.
    ///
    /// # Errors
    /// When it is a terminal but refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        let Ok(former) = tcgetattr(&stdin) else { return Ok(None) };
        let mut raw = former.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { former }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.former);
    }
}

/// The signals that end a program, turned into readable bytes while this lives.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    former: SigSet,
}

impl Signals {
    /// Holds back SIGINT, SIGTERM, SIGHUP and SIGQUIT in this thread. (In a program with more threads, they must
    /// hold them back too.)
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn catch() -> io::Result<Self> {
        let set: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut former = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut former))?;
        Ok(Self { fd, former })
    }

    /// Gives the number of a signal that has come.
    ///
    /// # Errors
    /// When signals can no longer be received.
    pub fn next(&self) -> io::Result<Option<i32>> {
        Ok(self.fd.read_signal()?.and_then(|info| i32::try_from(info.ssi_signo).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.former), None);
    }
}
