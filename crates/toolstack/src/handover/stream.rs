//! A guest's stream between a pipe of the helper process and a channel, in DATA messages.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use migration::frame::{DataFrame, MAX_DATA};
use migration::message::{Body, Message};
use migration::{Digest, JournalId, MigrationId};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use twox_hash::XxHash3_128;
use xen::Cancel;

use super::channel::{Heard, PeerChannel, Talker};
use super::error::HandoverError as Error;

/// The longest rest that is taken to keep to the bandwidth at once.
const REST: Duration = Duration::from_millis(100);

/// A stream as it was sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transferred {
    /// Its length in bytes.
    pub(crate) length: u64,
    pub(crate) digest: Digest,
}

/// Counts a stream's bytes and computes their digest.
struct Sum {
    length: u64,
    hasher: XxHash3_128,
}

impl Default for Sum {
    fn default() -> Self {
        Self { length: 0, hasher: XxHash3_128::new() }
    }
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.hasher.write(bytes);
    }

    fn end(self) -> Transferred {
        Transferred { length: self.length, digest: Digest(self.hasher.finish_128().to_be_bytes()) }
    }
}

/// How the bytes of each DATA are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Not at all.
    #[default]
    None,
    /// Each is a frame of Zstandard (RFC 8878), so that what follows a message needs nothing before it.
    Zstd,
}

/// What a frame of Zstandard may add to bytes that cannot be compressed.
const FRAME: usize = 64;

impl Packing {
    /// The word of an OFFER.
    pub(crate) fn word(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Zstd => Some("zstd".to_owned()),
        }
    }

    /// The packing that an OFFER says; none if it is not known here.
    pub(crate) fn of(word: Option<&str>) -> Option<Self> {
        match word {
            None => Some(Self::None),
            Some("zstd") => Some(Self::Zstd),
            Some(_) => None,
        }
    }

    pub(super) fn pack(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::None => bytes.into(),
            Self::Zstd => compress_to_vec(bytes, CompressionLevel::Fastest).into(),
        }
    }

    /// No more than one DATA can have had is unpacked, whatever the bytes say.
    fn unpack(self, bytes: &[u8]) -> io::Result<Cow<'_, [u8]>> {
        if self == Self::None {
            return Ok(bytes.into());
        }
        let decoder = StreamingDecoder::new(bytes).map_err(io::Error::other)?;
        let mut unpacked = Vec::new();
        decoder.take(MAX_DATA as u64 + 1).read_to_end(&mut unpacked)?;
        if unpacked.len() > MAX_DATA {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(unpacked.into())
    }
}

/// How a stream is sent.
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    pub(crate) id: MigrationId,
    pub(crate) journal: JournalId,
    /// The most bytes of one DATA that the receiver accepts.
    pub(crate) data: usize,
    pub(crate) packing: Packing,
    /// Bytes a second, as they are sent.
    pub(crate) bandwidth: Option<u64>,
    pub(crate) cancel: Cancel,
}

/// Sends everything that comes out of a pipe, until its end.
pub(crate) fn send(from: &mut impl Read, to: &Talker, how: &Sending) -> Result<Transferred, Error> {
    let mut sum = Sum::default();
    let most = if how.packing == Packing::None { MAX_DATA } else { MAX_DATA - FRAME };
    let mut buffer = vec![0; how.data.clamp(1, most)];
    let mut frame = DataFrame::of(how.id, how.journal);
    let (begin, mut passed_on) = (Instant::now(), 0);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(sum.end()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Io { operation: "read what is to be sent", source }),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        sum.add(bytes);
        let packed = how.packing.pack(bytes);
        passed_on += packed.len() as u64;
        to.write(frame.with(&packed)?)?;
        if let Some(bandwidth) = how.bandwidth {
            rest(begin, passed_on, bandwidth, &how.cancel);
        }
    }
}

/// Waits until so many bytes may have been sent.
fn rest(begin: Instant, sent: u64, bandwidth: u64, cancel: &Cancel) {
    let millis = u128::from(sent) * 1000 / u128::from(bandwidth.max(1));
    let due = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    while let Some(early) = due.checked_sub(begin.elapsed()).filter(|early| !early.is_zero()) {
        if cancel.is_cancelled() {
            return;
        }
        std::thread::sleep(early.min(REST));
    }
}

/// How a stream ended that was received.
#[derive(Debug)]
pub(crate) enum Received {
    /// All of it is there. The message has to be given to the machine.
    End(Transferred, Message),
    /// Something else came, which decides.
    Other(Heard),
    /// The reader of the pipe has closed it, the bytes cannot be unpacked, or it was cancelled.
    Refused,
}

