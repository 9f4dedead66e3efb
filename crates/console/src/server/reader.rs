use std::io::{self, ErrorKind};

use crate::history::{Cursor, History};

/// How far one reader of a console is, and whether its descriptor takes more.
#[derive(Debug)]
pub(crate) struct Reader {
    cursor: Cursor,
    /// Bytes that may wait for it.
    limit: u64,
    /// A message to the reader itself, which goes out before more of the console.
    notice: Vec<u8>,
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
        Self { cursor, limit: u64::MAX, notice: Vec::new(), blocked: false }
    }

    /// The same with a bound on what waits for it, smaller than what is kept.
    pub(crate) const fn limited(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Leaves out what is kept.
    pub(crate) const fn skip(&mut self, history: &History) {
        self.cursor = history.newest();
    }

    pub(crate) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(crate) const fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Bytes of the console that it does not have yet.
    pub(crate) const fn behind(&self, history: &History) -> u64 {
        history.behind(&self.cursor)
    }

    /// Gives the reader what it has not got yet, as much as `write` takes without waiting.
    pub(crate) fn pump(
        &mut self,
        history: &History,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Pumped {
        while !self.blocked {
            history.limit(&mut self.cursor, self.limit);
            let from_history = self.notice.is_empty();
            let bytes = if from_history { history.next(&mut self.cursor) } else { &self.notice };
            if from_history {
                let lost = self.cursor.take_lost();
                if lost > 0 {
                    self.notice =
                        format!("\r\n[outrigger-consoled: {lost} bytes dropped here]\r\n").into_bytes();
                    continue;
                }
                if bytes.is_empty() {
                    return Pumped::UpToDate;
                }
            }
            match write(bytes) {
                Ok(0) => self.blocked = true,
                Ok(count) if from_history => self.cursor.advance(count),
                Ok(count) => drop(self.notice.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Pumped::Gone,
            }
        }
        Pumped::Blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::HISTORY;

    #[test]
    fn a_reader_that_slept_is_told_what_it_missed_and_goes_on() {
        let mut history = History::default();
        let mut reader = Reader::new(history.oldest());
        history.push(b"abc");
        assert_eq!(reader.pump(&history, |_| Err(ErrorKind::WouldBlock.into())), Pumped::Blocked);
        history.push(&[b'x'; HISTORY]);
        assert_eq!(reader.pump(&history, |_| panic!("tried though blocked")), Pumped::Blocked);
        reader.unblock();
        let mut got = Vec::new();
        let pumped = reader.pump(&history, |bytes| {
            let count = bytes.len().min(1000);
            got.extend_from_slice(&bytes[..count]);
            Ok(count)
        });
        assert_eq!(pumped, Pumped::UpToDate);
        let mark = b"\r\n[outrigger-consoled: 3 bytes dropped here]\r\n";
        assert_eq!(&got[..mark.len()], mark);
        assert_eq!(got.len(), mark.len() + HISTORY);
    }
}
