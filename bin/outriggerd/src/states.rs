//! States of device models, through the console daemon.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use console::stream::{Stream, StreamError};
use stubdom_abi::StubConsole;
use toolstack::{Cause, DeviceStates, Domain, STATE_LIMIT};

/// Moves states through the consoles that the console daemon serves.
#[derive(Debug)]
pub(crate) struct ConsoleStates {
    /// The folder of the console daemon's sockets.
    folder: PathBuf,
}

impl ConsoleStates {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn open(&self, stub: Domain, console: StubConsole, patience: Duration) -> Result<Stream, Cause> {
        let whose = (stub.domid(), stub.uuid());
        Stream::open_of(&self.folder, whose, u32::from(console.number()), patience).map_err(failed)
    }
}

fn failed(error: StreamError) -> Cause {
    Cause::DeviceState(Box::new(error))
}

impl DeviceStates for ConsoleStates {
    fn receive(
        &self,
        stub: Domain,
        patience: Duration,
        ask: &mut dyn FnMut() -> Result<(), Cause>,
    ) -> Result<Vec<u8>, Cause> {
        let stream = self.open(stub, StubConsole::StateOut, patience)?;
        let closer = stream.closer().map_err(failed)?;
        let (sender, received) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name(format!("state of {}", stub.domid()))
            .spawn(move || {
                let mut state = Bounded(Vec::new());
                // Nobody waits for it after the deadline.
                let _ = sender.send(stream.receive(&mut state).map(|_| state.0));
            })
            .map_err(|error| Cause::DeviceState(Box::new(error)))?;
        let state = ask().and_then(|()| match received.recv_timeout(patience) {
            Ok(state) => state.map_err(failed),
            // A hostile stubdomain may send a byte now and then, for years.
            Err(_) => Err(Cause::DeviceState(format!("it did not come whole within {patience:?}").into())),
        });
        // The next save wants the console.
        closer.close();
        state
    }

    fn send(&self, stub: Domain, mut state: &[u8], patience: Duration) -> Result<(), Cause> {
        self.open(stub, StubConsole::StateIn, patience)?.send(&mut state).map(drop).map_err(failed)
    }
}

/// Takes no more than a state may have.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > STATE_LIMIT - self.0.len() {
            let why = format!("the state has more than {STATE_LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_state_is_cut_off_at_its_limit() {
        let mut state = Bounded(vec![0; STATE_LIMIT - 1]);
        state.write_all(b"x").unwrap();
        assert_eq!(state.write_all(b"x").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(state.0.len(), STATE_LIMIT);
    }
}
