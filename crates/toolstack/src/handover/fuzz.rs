//! What the fuzz target of a migrating guest's stream runs: a channel, whose frames and packed pieces may be anything.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use migration::frame::{DataFrame, MAX_DATA, encode};
use migration::message::{Body, Hello, Message, Packet};
use migration::receiver::OwnJournal;
use migration::{Digest, JournalId, MigrationId};
use uuid::Uuid;
use xen::Cancel;

use super::channel::PeerChannel;
use super::identity::Identity;
use super::stream::{Packing, Received, receive};

const ID: MigrationId = MigrationId([1; 16]);
const JOURNAL: JournalId = JournalId([2; 16]);
/// More than anything takes here: whatever is sent arrives at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest piece: it fits into a message, however badly it can be compressed.
const MOST: usize = 60_000;

/// What another host sends, made of any bytes.
struct Script {
    packing: Packing,
    frames: Vec<Vec<u8>>,
    /// What has to be received, if nothing of it is damaged.
    content: Option<Vec<u8>>,
}

impl Script {
    /// Pieces: a kind, a length of 16 bits, and so many bytes.
    fn read(bytes: &[u8]) -> Self {
        let (first, mut rest) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
        let packing = if first & 1 == 0 { Packing::None } else { Packing::Zstd };
        let (mut frames, mut content) = (Vec::new(), Some(Vec::new()));
        while let Some(([kind, low, high], behind)) = rest.split_first_chunk::<3>() {
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
            let (piece, behind) = behind.split_at(length);
            let piece = piece.get(..MOST).unwrap_or(piece);
            rest = behind;
            match kind % 4 {
                0 => {
                    content.as_mut().into_iter().for_each(|all| all.extend_from_slice(piece));
                    frames.push(data(&packing.pack(piece)));
                }
                1 => {
                    content = None;
                    frames.push(data(piece));
                }
                2 => frames.extend(encode(&Packet::Note(String::from_utf8_lossy(piece).into_owned()))),
                _ => {
                    content = None;
                    frames.push(piece.to_vec());
                }
            }
        }
        Self { packing, frames, content }
    }
}

fn data(bytes: &[u8]) -> Vec<u8> {
    let mut frame = DataFrame::of(ID, JOURNAL);
    frame.with(bytes.get(..MAX_DATA).unwrap_or(bytes)).map(<[u8]>::to_vec).unwrap_or_default()
}

/// Receives what the bytes make another host send.
pub(crate) fn run(bytes: &[u8]) {
    let script = Script::read(bytes);
    let Ok((here, mut there)) = UnixStream::pair() else { return };
    let hello = Hello { oldest: 1, newest: 1, host: "a".to_owned(), journal: JOURNAL, boot: Uuid::nil() };
    let end = Body::StreamEnd { length: 0, digest: Digest([0; 16]) };
    let end = encode(&Packet::Message(Message { id: ID, journal: JOURNAL, body: end }));
    let frames: Vec<_> = encode(&Packet::Hello(hello)).into_iter().chain(script.frames).chain(end).collect();
    let count = frames.len();
    let sender = std::thread::spawn(move || {
        // The receiver may have ended it.
        let _ = frames.iter().try_for_each(|frame| there.write_all(frame));
        there
    });
    let own =
        Identity { host: "b".to_owned(), journal: OwnJournal { id: JOURNAL, since: 0 }, boot: Uuid::nil() };
    let mut received = Vec::new();
    let mut channel = PeerChannel::over(here, &own, PATIENCE).expect("both have said HELLO");
    let ended = receive(&mut channel, (ID, script.packing), &mut received, PATIENCE, &Cancel::new());
    drop(channel);
    let _ = sender.join();
    assert!(received.len() <= count * MAX_DATA, "more was unpacked than can have been packed");
    match (ended, script.content) {
        (Received::End(transferred, _), content) => {
            assert_eq!(transferred.length, received.len() as u64);
            assert!(content.is_none_or(|content| content == received), "the stream was changed");
        }
        (other, Some(_)) => panic!("a proper stream was not received: {other:?}"),
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_all_kinds_are_received_or_refused() {
        run(&[]);
        for packing in [0, 1] {
            run(&[packing, 0, 3, 0, 7, 8, 9, 2, 1, 0, b'x', 0, 2, 0, 1, 1]);
            run(&[packing, 0, 3, 0, 7, 8, 9, 1, 3, 0, 1, 2, 3]);
            run(&[packing, 0, 3, 0, 7, 8, 9, 3, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        }
    }
}
