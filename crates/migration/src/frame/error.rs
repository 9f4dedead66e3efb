use thiserror::Error;

/// The size of the largest body in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Length and type.
pub(super) const HEAD: usize = 6;
pub(super) const SUM: usize = 4;
/// What is read at once: two of the largest frames.
pub(super) const MAX_BUFFER: usize = 2 * (HEAD + MAX_BODY + SUM);

/// Why bytes are not messages, or a message cannot be sent. After an error of the decoder the channel is closed.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than any that is accepted.
    #[error("The other host sent a message of {length} bytes; at most {MAX_BODY} are accepted")]
    TooLong {
        /// The body's length in bytes.
        length: u32,
    },
    /// The checksum is wrong.
    #[error("The other host's message of type {kind} is damaged: its checksum is wrong")]
    Checksum {
        /// The type.
        kind: u16,
    },
    /// The type is unknown.
    #[error("The other host sent a message of type {kind}, which is unknown here; it is of a newer version")]
    UnknownType {
        /// The type.
        kind: u16,
    },
    /// The body's version is unknown.
    #[error("The other host sent a message of type {kind} in version {version}, which is unknown here")]
    UnknownVersion {
        /// The type.
        kind: u16,
        /// The version.
        version: u8,
    },
    /// The body is not what its type demands.
    #[error("The other host's message of type {kind} has no valid {field}")]
    Field {
        /// The type.
        kind: u16,
        /// What is missing or wrong.
        field: &'static str,
    },
    /// More bytes were pushed than the decoder stores.
    #[error("More than {MAX_BUFFER} bytes of the other host wait to be read")]
    Overflow,
    /// A message that is to be sent does not fit.
    #[error("A message has {length} bytes; at most {MAX_BODY} can be sent")]
    CannotSend {
        /// The body's length in bytes.
        length: usize,
    },
}
