//! What a client says at the daemon's control socket, one line, and what the daemon answers.
//!
//! ```text
//! list                      →  ok, then a line a console: ID CONNECTED OUTPUT-BYTES VIEWERS TTY NAME UUID
//! view 5.3                  →  ok, then the console: the last 64 KiB, then what comes; what the client sends is input
//! view 5.3 since=1500       →  the same, beginning with what came in the last 1500 ms
//! view 5.name               →  the console whose channel has this name
//! stream 5.1                →  ok, then every byte from now on, and none lost: the domain waits for the client
//! anything else             →  error TEXT
//! ```
//! `view` and `stream` also accept `uuid=UUID`, the domain's UUID. Xen reuses the domid of a domain that is gone; with
//! a UUID, the request then fails instead of returning another domain's console.
//!
//! A line has at most [`LINE_MAX`] bytes. Nothing here does I/O.

use core::fmt;
use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;
use xen_types::DomId;

/// The longest line, its end included, in bytes.
pub const LINE_MAX: usize = 256;
/// The name of the control socket in the folder of the consoles' sockets.
pub const CONTROL: &str = "control";

/// Which console is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The domain.
    pub domid: DomId,
    /// Its number, or the name of its channel.
    pub which: Which,
    /// The domain's UUID; `None` for any domain that has the domid.
    pub uuid: Option<Uuid>,
}

/// A console of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By number.
    Number(u32),
    /// By the name of its channel.
    Name(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Number(number) => write!(f, "{}.{number}", self.domid),
            Which::Name(name) => write!(f, "{}.{name}", self.domid),
        }
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// All consoles.
    List,
    /// To be a viewer.
    View {
        /// Of which console.
        console: Wanted,
        /// Without what came before that long ago.
        since: Option<Duration>,
    },
    /// To be the one whom the domain waits for.
    Stream {
        /// At which console.
        console: Wanted,
    },
}

/// Why a line is no request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// No console is named.
    #[error("A request names a console: DOMID.NUMBER or DOMID.NAME")]
    Console,
    /// A word is not known.
    #[error("A request is list, view CONSOLE [since=MILLISECONDS] [uuid=UUID] or stream CONSOLE [uuid=UUID]")]
    Word,
}

impl Request {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// When it is no request.
    pub fn parse(line: &str) -> Result<Self, RequestError> {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next();
        if verb == Some("list") && words.next().is_none() {
            return Ok(Self::List);
        }
        let since_allowed = match verb {
            Some("view") => true,
            Some("stream") => false,
            _ => return Err(RequestError::Word),
        };
        let mut console = words.next().and_then(wanted).ok_or(RequestError::Console)?;
        let mut since = None;
        for word in words {
            match word.split_once('=') {
                Some(("since", millis)) if since_allowed => {
                    let millis = millis.parse().map_err(|_| RequestError::Word)?;
                    since = Some(Duration::from_millis(millis));
                }
                Some(("uuid", text)) => console.uuid = Some(uuid(text).ok_or(RequestError::Word)?),
                _ => return Err(RequestError::Word),
            }
        }
        Ok(if since_allowed { Self::View { console, since } } else { Self::Stream { console } })
    }
}

/// The line, with its end.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, console, since) = match self {
            Self::List => return f.write_str("list\n"),
            Self::View { console, since } => ("view", console, *since),
            Self::Stream { console } => ("stream", console, None),
        };
        write!(f, "{verb} {console}")?;
        if let Some(since) = since {
            write!(f, " since={}", since.as_millis())?;
        }
        if let Some(uuid) = console.uuid {
            write!(f, " uuid={uuid}")?;
        }
        f.write_str("\n")
    }
}

/// A UUID in its usual text form.
fn uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

fn wanted(text: &str) -> Option<Wanted> {
    let (domid, which) = text.split_once('.')?;
    let is_number = !which.is_empty() && which.bytes().all(|byte| byte.is_ascii_digit());
    let which = match which {
        "" => return None,
        number if is_number => Which::Number(number.parse().ok()?),
        // No channel has such a name; some of these characters are blanks to one reader and not to another.
        name if name.chars().any(|c| c.is_control() || c.is_whitespace()) => return None,
        name => Which::Name(name.to_owned()),
    };
    Some(Wanted { domid: domid.parse().ok()?, which, uuid: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let domid = DomId::new(5).unwrap();
        let console = |which| Wanted { domid, which, uuid: None };
        let uuid = Uuid::from_u128(0x1b4e_28ba_2fa1_11d2_883f_0016_d3cc_a427);
        let own = Wanted { uuid: Some(uuid), ..console(Which::Number(1)) };
        let since = Some(Duration::from_millis(1500));
        for (line, request) in [
            ("list\n", Request::List),
            ("view 5.3\n", Request::View { console: console(Which::Number(3)), since: None }),
            ("view 5.a.b since=1500\n", Request::View { console: console(Which::Name("a.b".into())), since }),
            ("stream 5.1\n", Request::Stream { console: console(Which::Number(1)) }),
            (
                "view 5.1 since=1500 uuid=1b4e28ba-2fa1-11d2-883f-0016d3cca427\n",
                Request::View { console: own.clone(), since },
            ),
            ("stream 5.1 uuid=1b4e28ba-2fa1-11d2-883f-0016d3cca427\n", Request::Stream { console: own }),
        ] {
            assert_eq!(request.to_string(), line);
            assert_eq!(Request::parse(line.trim_end()), Ok(request));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "list 1",
            "view",
            "view 5",
            "view 5.",
            "view x.1",
            "view 5.1 since=x",
            "stream 5.1 since=1",
            "view 5.1 uuid=",
            "view 5.1 uuid=1b4e28ba2fa111d2883f0016d3cca427",
            "stream 5.1 uuid=1b4e28ba-2fa1-11d2-883f-0016d3cca42x",
            "view 5.\u{b}",
        ] {
            assert!(Request::parse(line).is_err(), "{line}");
        }
    }
}
