//! The agent's own QMP session with QEMU.
//!
//! Held open for QEMU's whole life, because QEMU closes unused descriptors of its sets with the last session; the
//! agent adds and removes such descriptors over it, and translates the older PCI protocol. One command is under way
//! at a time. QEMU may be in a guest's hands: lines are bounded, and no answer is waited for.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::{Value, json};
use stubdom_abi::harmless;

/// The longest line of QEMU's that is looked at; what is longer ends the session.
const LINE_MAX: usize = 256 * 1024;
/// How much is read at once, in bytes: the loop has others to serve.
const TURN_MAX: usize = 64 * 1024;
/// The most commands that wait for their turn.
const WAITING_MAX: usize = 256;

/// What a command was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To add the medium of this PV disk.
    AddMedium(u32),
    /// To remove the medium of this PV disk.
    RemoveMedium(u32),
    /// For the older PCI protocol's command of this number.
    Pci(u32),
}

impl core::fmt::Display for Purpose {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::AddMedium(devid) | Self::RemoveMedium(devid) => write!(f, "the medium of PV disk {devid}"),
            Self::Pci(_) => f.write_str("a PCI device"),
        }
    }
}

/// A command for QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Command {
    /// Comes back with the answer.
    pub(crate) purpose: Purpose,
    /// QMP's name of the command.
    pub(crate) name: &'static str,
    /// Its arguments, an object.
    pub(crate) arguments: Value,
}

/// What came from QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The first of all: QEMU's monitors are there.
    Greeting,
    /// The answer to a command: what it returns, or QEMU's description of the error.
    Answer(Purpose, Result<Value, String>),
    /// An event with its data.
    Event(String, Value),
}

/// QEMU does not speak QMP.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken(&'static str);

/// The session without I/O.
#[derive(Debug)]
struct Session {
    line: Vec<u8>,
    phase: Phase,
    waiting: VecDeque<(Command, Option<OwnedFd>)>,
}

#[derive(Debug)]
enum Phase {
    /// Nothing came yet.
    Greeting,
    /// The greeting came, and `qmp_capabilities` was not sent yet.
    Greeted,
    Negotiating,
    Idle,
    Asked(Purpose),
}

/// The bytes of a command and the descriptor that goes with them.
type Outgoing = (Vec<u8>, Option<OwnedFd>);

impl Default for Session {
    fn default() -> Self {
        Self { line: Vec::new(), phase: Phase::Greeting, waiting: VecDeque::new() }
    }
}

impl Session {
    /// The next command to send, if one may be sent now.
    fn next(&mut self) -> Option<Outgoing> {
        match self.phase {
            Phase::Greeted => {
                self.phase = Phase::Negotiating;
                Some((line(&json!({"execute": "qmp_capabilities"})), None))
            }
            Phase::Idle => {
                let (Command { purpose, name, arguments }, file) = self.waiting.pop_front()?;
                self.phase = Phase::Asked(purpose);
                Some((line(&json!({"execute": name, "arguments": arguments})), file))
            }
            _ => None,
        }
    }

    /// Takes bytes from QEMU.
    fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<Message>, Broken> {
        let mut messages = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            self.add(head)?;
            let whole = core::mem::take(&mut self.line);
            messages.extend(self.message(&whole)?);
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.add(bytes)?;
        Ok(messages)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.line.len() + bytes.len() > LINE_MAX {
            return Err(Broken("one of its lines is too long"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn message(&mut self, text: &[u8]) -> Result<Option<Message>, Broken> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let mut message: Value =
            serde_json::from_slice(text).map_err(|_| Broken("one of its lines is not JSON"))?;
        if message.get("QMP").is_some() {
            return match self.phase {
                Phase::Greeting => {
                    self.phase = Phase::Greeted;
                    Ok(Some(Message::Greeting))
                }
                _ => Err(Broken("it sent two greetings")),
            };
        }
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let name = name.to_owned();
            return Ok(Some(Message::Event(name, message["data"].take())));
        }
        let answer = match (message.get("return"), message.get("error")) {
            (Some(_), None) => Ok(message["return"].take()),
            (None, Some(error)) => Err(harmless(error["desc"].as_str().unwrap_or("?").as_bytes())),
            _ => return Err(Broken("one of its messages is neither an answer nor an event")),
        };
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Asked(purpose) => Ok(Some(Message::Answer(purpose, answer))),
            Phase::Negotiating if answer.is_ok() => Ok(None),
            _ => Err(Broken("it sent an answer without a request")),
        }
    }
}

fn line(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// The session with its socket.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    session: Session,
    /// What the socket did not take yet.
    unsent: Option<Outgoing>,
    is_open: bool,
}

impl Qmp {
    /// Starts the session on this non-blocking socket.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, session: Session::default(), unsent: None, is_open: true }
    }

    /// Sends a command, and a descriptor with it, when its turn comes; false when too many wait or the session has
    /// ended.
    pub(crate) fn ask(&mut self, command: Command, file: Option<OwnedFd>) -> bool {
        let has_room = self.is_open && self.session.waiting.len() < WAITING_MAX;
        if has_room {
            self.session.waiting.push_back((command, file));
            // What cannot be sent now is sent when QEMU's next line comes.
            self.send();
        }
        has_room
    }

