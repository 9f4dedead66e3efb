//! One queue of everything that a run can hear: console, script output, control messages, QEMU's end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use crate::HostError;
use crate::error::AtPath as _;

/// A control message is one short line.
const MAX_CONTROL_LINE: u64 = 4096;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// QEMU connected the channel of this name.
    Connected(&'static str, UnixStream),
    /// Bytes of the Xen console, on which dom0's kernel writes too.
    Console(Vec<u8>),
    /// Bytes that the script wrote.
    Output(Vec<u8>),
    /// Bytes of dom0's shell.
    Shell(Vec<u8>),
    /// A line from dom0's init.
    Control(String),
    /// A line from QEMU's monitor.
    Monitor(String),
    /// Another thread wants the run to end.
    Stopped,
    /// The channel of this name was closed and everything in it was read: QEMU is gone.
    Closed(&'static str),
}

/// Ends a run from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Sender<Event>);

impl Stopper {
    /// Ends the run at once, as a failure. A run that has ended already does not change.
    pub fn stop(&self) {
        // Nobody receives: the run is over.
        let _ = self.0.send(Event::Stopped);
    }
}

/// The receiving end, with the sender that new readers clone.
#[derive(Debug)]
pub(crate) struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }

    /// Something that ends the run from another thread.
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.sender.clone())
    }

    /// The next event, or nothing when the deadline comes first.
    pub(crate) fn next(&self, deadline: Instant) -> Option<Event> {
        // The queue keeps a sender of its own, so that only the deadline can be an error.
        self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Listens on `folder/name`; the connection that comes becomes [`Event::Connected`], and what is read from it
    /// events of the kind that the name says.
    pub(crate) fn listen(&self, folder: &Path, name: &'static str) -> Result<(), HostError> {
        let path = folder.join(name);
        let listener = UnixListener::bind(&path).at("listen on the socket", &path)?;
        let sender = self.sender.clone();
        thread::spawn(move || {
            // The thread ends with the connection; if QEMU never connects, with the process.
            let Ok((stream, _)) = listener.accept() else { return };
            let Ok(reader) = stream.try_clone() else { return };
            if sender.send(Event::Connected(name, stream)).is_err() {
                return;
            }
            match name {
                "console" => read_bytes(reader, &sender, Event::Console),
                "output" => read_bytes(reader, &sender, Event::Output),
                "shell" => read_bytes(reader, &sender, Event::Shell),
                "control" => read_lines(reader, &sender, Event::Control),
                _ => read_lines(reader, &sender, Event::Monitor),
            }
            // A receiver that is gone no longer wants to know.
            let _ = sender.send(Event::Closed(name));
        });
        Ok(())
    }
}

fn read_bytes(mut stream: UnixStream, sender: &Sender<Event>, kind: impl Fn(Vec<u8>) -> Event) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if sender.send(kind(buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn read_lines(stream: UnixStream, sender: &Sender<Event>, kind: impl Fn(String) -> Event) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_CONTROL_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            _ => return,
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if sender.send(kind(text)).is_err() {
            return;
        }
    }
}
