//! A blocking client, for the command line.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::INTERFACE_NAME;
use crate::frame::{self, Call, FrameError, Reply, Splitter};
use crate::types::Failure;

/// Why a call got no good answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("Cannot reach outriggerd at {}; is it running (systemctl status outriggerd), and are you root?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The daemon went away in the middle of a call.
    #[error("The connection to outriggerd broke during {method}; guests are not affected, ask again")]
    Broken {
        /// The method that was called.
        method: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The daemon's answer could not be read.
    #[error("The answer of outriggerd to {method} could not be understood; are both of the same version?")]
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
        failure: Box<Failure>,
    },
    /// The daemon answered with an error that the interface does not have.
    #[error("outriggerd answered {method} with {error}")]
    Unknown {
        /// The method that was called.
        method: String,
        /// The error's full name.
        error: String,
    },
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
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Unreachable { path: path.to_owned(), source })?;
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
    /// Any [`ClientError`] but `Unreachable`.
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
    /// Any [`ClientError`] but `Unreachable`.
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
    /// Any [`ClientError`] but `Unreachable`.
    pub fn next_reply<R: DeserializeOwned>(&mut self, method: &str) -> Result<(R, bool), ClientError> {
        self.receive(method)
    }

    fn send<P: Serialize>(&mut self, method: &str, parameters: &P, more: bool) -> Result<(), ClientError> {
        let protocol = |source| ClientError::Protocol { method: method.to_owned(), source };
        let call = Call {
            method: format!("{INTERFACE_NAME}.{method}"),
            parameters: Some(frame::parameters(parameters).map_err(protocol)?),
            more,
            oneway: false,
        };
        let bytes = frame::encode(&call).map_err(protocol)?;
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
        let Some(short) = error.strip_prefix("io.outrigger.") else {
            return Err(ClientError::Unknown { method: method.to_owned(), error });
        };
        // The enum's tag is the short name; its content are the parameters.
        let tagged = serde_json::json!({ "error": short, "parameters": reply.parameters });
        match serde_json::from_value::<Failure>(tagged) {
            Ok(failure) => {
                Err(ClientError::Refused { method: method.to_owned(), failure: Box::new(failure) })
            }
            Err(_) => Err(ClientError::Unknown { method: method.to_owned(), error }),
        }
    }
}
