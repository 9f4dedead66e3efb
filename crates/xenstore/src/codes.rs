//! The numbers of messages and the names of errors.

use core::fmt;

use crate::path::shown;

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $raw:literal,)*) => {
        /// What a message asks for or tells (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum MessageType {
            $($(#[$doc])* $name,)*
            /// A number that has no meaning in the version of the protocol known here.
            Other(u32),
        }

        impl MessageType {
            /// The number on the wire.
            #[must_use]
            pub const fn to_raw(self) -> u32 {
                match self {
                    $(Self::$name => $raw,)*
                    Self::Other(raw) => raw,
                }
            }

            /// The meaning of a number on the wire; every number has one.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Self {
                match raw {
                    $($raw => Self::$name,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

message_types! {
    /// A command for xenstored itself.
    Control = 0,
    /// Lists a node's children.
    Directory = 1,
    /// Reads a node's value.
    Read = 2,
    /// Reads a node's permissions.
    GetPerms = 3,
    /// Sets a watch.
    Watch = 4,
    /// Removes a watch.
    Unwatch = 5,
    /// Starts a transaction.
    TransactionStart = 6,
    /// Commits or drops a transaction.
    TransactionEnd = 7,
    /// Connects a domain to xenstored.
    Introduce = 8,
    /// Disconnects a domain from xenstored.
    Release = 9,
    /// Asks for a domain's directory.
    GetDomainPath = 10,
    /// Writes a node's value.
    Write = 11,
    /// Makes a node.
    Mkdir = 12,
    /// Removes a node and all below it.
    Rm = 13,
    /// Sets a node's permissions.
    SetPerms = 14,
    /// Tells that something watched has changed; only xenstored sends it, unasked.
    WatchEvent = 15,
    /// The answer to a request that failed.
    Error = 16,
    /// Asks whether a domain is connected to xenstored.
    IsDomainIntroduced = 17,
    /// Lets `@releaseDomain` fire again for a domain that was resumed.
    Resume = 18,
    /// Gives a domain the rights of another.
    SetTarget = 19,
    /// Removes all watches and transactions of the caller.
    ResetWatches = 21,
    /// Lists a part of a node's children.
    DirectoryPart = 22,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why xenstored refused a request: the names of `xsd_errors` in `xs_wire.h`.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A name that is not in the header's list, cut when it is long.
            Other(String),
        }

        impl ErrorCode {
            /// The name on the wire.
            #[must_use]
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(name) => name,
                }
            }

            /// The meaning of a name on the wire.
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($text => Self::$name,)*
                    other => Self::Other(shown(other)),
                }
            }
        }
    };
}

error_codes! {
    /// The request is malformed or makes no sense.
    Invalid = "EINVAL",
    /// The caller may not do this with the node.
    Access = "EACCES",
    /// It is there already.
    Exists = "EEXIST",
    /// It is a directory.
    IsDirectory = "EISDIR",
    /// There is no such node, transaction or domain.
    NoEntry = "ENOENT",
    /// xenstored, or the caller's share of it, is out of memory.
    NoMemory = "ENOMEM",
    /// A quota of the caller is used up: xenstored's name for it.
    NoSpace = "ENOSPC",
    /// A quota of the caller is used up: oxenstored's name for it, which is not in the header's list.
    Quota = "EQUOTA",
    /// xenstored could not read or write its store.
    Io = "EIO",
    /// The directory is not empty.
    NotEmpty = "ENOTEMPTY",
    /// xenstored does not know this request.
    NotImplemented = "ENOSYS",
    /// The store cannot be written.
    ReadOnly = "EROFS",
    /// xenstored is busy with another request of this kind.
    Busy = "EBUSY",
    /// A transaction met a change that someone else made; it can be tried again.
    Again = "EAGAIN",
    /// The domain is connected already.
    IsConnected = "EISCONN",
    /// The answer is longer than a message; of xenstored also: a quota of watches is used up; of oxenstored: the value is
    /// longer than 2048 bytes, its quota even for domain 0.
    TooBig = "E2BIG",
    /// The caller may not do this at all.
    Permission = "EPERM",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
