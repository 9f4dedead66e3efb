use std::io::{self, ErrorKind};

use crate::history::{Cursor, History};

/// Bytes that are handed on at once.
pub(crate) const PIECE: usize = 16 * 1024;

/// Where older bytes of a console are found.
pub(crate) trait Archive {
    /// Returns bytes from a position of the stream on, at most `count` of them.
    fn earlier(&self, position: u64, count: u64) -> Earlier;
}

/// What an archive has.
#[derive(Debug)]
pub(crate) enum Earlier {
    /// These bytes.
    Bytes(Vec<u8>),
    /// They have to be read first: readers are brought up to date again when they are there.
    Later,
    /// They are not there.
    Missing,
}

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
    /// It waits for what it wants from the archive.
    waits: bool,
}

/// What became of an attempt to bring a reader up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// It has everything.
    UpToDate,
    /// It takes no more for now.
    Blocked,
    /// What it wants has to be read from a disk.
    Later,
    /// It is gone.
    Gone,
}

impl Reader {
    pub(crate) const fn new(cursor: Cursor) -> Self {
        Self {
            cursor,
            limit: u64::MAX,
            first: Vec::new(),
            first_is_message: false,
            blocked: false,
            waits: false,
        }
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
                if !self.fill(history, archive) {
                    return Pumped::Later;
                }
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

    /// Brings what is not in memory, or a word about what is lost. Returns false if it has to be waited for.
    fn fill(&mut self, history: &History, archive: &dyn Archive) -> bool {
        let place = history.beyond_memory(&mut self.cursor);
        let mut lost = self.cursor.take_lost();
        if core::mem::take(&mut self.waits) && lost > 0 {
            // What it waited for is out of date, and what is as old now would be too, before it is read.
            history.fall_to_memory(&mut self.cursor);
            lost += self.cursor.take_lost();
        } else if lost == 0
            && let Some((position, count)) = place
        {
            match archive.earlier(position, count) {
                Earlier::Bytes(bytes) => {
                    self.cursor.advance(bytes.len());
                    self.first = bytes;
                    self.first_is_message = false;
                    return true;
                }
                Earlier::Later => {
                    self.waits = true;
                    return false;
                }
                Earlier::Missing => history.fall_to_memory(&mut self.cursor),
            }
            lost = self.cursor.take_lost();
        }
        if lost > 0 {
            self.first = format!("\r\n[outrigger-consoled: {lost} bytes dropped here]\r\n").into_bytes();
            self.first_is_message = true;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{HISTORY, IN_MEMORY};

    /// Has everything, each byte the low bits of its position.
    struct All;

    impl Archive for All {
        fn earlier(&self, start: u64, count: u64) -> Earlier {
            Earlier::Bytes((start..start + count.min(1000)).map(|at| (at % 251) as u8).collect())
        }
    }

    struct Nothing;

    impl Archive for Nothing {
        fn earlier(&self, _: u64, _: u64) -> Earlier {
            Earlier::Missing
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

    /// Has to read everything first.
    struct Slow;

    impl Archive for Slow {
        fn earlier(&self, _: u64, _: u64) -> Earlier {
            Earlier::Later
        }
    }

    #[test]
    fn a_reader_that_falls_off_while_it_waits_for_the_archive_goes_on_in_memory() {
        let mut history = History::in_memory(IN_MEMORY);
        history.push(&[b'a'; HISTORY]).unwrap();
        let mut reader = Reader::new(history.oldest());
        for _ in 0..2 {
            let pumped = reader.pump(&history, &Slow, |_| panic!("there is nothing yet"));
            assert_eq!(pumped, Pumped::Later);
        }
        history.push(b"bcd").unwrap();
        let got = read_all(&mut reader, &history, &Slow);
        let mark = format!("\r\n[outrigger-consoled: {} bytes dropped here]\r\n", HISTORY - IN_MEMORY + 3);
        assert!(got == [mark.as_bytes(), &[b'a'; IN_MEMORY - 3], b"bcd"].concat());
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
