use std::io::{self, ErrorKind};

use super::sinks::Archive;
use crate::history::{Cursor, History};

/// Bytes that are handed on at once.
pub(crate) const PIECE: usize = 16 * 1024;

/// How far one reader of a console is, and whether its descriptor takes more.
#[derive(Debug)]
pub(crate) struct Reader {
    cursor: Cursor,
    /// Bytes that may wait for it.
    limit: u64,
    /// What goes out before more of what is in memory: a message to the reader itself, or bytes from the archive.
    first: Vec<u8>,
    /// Whether that is a message, and no bytes of the console.
    first_is_message: bool,
    /// Its descriptor was full; nothing is tried before it says that it has room.
    blocked: bool,
}

/// What became of an attempt to bring a reader up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// It has everything.
    UpToDate,
    /// It takes no more for now.
    Blocked,
    /// It is gone.
    Gone,
}

impl Reader {
    pub(crate) const fn new(cursor: Cursor) -> Self {
        Self { cursor, limit: u64::MAX, first: Vec::new(), first_is_message: false, blocked: false }
    }

    /// The same with a bound on what waits for it, smaller than what is kept.
    pub(crate) const fn limited(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Up to where it was given everything.
    pub(crate) const fn reached(&self) -> u64 {
        if self.first_is_message { self.cursor.at() } else { self.cursor.at() - self.first.len() as u64 }
    }

    /// Whether more bytes should not come before it has taken some: it takes none for now, or a piece is waiting.
    pub(crate) const fn is_behind(&self, history: &History) -> bool {
        let behind = self.behind(history);
        behind > 0 && (self.blocked || behind >= PIECE as u64)
    }

    pub(crate) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(crate) const fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Bytes of the console that it does not have yet.
    pub(crate) const fn behind(&self, history: &History) -> u64 {
        history.behind(&self.cursor) + self.first.len() as u64
    }

    /// Gives the reader what it has not got yet, as much as `write` takes without waiting.
    pub(crate) fn pump(
        &mut self,
        history: &History,
        archive: &dyn Archive,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Pumped {
        if self.blocked {
            return Pumped::Blocked;
        }
        let mut buffer = [0; PIECE];
        while !self.blocked {
            if self.first.is_empty() {
                history.limit(&mut self.cursor, self.limit);
                self.fill(history, archive);
            }
            let from_history = self.first.is_empty();
            let bytes = if from_history {
                history.next(&mut self.cursor, &mut buffer)
            } else {
                self.first.as_slice()
            };
            if from_history && bytes.is_empty() {
                return Pumped::UpToDate;
            }
            match write(bytes) {
                Ok(0) => self.blocked = true,
                Ok(count) if from_history => self.cursor.advance(count),
                Ok(count) => {
                    self.first.drain(..count);
                    if self.first.is_empty() {
                        self.first = Vec::new();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Pumped::Gone,
            }
        }
        Pumped::Blocked
    }

    /// Brings what is not in memory, or a word about what is lost.
    fn fill(&mut self, history: &History, archive: &dyn Archive) {
        let place = history.beyond_memory(&mut self.cursor);
        let mut lost = self.cursor.take_lost();
        if lost == 0
            && let Some((position, count)) = place
        {
            if let Some(bytes) = archive.earlier(position, count) {
                self.cursor.advance(bytes.len());
                self.first = bytes;
                self.first_is_message = false;
                return;
            }
            history.fall_to_memory(&mut self.cursor);
            lost = self.cursor.take_lost();
        }
        if lost > 0 {
            self.first = format!("\r\n[outrigger-consoled: {lost} bytes dropped here]\r\n").into_bytes();
            self.first_is_message = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{HISTORY, IN_MEMORY};

    /// Has everything, each byte the low bits of its position.
    struct All;

    impl Archive for All {
        fn earlier(&self, start: u64, count: u64) -> Option<Vec<u8>> {
            Some((start..start + count.min(1000)).map(|at| (at % 251) as u8).collect())
        }
    }

    struct Nothing;

    impl Archive for Nothing {
        fn earlier(&self, _: u64, _: u64) -> Option<Vec<u8>> {
            None
        }
    }

    fn read_all(reader: &mut Reader, history: &History, archive: &dyn Archive) -> Vec<u8> {
        let mut got = Vec::new();
        let pumped = reader.pump(history, archive, |bytes| {
            let count = bytes.len().min(700);
            got.extend_from_slice(&bytes[..count]);
            Ok(count)
        });
        assert_eq!(pumped, Pumped::UpToDate);
        got
    }

    #[test]
    fn older_bytes_come_from_the_archive_if_it_has_them() {
        let stream: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let mut history = History::in_memory(IN_MEMORY);
        history.push(&stream).unwrap();
        let mut reader = Reader::new(history.oldest());
        assert_eq!(reader.behind(&history), HISTORY as u64);
        let got = read_all(&mut reader, &history, &All);
        assert!(got == stream[stream.len() - HISTORY..]);
        let got = read_all(&mut Reader::new(history.oldest()), &history, &Nothing);
        let mark = b"\r\n[outrigger-consoled: 32768 bytes dropped here]\r\n";
        assert!(got == [mark, &stream[stream.len() - IN_MEMORY..]].concat());
    }

    #[test]
    fn a_reader_that_slept_is_told_what_it_missed_and_goes_on() {
        let mut history = History::default();
        let mut reader = Reader::new(history.oldest());
        history.push(b"abc").unwrap();
        assert_eq!(reader.pump(&history, &Nothing, |_| Err(ErrorKind::WouldBlock.into())), Pumped::Blocked);
        history.push(&[b'x'; HISTORY]).unwrap();
        assert_eq!(reader.pump(&history, &Nothing, |_| panic!("tried though blocked")), Pumped::Blocked);
        reader.unblock();
        let mut got = Vec::new();
        let pumped = reader.pump(&history, &Nothing, |bytes| {
            let count = bytes.len().min(1000);
            got.extend_from_slice(&bytes[..count]);
            Ok(count)
        });
        assert_eq!(pumped, Pumped::UpToDate);
        let mark = b"\r\n[outrigger-consoled: 3 bytes dropped here]\r\n";
        assert_eq!(&got[..mark.len()], mark);
        assert_eq!(got.len(), mark.len() + HISTORY);
    }

    #[test]
    fn a_message_does_not_count_as_bytes_of_the_console() {
        let mut history = History::default();
        let mut reader = Reader::new(history.oldest()).limited(1);
        history.push(b"0123456789").unwrap();
        // The message is longer than all that the console has said.
        assert_eq!(reader.pump(&history, &Nothing, |_| Err(ErrorKind::WouldBlock.into())), Pumped::Blocked);
        assert_eq!(reader.reached(), 9);
        reader.unblock();
        assert!(read_all(&mut reader, &history, &Nothing).ends_with(b"here]\r\n9"));
        assert_eq!(reader.reached(), 10);
    }
}
