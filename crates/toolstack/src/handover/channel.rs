//! A connection to another host's daemon.
//!
//! A thread reads and decodes, so that what arrives can be waited for together with timers and users. Whatever fails on
//! the way is a cut: the journals decide what it means.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

use migration::frame::{self, Decoder, FrameError};
use migration::message::{Hello, Message, Packet};
use xen::Cancel;

use super::error::HandoverError as Error;
use super::identity::Identity;
use crate::dom0::harmless_line;

/// The versions of OFFER, ACCEPT and DATA that this release has.
const VERSIONS: (u16, u16) = (1, 1);
/// Packets that are kept for a reader that is busy; each has at most 64 KiB.
const AHEAD: usize = 8;
/// How often it is looked whether a migration was given up.
const LOOK: Duration = Duration::from_millis(100);

/// A connection to another host's daemon, which both have begun with HELLO. It ends when this is dropped.
#[derive(Debug)]
pub struct PeerChannel {
    stream: UnixStream,
    arrivals: Receiver<Arrival>,
    /// Takes the bytes of DATA back to the thread that reads.
    returns: Sender<Vec<u8>>,
    /// The other host, as it introduced itself.
    pub(crate) peer: Hello,
    /// Why the other host refuses something, in its words.
    pub(crate) said: Option<String>,
    /// Nothing more will arrive.
    is_cut: bool,
}

#[derive(Debug)]
enum Arrival {
    Packet(Packet),
    Cut(Error),
}

/// What was waited for.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Message),
    Cut,
    Late,
    Cancelled,
}

/// The side of a channel that sends; one side at a time uses it.
#[derive(Debug)]
pub(crate) struct Talker(UnixStream);

impl PeerChannel {
    /// Connects to a socket, at whose other end is another host's daemon, and introduces both. `patience` is how long
    /// either of them may take for one message.
    pub(crate) fn connect(path: &Path, own: &Identity, patience: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        Self::over(UnixStream::connect(path).map_err(failed)?, own, patience)
    }

    /// The same over a stream that is connected already.
    pub(crate) fn over(stream: UnixStream, own: &Identity, patience: Duration) -> Result<Self, Error> {
        let end = stream.try_clone().map_err(Error::io("set it up"))?;
        Self::introduce(stream, own, patience).inspect_err(|_| {
            // The thread that reads has one of its own.
            let _ = end.shutdown(Shutdown::Both);
        })
    }

    fn introduce(mut stream: UnixStream, own: &Identity, patience: Duration) -> Result<Self, Error> {
        stream.set_write_timeout(Some(patience)).map_err(Error::io("set it up"))?;
        let ours = Hello {
            oldest: VERSIONS.0,
            newest: VERSIONS.1,
            host: own.host.clone(),
            journal: own.journal.id,
            boot: own.boot,
        };
        let bytes = frame::encode(&Packet::Hello(ours))?;
        stream.write_all(&bytes).map_err(Error::io("write to it"))?;
        let (sender, arrivals) = sync_channel(AHEAD);
        let (returns, returned) = channel();
        let reader = stream.try_clone().map_err(Error::io("set it up"))?;
        let spawned = std::thread::Builder::new()
            .name("peer".to_owned())
            .spawn(move || read(reader, &sender, &returned));
        spawned.map_err(Error::io("start a thread for it"))?;
        let peer = match arrivals.recv_timeout(patience) {
            Ok(Arrival::Packet(Packet::Hello(peer))) => peer,
            Ok(Arrival::Packet(_)) => return Err(Error::NoHello),
            Ok(Arrival::Cut(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => return Err(Error::Silent { after: patience }),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Closed),
        };
        if peer.newest < VERSIONS.0 || peer.oldest > VERSIONS.1 {
            return Err(Error::Version { theirs: (peer.oldest, peer.newest), ours: VERSIONS });
        }
        Ok(Self { stream, arrivals, returns, peer, said: None, is_cut: false })
    }

    /// Another handle for sending, for a thread.
    pub(crate) fn talker(&self) -> Result<Talker, Error> {
        self.stream.try_clone().map(Talker).map_err(Error::io("set it up"))
    }

    /// Sends a message. One that cannot be sent cuts the channel, which is what a receiver hears next.
    pub(crate) fn send(&self, message: &Message) {
        if let Ok(talker) = self.talker() {
            // The cut is told where the channel is read.
            let _ = talker.send(message);
        }
    }

    /// Says why what follows is refused: for people, so that nothing depends on its arrival.
    pub(crate) fn note(&self, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        if let (Ok(talker), Ok(bytes)) = (self.talker(), frame::encode(&Packet::Note(text))) {
            let _ = talker.write(&bytes);
        }
    }

    /// Waits for a message, at most until `deadline` or until the migration is given up.
    pub(crate) fn hear(&mut self, deadline: Instant, cancel: &Cancel) -> Heard {
        loop {
            if cancel.is_cancelled() {
                return Heard::Cancelled;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_cut {
                return Heard::Cut;
            }
            match self.arrivals.recv_timeout(left.min(LOOK)) {
                Ok(arrival) => match self.taken(arrival) {
                    Some(heard) => return heard,
                    None => continue,
                },
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Heard::Late,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.is_cut = true,
            }
        }
    }

    /// What has arrived already, without waiting.
    pub(crate) fn heard(&mut self) -> Option<Heard> {
        if self.is_cut {
            return Some(Heard::Cut);
        }
        loop {
            match self.arrivals.try_recv() {
                Ok(arrival) => match self.taken(arrival) {
                    Some(heard) => return Some(heard),
                    None => continue,
                },
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    self.is_cut = true;
                    return Some(Heard::Cut);
                }
            }
        }
    }

    /// Gives the bytes of a DATA back, whose memory is used again.
    pub(crate) fn give_back(&self, bytes: Vec<u8>) {
        // Behind a cut nobody needs it.
        let _ = self.returns.send(bytes);
    }

    fn taken(&mut self, arrival: Arrival) -> Option<Heard> {
        match arrival {
            Arrival::Packet(Packet::Message(message)) => Some(Heard::Message(message)),
            // Said once already.
            Arrival::Packet(Packet::Hello(_)) => None,
            Arrival::Packet(Packet::Note(text)) => {
                self.said = Some(harmless_line(text.as_bytes()));
                None
            }
            Arrival::Cut(_) => {
                self.is_cut = true;
                Some(Heard::Cut)
            }
        }
    }
}

impl Drop for PeerChannel {
    /// The thread that reads ends with this. What was sent still goes to the other host.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Talker {
    /// Sends a message; a part of one would make all others unreadable.
    pub(crate) fn send(&self, message: &Message) -> Result<(), Error> {
        self.write(&frame::encode(&Packet::Message(message.clone()))?)
    }

