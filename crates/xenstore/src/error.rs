use core::time::Duration;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::codes::ErrorCode;
use crate::operation::Operation;
use crate::path::PathError;

/// Why something with xenstore did not work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no way to xenstored.
    #[error(
        "Could not connect to xenstored at {path}: is xenstored running, and is this a Xen domain? \
         (XENSTORED_PATH names another socket)",
        path = path.display()
    )]
    Connect {
        /// The socket or device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// xenstored ended the connection, or broke the protocol so that it had to be ended.
    #[error(
        "{operation}: the connection to xenstored is lost. Domains keep running, but xenstored cannot be restarted \
         without its state: see its log"
    )]
    ConnectionLost {
        /// What was being done.
        operation: Operation,
    },
    /// The answer or event did not come in time.
    #[error("{operation}: no answer from xenstored within {after:?}; it may hang, see its log")]
    Timeout {
        /// What was being done.
        operation: Operation,
        /// How long it was waited for.
        after: Duration,
    },
    /// A condition on a node did not come true in time.
    #[error("{path} did not reach the expected state within {after:?}; its value is {last}")]
    NotReached {
        /// The node.
        path: String,
        /// How long it was waited for.
        after: Duration,
        /// The last value seen, as text, or that there is no node.
        last: String,
    },
    /// xenstored answered with an error.
    #[error("{operation}: xenstored refused it with {code} ({hint})", hint = hint(code))]
    Refused {
        /// What was being done.
        operation: Operation,
        /// What xenstored said.
        code: ErrorCode,
    },
    /// Others changed the same nodes each time that a transaction was tried.
    #[error(
        "A xenstore transaction conflicted with other writers {attempts} times and was abandoned; use \
         xenstore-watch to find what keeps writing there"
    )]
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// The path and value are longer than a message can be.
    #[error("{operation}: path and value have {length} bytes; xenstore accepts at most {limit} here")]
    TooLong {
        /// What was being done.
        operation: Operation,
        /// The length in bytes.
        length: usize,
        /// The most that is allowed: 4096 on xenstored's socket, 16 less on Linux's `/dev/xen/xenbus`.
        limit: usize,
    },
    /// It would destroy the host's store, and is therefore never sent.
    #[error("{operation}: not sent, because oxenstored would remove every node of the host")]
    Destructive {
        /// What was asked for.
        operation: Operation,
    },
    /// The answer is not what the protocol says.
    #[error("{operation}: xenstored's answer is malformed: {what}")]
    BadAnswer {
        /// What was being done.
        operation: Operation,
        /// What is wrong with it.
        what: String,
    },
    /// A node's value is not what it has to be.
    #[error("The xenstore node {path} is not {expected}: {found}")]
    BadValue {
        /// The node.
        path: String,
        /// What it has to be.
        expected: &'static str,
        /// What it is, cut when it is long.
        found: String,
    },
    /// A path that had to be built is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The kernel refused to move the bytes.
    #[error("{operation}: the connection to xenstored failed")]
    Io {
        /// What was being done.
        operation: Operation,
        /// What the kernel said.
        source: io::Error,
    },
    /// A watch's callback called xenstore, which would wait for itself.
    #[error("{operation}: not possible inside a watch's callback; pass the event to another thread first")]
    InCallback {
        /// What was being done.
        operation: Operation,
    },
}

impl StoreError {
    /// What xenstored answered, when it answered with an error.
    #[must_use]
    pub fn code(&self) -> Option<&ErrorCode> {
        if let Self::Refused { code, .. } = self { Some(code) } else { None }
    }

    /// Whether the connection is gone, so that every further call on it fails too.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::ConnectionLost { .. })
    }
}

fn hint(code: &ErrorCode) -> &'static str {
    match code {
        ErrorCode::Access => {
            "this domain has no permission for this node; `xenstore-ls -fp` shows permissions"
        }
        ErrorCode::Permission => "only the control domain may do this",
        ErrorCode::NoSpace | ErrorCode::Quota => {
            "a quota of this domain is exhausted; `xenstore-control quota` shows quotas"
        }
        ErrorCode::TooBig => {
            "a quota of this domain is exhausted, or the value or answer is too long (oxenstored stores at most 2048 \
             bytes in a node); `xenstore-control quota` shows quotas"
        }
        ErrorCode::NoEntry => "there is no such node, transaction or domain",
        ErrorCode::NoMemory => "xenstored or this domain's share of it is out of memory",
        ErrorCode::Invalid => "xenstored found the request malformed",
        ErrorCode::Exists => "it already exists",
        ErrorCode::Again => "another client changed the same nodes",
        ErrorCode::NotImplemented => "this xenstored does not support the request",
        _ => "see the log of xenstored",
    }
}
