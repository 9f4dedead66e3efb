//! The words between a memory stream's helper process and the program that started it: lines of ASCII, the helper's
//! requests one way and answers, one number each, the other.

use core::fmt::{self, Write as _};
use core::time::Duration;

use thiserror::Error;

use crate::memory::{Precopy, Verdict};

/// The longest line, its end included.
pub(crate) const MAX_LINE: usize = 512;
/// The longest text in [`Message::Failed`].
pub(crate) const MAX_TEXT: usize = 256;

/// What the helper says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Asks for the domain to be suspended.
    Suspend,
    /// Asks for the device model to report what it writes, or not to.
    LogDirty(bool),
    /// Asks how a live save goes on.
    Precopy(Precopy),
    /// Says how far the current round is.
    Progress(u64, u64),
    /// The stream is complete: the frames of the xenstore ring and of the console ring, 0 after a save.
    Done(u64, u64),
    /// The library failed: `errno`, and what it said about it.
    Failed(i32, String),
}

/// What is wrong with what the helper says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    /// A line that is none of the messages.
    #[error("it sent a line that has no meaning: {0:?}")]
    Meaningless(String),
    /// A line that does not end.
    #[error("it sent a line of more than {MAX_LINE} bytes")]
    TooLong,
    /// A message that has no place in this stream.
    #[error("it asked for what only a save asks for")]
    Misplaced,
    /// Its end of the connection does not take the answer.
    #[error("it does not read the answers")]
    Deaf,
}

impl Message {
    /// Reads a line, without its end.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        let wrong = || ProtocolError::Meaningless(line.escape_ascii().to_string());
        let text = core::str::from_utf8(line).map_err(|_| wrong())?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut parts = rest.split(' ');
        let mut next = || parts.next().unwrap_or_default();
        let message = match word {
            "suspend" if rest.is_empty() => return Ok(Self::Suspend),
            "logdirty" => match rest {
                "0" => return Ok(Self::LogDirty(false)),
                "1" => return Ok(Self::LogDirty(true)),
                _ => return Err(wrong()),
            },
            "failed" => {
                let (number, said) = rest.split_once(' ').unwrap_or((rest, ""));
                return Ok(Self::Failed(number.parse().map_err(|_| wrong())?, said.to_owned()));
            }
            "precopy" => Self::Precopy(Precopy {
                round: next().parse().map_err(|_| wrong())?,
                written_pages: number(next()).ok_or_else(wrong)?,
                dirty_pages: match next() {
                    "-" => None,
                    dirty => Some(number(dirty).ok_or_else(wrong)?),
                },
                elapsed: Duration::from_micros(number(next()).ok_or_else(wrong)?),
            }),
            "progress" => {
                Self::Progress(number(next()).ok_or_else(wrong)?, number(next()).ok_or_else(wrong)?)
            }
            "done" => Self::Done(number(next()).ok_or_else(wrong)?, number(next()).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        if parts.next().is_some() { Err(wrong()) } else { Ok(message) }
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

impl fmt::Display for Message {
    /// Writes the line, without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspend => f.write_str("suspend"),
            Self::LogDirty(on) => write!(f, "logdirty {}", u8::from(*on)),
            Self::Precopy(Precopy { round, written_pages, dirty_pages, elapsed }) => {
                write!(f, "precopy {round} {written_pages} ")?;
                match dirty_pages {
                    Some(dirty) => write!(f, "{dirty}")?,
                    None => f.write_char('-')?,
                }
                write!(f, " {}", elapsed.as_micros())
            }
            Self::Progress(done, total) => write!(f, "progress {done} {total}"),
            Self::Done(store, console) => write!(f, "done {store} {console}"),
            Self::Failed(errno, said) => {
                write!(f, "failed {errno} ")?;
                // ASCII only, so that the text can be cut at any byte.
                said.bytes()
                    .take(MAX_TEXT)
                    .map(|byte| if byte.is_ascii_graphic() { byte } else { b' ' })
                    .try_for_each(|byte| f.write_char(byte.into()))
            }
        }
    }
}

/// The answer to [`Message::Suspend`] and [`Message::LogDirty`].
pub(crate) const fn yes_or_no(yes: bool) -> &'static str {
    if yes { "1\n" } else { "0\n" }
}