    /// Sends a frame.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        (&self.0).write_all(bytes).map_err(|source| {
            let _ = self.0.shutdown(Shutdown::Both);
            Error::Io { operation: "write to it", source }
        })
    }
}

fn read(mut stream: UnixStream, arrivals: &SyncSender<Arrival>, returned: &Receiver<Vec<u8>>) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 << 10];
    let end = loop {
        returned.try_iter().for_each(|bytes| decoder.give_back(bytes));
        match packets(&mut decoder, arrivals) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => break error.into(),
        }
        let room = decoder.room().min(buffer.len());
        let place = buffer.get_mut(..room).unwrap_or_default();
        match stream.read(place) {
            Ok(0) => break Error::Closed,
            Ok(count) => {
                if let Err(error) = decoder.push(place.get(..count).unwrap_or_default()) {
                    break error.into();
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => break Error::Io { operation: "read from it", source },
        }
    };
    // Nobody may wait for it any more.
    let _ = arrivals.send(Arrival::Cut(end));
}

/// Passes on what is complete; returns whether anyone wants it.
fn packets(decoder: &mut Decoder, arrivals: &SyncSender<Arrival>) -> Result<bool, FrameError> {
    loop {
        match decoder.next() {
            Ok(None) => return Ok(true),
            Ok(Some(packet)) => {
                if arrivals.send(Arrival::Packet(packet)).is_err() {
                    return Ok(false);
                }
            }
            // Of a later version, and left out.
            Err(FrameError::UnknownType { .. } | FrameError::UnknownVersion { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use migration::message::Body;
    use migration::{JournalId, MigrationId};

    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn message(body: Body) -> Message {
        Message { id: MigrationId([1; 16]), journal: JournalId([2; 16]), body }
    }

    fn pair() -> (PeerChannel, PeerChannel) {
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || PeerChannel::over(b, &Identity::of_tests("b"), PATIENCE));
        let a = PeerChannel::over(a, &Identity::of_tests("a"), PATIENCE).unwrap();
        (a, other.join().unwrap().unwrap())
    }

    #[test]
    fn both_hear_who_the_other_is_and_what_it_says() {
        let (a, mut b) = pair();
        assert_eq!((&*a.peer.host, &*b.peer.host), ("b", "a"));
        a.send(&message(Body::Settle));
        a.note("the disk\nis missing");
        a.send(&message(Body::Ack));
        let deadline = Instant::now() + PATIENCE;
        let cancel = Cancel::new();
        for body in [Body::Settle, Body::Ack] {
            let Heard::Message(heard) = b.hear(deadline, &cancel) else { panic!("no message") };
            assert_eq!(heard, message(body));
        }
        assert_eq!(b.said.as_deref(), Some("the diskis missing"));
        assert!(matches!(b.hear(Instant::now() + SOON, &cancel), Heard::Late));
        cancel.cancel();
        assert!(matches!(b.hear(deadline, &cancel), Heard::Cancelled));
        drop(a);
        assert!(matches!(b.hear(deadline, &Cancel::new()), Heard::Cut));
        assert!(matches!(b.heard(), Some(Heard::Cut)));
    }

    #[test]
    fn what_is_no_message_cuts_the_channel() {
        let (a, mut b) = pair();
        (&a.stream).write_all(&[0xff; 64]).unwrap();
        assert!(matches!(b.hear(Instant::now() + PATIENCE, &Cancel::new()), Heard::Cut));
    }

    #[test]
    fn host_that_says_nothing_or_something_else_is_refused() {
        let own = Identity::of_tests("a");
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(matches!(PeerChannel::over(a, &own, SOON), Err(Error::Silent { .. })));
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"ssh: connect to host b port 22: Connection refused").unwrap();
        assert!(matches!(PeerChannel::over(a, &own, PATIENCE), Err(Error::Frame(_))));
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(&frame::encode(&Packet::Message(message(Body::Ack))).unwrap()).unwrap();
        assert!(matches!(PeerChannel::over(a, &own, PATIENCE), Err(Error::NoHello)));
        let (a, mut b) = UnixStream::pair().unwrap();
        let hello = Hello {
            oldest: 7,
            newest: 9,
            host: "b".to_owned(),
            journal: JournalId([1; 16]),
            boot: uuid::Uuid::nil(),
        };
        b.write_all(&frame::encode(&Packet::Hello(hello)).unwrap()).unwrap();
        assert!(matches!(PeerChannel::over(a, &own, PATIENCE), Err(Error::Version { theirs: (7, 9), .. })));
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert!(PeerChannel::over(a, &own, PATIENCE).is_err());
    }
}