/// Receives a stream into a pipe, until its end; `patience` is how long nothing may come.
pub(crate) fn receive(
    channel: &mut PeerChannel,
    (id, packing): (MigrationId, Packing),
    mut to: impl Write,
    patience: Duration,
    stop: &Cancel,
) -> Received {
    let mut sum = Sum::default();
    loop {
        match channel.hear(Instant::now() + patience, stop) {
            Heard::Message(message) if message.id != id => {}
            Heard::Message(Message { body: Body::Data(bytes), .. }) => {
                let Ok(unpacked) = packing.unpack(&bytes) else { return Received::Refused };
                sum.add(&unpacked);
                if to.write_all(&unpacked).is_err() {
                    return Received::Refused;
                }
                channel.give_back(bytes);
            }
            Heard::Message(message @ Message { body: Body::StreamEnd { .. }, .. }) => {
                return Received::End(sum.end(), message);
            }
            Heard::Cancelled => return Received::Refused,
            other => return Received::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::handover::identity::Identity;

    const PATIENCE: Duration = Duration::from_secs(20);
    const ID: MigrationId = MigrationId([1; 16]);

    fn pair() -> (PeerChannel, PeerChannel) {
        let (a, b) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || PeerChannel::over(b, &Identity::of_tests("b"), PATIENCE));
        let a = PeerChannel::over(a, &Identity::of_tests("a"), PATIENCE).unwrap();
        (a, other.join().unwrap().unwrap())
    }

    fn sending() -> Sending {
        let journal = JournalId([7; 16]);
        Sending {
            id: ID,
            journal,
            data: MAX_DATA,
            packing: Packing::None,
            bandwidth: None,
            cancel: Cancel::new(),
        }
    }

    #[test]
    fn stream_arrives_as_it_was_sent() {
        let (a, mut b) = pair();
        let content: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[1]).collect();
        let sent = content.clone();
        let sender = std::thread::spawn(move || {
            let sent = send(&mut &*sent, &a.talker().unwrap(), &sending()).unwrap();
            let body = Body::StreamEnd { length: sent.length, digest: sent.digest };
            a.send(&Message { id: ID, journal: JournalId([7; 16]), body });
            (sent, a)
        });
        let mut received = Vec::new();
        let Received::End(transferred, _) =
            receive(&mut b, (ID, Packing::None), &mut received, PATIENCE, &Cancel::new())
        else {
            panic!("no end")
        };
        let (sent, _a) = sender.join().unwrap();
        assert_eq!((sent, &received), (transferred, &content));
        assert_eq!(transferred.length, 3_000_001);
    }

    #[test]
    fn stream_that_is_cut_silent_or_unwanted_ends() {
        let (a, mut b) = pair();
        let soon = Duration::from_millis(20);
        let none = &Cancel::new();
        assert!(matches!(
            receive(&mut b, (ID, Packing::None), io::sink(), soon, none),
            Received::Other(Heard::Late)
        ));
        a.send(&Message { id: ID, journal: JournalId([7; 16]), body: Body::Data(vec![1; 9]) });
        let full: &mut [u8] = &mut [];
        assert!(matches!(receive(&mut b, (ID, Packing::None), full, PATIENCE, none), Received::Refused));
        drop(a);
        assert!(matches!(
            receive(&mut b, (ID, Packing::None), io::sink(), PATIENCE, none),
            Received::Other(Heard::Cut)
        ));
    }

    #[test]
    fn compressed_stream_arrives_as_it_was_sent_in_fewer_bytes() {
        let random: Vec<u8> = (0..200_000_u64)
            .map(|n| (n.wrapping_mul(n).wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[2])
            .collect();
        for content in [vec![7; 1 << 20], random] {
            let (a, mut b) = pair();
            let sent = content.clone();
            let sender = std::thread::spawn(move || {
                let how = Sending { packing: Packing::Zstd, ..sending() };
                let sent = send(&mut &*sent, &a.talker().unwrap(), &how).unwrap();
                let body = Body::StreamEnd { length: sent.length, digest: sent.digest };
                a.send(&Message { id: ID, journal: JournalId([7; 16]), body });
                a
            });
            let mut received = Vec::new();
            let from = (ID, Packing::Zstd);
            let end = receive(&mut b, from, &mut received, PATIENCE, &Cancel::new());
            let _a = sender.join().unwrap();
            assert!(matches!(end, Received::End(..)) && received == content);
        }
        assert!(Packing::Zstd.pack(&[7; MAX_DATA]).len() < 1000);
    }

    #[test]
    fn bytes_that_are_unpacked_are_bounded() {
        let bomb = compress_to_vec(&*vec![0; 8 << 20], CompressionLevel::Fastest);
        assert!(bomb.len() < MAX_DATA && Packing::Zstd.unpack(&bomb).is_err());
        assert!(Packing::Zstd.unpack(b"no frame").is_err());
        assert_eq!(Packing::of(Some("lz4")), None);
        assert_eq!(Packing::of(Packing::Zstd.word().as_deref()), Some(Packing::Zstd));
    }

    #[test]
    fn bandwidth_is_kept() {
        let (a, mut b) = pair();
        let begin = Instant::now();
        let sender = std::thread::spawn(move || {
            let how = Sending { bandwidth: Some(100_000), ..sending() };
            send(&mut &*vec![0; 20_000], &a.talker().unwrap(), &how).unwrap();
        });
        let _ = receive(&mut b, (ID, Packing::None), io::sink(), PATIENCE, &Cancel::new());
        sender.join().unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(200));
    }
}
