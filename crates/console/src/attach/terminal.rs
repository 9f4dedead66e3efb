//! The person's terminal: raw while a console is shown, as it was afterwards.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

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

/// The signals that end a program, turned into readable bytes while this lives, whichever thread they come to.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    last: Arc<AtomicUsize>,
    registered: Vec<SigId>,
}

impl Signals {
    /// Catches SIGINT, SIGTERM, SIGHUP and SIGQUIT.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn catch() -> io::Result<Self> {
        let (wake, writer) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut signals = Self { wake, last: Arc::default(), registered: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let number = usize::try_from(signal).unwrap_or_default();
            let noted = signal_hook::flag::register_usize(signal, Arc::clone(&signals.last), number)?;
            signals.registered.push(noted);
            signals.registered.push(signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Gives the number of a signal that has come.
    ///
    /// # Errors
    /// When signals can no longer be received.
    pub fn next(&self) -> io::Result<Option<i32>> {
        match (&self.wake).read(&mut [0; 64]) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let number = self.last.swap(0, Ordering::SeqCst);
        Ok(i32::try_from(number).ok().filter(|number| *number != 0))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Signals {
    /// The signals have no effect from now on: the code that receives one ends the process.
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