    /// Whether the session has not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Reads and writes what can be without waiting, but only so much: a QEMU that sends without end gets another turn
    /// when everything else had one, since its socket stays readable.
    pub(crate) fn pump(&mut self) -> Result<Vec<Message>, Broken> {
        let mut messages = Vec::new();
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while self.is_open && taken < TURN_MAX {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.is_open = false,
                Ok(count) => {
                    taken += count;
                    match self.session.take(buffer.get(..count).unwrap_or_default()) {
                        Ok(more) => messages.extend(more),
                        Err(broken) => {
                            self.is_open = false;
                            return Err(broken);
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.is_open = false,
            }
            self.send();
        }
        Ok(messages)
    }

    fn send(&mut self) {
        while let Some((bytes, file)) = self.unsent.take().or_else(|| self.session.next()) {
            let fds: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &[] } else { &rights[..] };
            let sent = sendmsg::<UnixAddr>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                // The descriptor went with the first byte.
                Ok(count) if count < bytes.len() => {
                    self.unsent = Some((bytes.get(count..).unwrap_or_default().to_vec(), None));
                }
                Ok(_) => {}
                Err(Errno::EINTR) => self.unsent = Some((bytes, file)),
                Err(Errno::EAGAIN) => {
                    self.unsent = Some((bytes, file));
                    return;
                }
                Err(_) => {
                    self.is_open = false;
                    return;
                }
            }
        }
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the agent's monitor session is closed: {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    fn command(number: u32, name: &'static str) -> Command {
        Command { purpose: Purpose::Pci(number), name, arguments: json!({}) }
    }

    fn opened() -> Session {
        let mut session = Session::default();
        session.take(GREETING).unwrap();
        assert!(session.next().unwrap().0.starts_with(b"{\"execute\":\"qmp_capabilities\"}"));
        session.take(b"{\"return\": {}}\r\n").unwrap();
        session
    }

    #[test]
    fn commands_wait_for_the_greeting_and_for_each_other() {
        let mut session = Session::default();
        session.waiting.push_back((command(1, "one"), None));
        session.waiting.push_back((command(2, "two"), None));
        assert!(session.next().is_none());
        assert_eq!(session.take(GREETING), Ok(vec![Message::Greeting]));
        assert!(session.next().is_some() && session.next().is_none());
        session.take(b"{\"return\": {}}\n").unwrap();
        assert!(session.next().unwrap().0.starts_with(b"{\"arguments\":{},\"execute\":\"one\"}"));
        assert!(session.next().is_none());
        let messages = session.take(b"{\"return\": {\"fd\": 9}}\n").unwrap();
        assert_eq!(messages, [Message::Answer(Purpose::Pci(1), Ok(json!({"fd": 9})))]);
        assert!(session.next().is_some());
        let messages =
            session.take(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007\"}}\n").unwrap();
        assert_eq!(messages, [Message::Answer(Purpose::Pci(2), Err("no?".to_owned()))]);
    }

    #[test]
    fn events_come_between_and_in_pieces() {
        let mut session = opened();
        assert_eq!(session.take(b"{\"event\": \"STOP\", \"data\": {\"a\"").unwrap(), []);
        let messages = session.take(b": 1}}\r\n\r\n").unwrap();
        assert_eq!(messages, [Message::Event("STOP".to_owned(), json!({"a": 1}))]);
    }

    #[test]
    fn absurd_answers_break_the_session() {
        for bytes in [
            &b"{\"return\": 1}\n"[..],
            GREETING,
            b"x\n",
            b"{}\n",
            b"{\"return\": 1, \"error\": 2}\n",
            b"[]\n",
        ] {
            assert!(opened().take(bytes).is_err(), "{bytes:?}");
        }
        assert!(opened().take(&vec![b' '; LINE_MAX + 1]).is_err());
    }

    #[test]
    fn a_descriptor_goes_with_its_command() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut qmp = Qmp::new(ours);
        let file = Some(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(qmp.ask(command(1, "add-fd"), file));
        let mut reader = BufReader::new(theirs.try_clone().unwrap());
        let mut line = String::new();
        (&theirs).write_all(GREETING).unwrap();
        assert_eq!(qmp.pump(), Ok(vec![Message::Greeting]));
        reader.read_line(&mut line).unwrap();
        (&theirs).write_all(b"{\"return\": {}}\n").unwrap();
        assert_eq!(qmp.pump(), Ok(vec![]));
        let mut buffer = [0; 256];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut io = [std::io::IoSliceMut::new(&mut buffer)];
        let message = nix::sys::socket::recvmsg::<UnixAddr>(
            theirs.as_raw_fd(),
            &mut io,
            Some(&mut space),
            MsgFlags::empty(),
        )
        .unwrap();
        assert_eq!(message.cmsgs().unwrap().count(), 1);
        drop((reader, theirs));
        assert_eq!(qmp.pump(), Ok(vec![]));
        assert!(!qmp.is_open());
        assert!(!qmp.ask(command(2, "late"), None));
    }

    #[test]
    fn news_without_end_are_taken_in_turns() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut qmp = Qmp::new(ours);
        (&theirs).write_all(GREETING).unwrap();
        let event: &[u8] = b"{\"event\": \"RESET\"}\r\n";
        theirs.set_nonblocking(true).unwrap();
        let mut sent = 0;
        // As much as its socket takes, again and again.
        for _ in 0..20 {
            while (&theirs).write_all(event).is_ok() {
                sent += event.len();
            }
            let messages = qmp.pump().unwrap_or_default();
            assert!(messages.len() <= (TURN_MAX + 4096) / event.len() + 1, "{}", messages.len());
            if !qmp.is_open() {
                break;
            }
        }
        assert!(sent > TURN_MAX, "{sent}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(pieces in vec(vec(any::<u8>(), 0..60), 0..20)) {
            let mut session = opened();
            for piece in pieces {
                if session.take(&piece).is_err() {
                    break;
                }
                prop_assert!(session.line.len() <= LINE_MAX);
            }
        }
    }
}
