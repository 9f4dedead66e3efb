use core::fmt;

use crate::codes::MessageType;

/// A request in words, such as `Reading /local/domain/3/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    kind: MessageType,
    subject: String,
}

impl Operation {
    pub(crate) fn new(kind: MessageType, subject: &str) -> Self {
        Self { kind, subject: subject.to_owned() }
    }

    /// What was asked for.
    #[must_use]
    pub const fn kind(&self) -> MessageType {
        self.kind
    }

    /// The path or domain that it was asked of; empty when it was neither.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            MessageType::Control => "Controlling xenstored",
            MessageType::Directory | MessageType::DirectoryPart => "Listing",
            MessageType::Read => "Reading",
            MessageType::GetPerms => "Reading the permissions of",
            MessageType::Watch => "Watching",
            MessageType::Unwatch => "Ending the watch on",
            MessageType::TransactionStart => "Starting a xenstore transaction",
            MessageType::TransactionEnd => "Committing a xenstore transaction",
            MessageType::Introduce => "Introducing to xenstored",
            MessageType::Release => "Releasing from xenstored",
            MessageType::GetDomainPath => "Getting the xenstore directory of",
            MessageType::Write => "Writing",
            MessageType::Mkdir => "Making",
            MessageType::Rm => "Removing",
            MessageType::SetPerms => "Setting the permissions of",
            MessageType::WatchEvent => "Waiting for an event on",
            MessageType::IsDomainIntroduced => "Checking the introduction of",
            MessageType::Resume => "Telling xenstored about the resumed",
            MessageType::SetTarget => "Setting the xenstore target of",
            MessageType::ResetWatches => "Resetting all watches",
            MessageType::Error | MessageType::Other(_) => "Sending an unknown request to xenstored about",
        };
        f.write_str(words)?;
        if self.subject.is_empty() { Ok(()) } else { write!(f, " {}", self.subject) }
    }
}
