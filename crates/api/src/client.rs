//! A blocking client, for the command line.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::INTERFACE_NAME;
use crate::frame::{self, FrameError, Reply, Request, Splitter};
use crate::types::Refusal;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("Cannot reach outriggerd at {}; is it running (systemctl status outriggerd), and are you root?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Nothing listens on the socket, and the daemon reported why it ended.
    #[error("outriggerd has ended and reported: {words}")]
    Ended {
        /// The reason that it reported.
        words: String,
        /// The system's error for the socket.
        #[source]
        source: std::io::Error,
    },
    /// The connection was lost during a call.
    #[error("The connection to outriggerd was lost during {method}; guests are not affected; try again")]
    Broken {
        /// The method that was called.
        method: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The daemon's answer could not be read.
    #[error("outriggerd's answer to {method} is invalid; are both of the same version?")]
    Protocol {
        /// The method that was called.
        method: String,
        /// What was wrong.
        #[source]
        source: FrameError,
    },
    /// The daemon answered with an error of the interface.
    #[error("outriggerd refused {method}")]
    Refused {
        /// The method that was called.
        method: String,
        /// The interface's error.
        refusal: Box<Refusal>,
    },
    /// The daemon answered with an error that the interface does not have here: that of a later release, or varlink's.
    #[error("outriggerd answered {method} with {error}{}", because(message.as_deref()))]
    Unknown {
        /// The method that was called.
        method: String,
        /// The error's full name.
        error: String,
        /// What the error says to people.
        message: Option<String>,
    },
}

fn because(message: Option<&str>) -> String {
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

/// What errors of later releases can be expected to have.
#[derive(Deserialize)]
struct Message {
    message: String,
}

/// The file in which a daemon with this socket reports why it ended; the next one removes it once it is ready.
#[must_use]
pub fn last_words_file(socket: &Path) -> PathBuf {
    socket.with_extension("ended")
}

/// More of it would not help.
const MAX_WORDS: u64 = 4096;

fn last_words(socket: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(last_words_file(socket)).ok()?.take(MAX_WORDS).read_to_end(&mut bytes).ok()?;
    // A cut may go through a character.
    let words = String::from_utf8_lossy(&bytes);
    let words = words.trim();
    (!words.is_empty()).then(|| words.to_owned())
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    splitter: Splitter,
}

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Ended`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| match last_words(path) {
            Some(words) => ClientError::Ended { words, source },
            None => ClientError::Unreachable { path: path.to_owned(), source },
        })?;
        Ok(Self { stream, splitter: Splitter::default() })
    }

    /// Sets how long a reply may take; `None` waits for as long as the daemon lives, for calls whose own steps have
    /// deadlines in the daemon.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the socket refuses.
    pub fn set_deadline(&self, deadline: Option<Duration>) -> Result<(), ClientError> {
        self.stream
            .set_read_timeout(deadline)
            .map_err(|source| ClientError::Broken { method: "set a deadline".to_owned(), source })
    }

    /// Calls a method of `io.outrigger` by its short name and waits for its only reply.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Unreachable` and `Ended`.
    pub fn call<P: Serialize, R: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &P,
    ) -> Result<R, ClientError> {
        self.send(method, parameters, false)?;
        let (reply, _) = self.receive(method)?;
        Ok(reply)
    }

    /// Calls a method with `more` and hands each reply to `each`, until the last or until `each` returns false.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Unreachable` and `Ended`.
    pub fn call_more<P: Serialize, R: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &P,
        mut each: impl FnMut(R) -> bool,
    ) -> Result<(), ClientError> {
        self.begin(method, parameters)?;
        loop {
            let (reply, continues) = self.next_reply(method)?;
            if !each(reply) || !continues {
                return Ok(());
            }
        }
    }

    /// Sends a call with `more` without waiting, for a caller that must have subscribed before it does something else.
    ///
    /// # Errors
    /// [`ClientError::Broken`] and [`ClientError::Protocol`].
    pub fn begin<P: Serialize>(&mut self, method: &str, parameters: &P) -> Result<(), ClientError> {
        self.send(method, parameters, true)
    }

    /// Waits for the next reply of a call that was begun; the boolean says whether more will follow.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Unreachable` and `Ended`.
    pub fn next_reply<R: DeserializeOwned>(&mut self, method: &str) -> Result<(R, bool), ClientError> {
        self.receive(method)
    }

    fn send<P: Serialize>(&mut self, method: &str, parameters: &P, more: bool) -> Result<(), ClientError> {
        let protocol = |source| ClientError::Protocol { method: method.to_owned(), source };
        let request = Request {
            method: format!("{INTERFACE_NAME}.{method}"),
            parameters: Some(frame::parameters(parameters).map_err(protocol)?),
            more,
            oneway: false,
        };
        let bytes = frame::encode(&request).map_err(protocol)?;
        self.stream
            .write_all(&bytes)
            .map_err(|source| ClientError::Broken { method: method.to_owned(), source })
    }

    fn receive<R: DeserializeOwned>(&mut self, method: &str) -> Result<(R, bool), ClientError> {
        let protocol = |source| ClientError::Protocol { method: method.to_owned(), source };
        let broken = |source| ClientError::Broken { method: method.to_owned(), source };
        let frame = loop {
            if let Some(frame) = self.splitter.next_frame() {
                break frame;
            }
            let mut chunk = [0; 8192];
            let count = self.stream.read(&mut chunk).map_err(broken)?;
            if count == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.splitter.push(&chunk[..count]).map_err(protocol)?;
        };
        let reply: Reply = frame::decode(&frame).map_err(protocol)?;
        let Some(error) = reply.error else {
            let value = frame::read_parameters(reply.parameters.as_deref()).map_err(protocol)?;
            return Ok((value, reply.continues));
        };
        let refusal = error.strip_prefix(INTERFACE_NAME).and_then(|rest| {
            // The enum's tag is the short name; its content are the parameters.
            let tagged =
                serde_json::json!({ "error": rest.strip_prefix('.')?, "parameters": reply.parameters });
            serde_json::from_value::<Refusal>(tagged).ok()
        });
        let method = method.to_owned();
        let Some(refusal) = refusal else {
            let message = frame::read_parameters(reply.parameters.as_deref()).ok();
            let message = message.map(|Message { message }| message);
            return Err(ClientError::Unknown { method, error, message });
        };
        Err(ClientError::Refused { method, refusal: Box::new(refusal) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_ended_by_itself_says_why() {
        let folder = std::env::temp_dir().join(format!("outrigger-api-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("d.sock");
        let failed = || Client::connect(&socket).unwrap_err();
        assert!(matches!(failed(), ClientError::Unreachable { .. }));
        std::fs::write(last_words_file(&socket), "the connection to xenstored is lost\n").unwrap();
        assert!(failed().to_string().ends_with("reported: the connection to xenstored is lost"));
        // The cut goes through a character.
        std::fs::write(last_words_file(&socket), "x".to_owned() + &"é".repeat(1 << 20)).unwrap();
        assert!(failed().to_string().len() < 5000);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