/// The answer to [`Message::Precopy`], a number as in `xenguest.h` (`XGS_POLICY_*`).
pub(crate) const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Continue => "0\n",
        Verdict::StopAndCopy => "1\n",
        Verdict::Abort => "-1\n",
    }
}

/// What an answer to [`Message::Precopy`] says.
pub(crate) const fn decided(answer: i32) -> Verdict {
    match answer {
        0 => Verdict::Continue,
        1 => Verdict::StopAndCopy,
        _ => Verdict::Abort,
    }
}

/// Cuts what was received into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: Vec<u8>,
}

impl Lines {
    /// Takes what was received.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next line that is whole, without its end.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        match self.held.iter().position(|byte| *byte == b'\n') {
            Some(end) if end >= MAX_LINE => Err(ProtocolError::TooLong),
            Some(end) => {
                let mut line: Vec<u8> = self.held.drain(..=end).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.held.len() >= MAX_LINE => Err(ProtocolError::TooLong),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let precopy = |dirty_pages| {
            let elapsed = Duration::from_micros(1_234_567);
            Message::Precopy(Precopy { round: 3, written_pages: 1 << 40, dirty_pages, elapsed })
        };
        for message in [
            Message::Suspend,
            Message::LogDirty(true),
            Message::LogDirty(false),
            precopy(None),
            precopy(Some(0)),
            Message::Progress(1, u64::MAX),
            Message::Done(0xfeffc, 0xfefff),
            Message::Failed(-28, "No space left: internal error".to_owned()),
        ] {
            let line = message.to_string();
            assert!(line.len() < MAX_LINE && !line.contains('\n'), "{line}");
            assert_eq!(Message::parse(line.as_bytes()), Ok(message));
        }
    }

    #[test]
    fn a_long_text_with_odd_bytes_fits_into_one_line() {
        let line = Message::Failed(i32::MIN, "ä\n\0".repeat(1000)).to_string();
        assert!(line.len() < MAX_LINE && line.is_ascii() && !line.contains('\n'), "{line}");
        assert!(matches!(Message::parse(line.as_bytes()), Ok(Message::Failed(i32::MIN, _))));
    }

    #[test]
    fn a_line_that_is_not_quite_a_message_has_no_meaning() {
        for line in [
            "",
            " ",
            "suspend ",
            "suspend 1 2",
            "Suspend",
            "logdirty",
            "logdirty 2",
            "logdirty 1 ",
            "precopy",
            "precopy 1 2",
            "precopy 1 2 3",
            "precopy -1 2 3 4",
            "precopy 1 2 3 4 5",
            "precopy 1 2 -1 4",
            "precopy 1 2 3 -",
            "precopy 1 2 3 18446744073709551616",
            "precopy 4294967296 0 0 0",
            "progress 1",
            "progress 1 2 3",
            "progress 1 18446744073709551616",
            "done",
            "done 1",
            "done 1 2 3",
            "done 0x1 2",
            "done  1 2",
            "failed",
            "failed x",
            "failed 4294967296 text",
            "exec /bin/sh",
        ] {
            let parsed = Message::parse(line.as_bytes());
            match line {
                // Nothing follows the word.
                "suspend " => assert_eq!(parsed, Ok(Message::Suspend)),
                _ => assert_eq!(parsed, Err(ProtocolError::Meaningless(line.to_owned())), "{line}"),
            }
        }
        assert!(matches!(Message::parse(b"done \xff 1"), Err(ProtocolError::Meaningless(_))));
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for byte in b"suspend\n\nlogdirty 1\nprog" {
            lines.push(&[*byte]);
            while let Some(line) = lines.next().expect("short lines") {
                found.push(String::from_utf8(line).expect("ASCII"));
            }
        }
        assert_eq!(found, ["suspend", "", "logdirty 1"]);
        lines.push(b"ress 1 2\ndone 3 4\n");
        assert_eq!(lines.next(), Ok(Some(b"progress 1 2".to_vec())));
        assert_eq!(lines.next(), Ok(Some(b"done 3 4".to_vec())));
        assert_eq!(lines.next(), Ok(None));
    }

    #[test]
    fn a_line_that_does_not_end_is_refused() {
        let mut lines = Lines::default();
        lines.push(&[b'x'; MAX_LINE - 1]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next(), Err(ProtocolError::TooLong));
        lines.push(b"\n");
        assert_eq!(lines.next(), Err(ProtocolError::TooLong));
    }
}
