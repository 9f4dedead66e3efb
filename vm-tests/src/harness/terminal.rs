//! Terminals: a program at one of its own, as a person would run it, and what comes out of one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::seconds;

/// A program that reads what is typed and shows what it says; killed when the case ends.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    shown: Shown,
}

impl Terminal {
    /// Runs a program at a terminal that echoes nothing by itself.
    pub(crate) fn run(command: &mut Command) -> Result<Self> {
        let terminal = nix::pty::openpty(None, None)?;
        let mut mode = tcgetattr(&terminal.slave)?;
        cfmakeraw(&mut mode);
        tcsetattr(&terminal.slave, SetArg::TCSANOW, &mode)?;
        let child = command
            .stdin(terminal.slave.try_clone()?)
            .stdout(terminal.slave.try_clone()?)
            .stderr(terminal.slave)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        // The command keeps its ends of the terminal, which would keep it from ending.
        for end in [Command::stdin, Command::stdout, Command::stderr] {
            end(command, Stdio::null());
        }
        let keys = File::from(terminal.master);
        let shown = Shown::by(keys.try_clone()?);
        Ok(Self { child, keys, shown })
    }

    /// Types.
    pub(crate) fn press(&mut self, keys: &[u8]) -> Result<()> {
        self.keys.write_all(keys).context("cannot type at the terminal")
    }

    /// Waits until `word` is shown.
    pub(crate) fn hear(&mut self, word: &str, within: u64) -> Result<()> {
        self.shown.hear(word, within)
    }

    /// Waits until the program has ended, and let go of the terminal.
    pub(crate) fn end(mut self, within: u64) -> Result<ExitStatus> {
        let deadline = Instant::now() + seconds(within);
        self.shown.end(deadline)?;
        // It has let go of the terminal, and is about to end.
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the program has left its terminal, but does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already when the case succeeded.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a terminal shows.
pub(crate) struct Shown {
    pieces: Receiver<Vec<u8>>,
    /// What came and was not waited for yet.
    seen: Vec<u8>,
}

impl Shown {
    /// Listens to a terminal until nobody has its other end.
    pub(crate) fn by(mut terminal: File) -> Self {
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count) = terminal.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { pieces, seen: Vec::new() }
    }

    /// Waits until `word` is shown; what comes before it is forgotten.
    pub(crate) fn hear(&mut self, word: &str, within: u64) -> Result<()> {
        let deadline = Instant::now() + seconds(within);
        loop {
            let place = self.seen.windows(word.len()).position(|part| part == word.as_bytes());
            if let Some(place) = place {
                self.seen.drain(..place + word.len());
                return Ok(());
            }
            let more = self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let more = more.with_context(|| format!("\"{word}\" was not shown, but \"{}\"", self.text()))?;
            self.seen.extend(more);
        }
    }

    /// Waits until nobody has the terminal's other end.
    fn end(&mut self, deadline: Instant) -> Result<()> {
        loop {
            match self.pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend(more),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("it does not end; it shows \"{}\"", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
