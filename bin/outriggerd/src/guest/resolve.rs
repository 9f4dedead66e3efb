//! Settling a migration whose end is not known. Blocks on the other host.

use std::path::PathBuf;

use api::types::{Refusal, ResolveKind, ResolveParameters, Resolved};
use toolstack::{
    Cause, Guest, HandoverError, MigrationRole, PeerChannel, Resolve, ResolveOutcome, Toolstack,
};

use crate::refusal::JobError;

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Resolving {
    /// The socket to which the daemon connects, for a channel to the other host.
    channel: Option<PathBuf>,
    how: ResolveKind,
    answer: String,
    operator: String,
}

impl Resolving {
    /// Reads the parameters of a call.
    ///
    /// # Errors
    /// When what the way needs is missing.
    pub(crate) fn read(parameters: ResolveParameters) -> Result<Self, Refusal> {
        let ResolveParameters { channel, how, answer, operator, .. } = parameters;
        let missing = match how {
            ResolveKind::Answer if answer.is_empty() => Some("the answer is missing"),
            ResolveKind::AssumeReceiverDead | ResolveKind::AssumeSenderDead if operator.is_empty() => {
                Some("the operator's name is missing")
            }
            _ => None,
        };
        let channel = (!channel.is_empty()).then(|| PathBuf::from(channel));
        let wrong = channel.as_ref().is_some_and(|path| path.is_relative());
        match missing.or(wrong.then_some("the path of the channel is not absolute")) {
            Some(why) => Err(Refusal::BadConfig { diagnostics: format!("error: {why}\n") }),
            None => Ok(Self { channel, how, answer, operator }),
        }
    }

    /// Settles it; returns the guest if it is here now.
    ///
    /// # Errors
    /// [`HandoverError::Unresolved`] when nothing is decided yet.
    pub(super) fn run(
        self,
        toolstack: &Toolstack,
        guest: &str,
        events: &mut dyn FnMut(toolstack::Event),
    ) -> Result<(Option<Guest>, Resolved), JobError> {
        let channel = self.connect(toolstack)?;
        let Self { answer, operator, .. } = self;
        let how = match self.how {
            ResolveKind::Ask => Resolve::Ask,
            ResolveKind::Answer => Resolve::Answer(answer),
            ResolveKind::AssumeReceiverDead => Resolve::AssumeReceiverDead { operator },
            ResolveKind::AssumeSenderDead => Resolve::AssumeSenderDead { operator },
        };
        let ResolveOutcome { state, answer, guest, boots } =
            toolstack.resolve(guest, &how, channel, events)?;
        if let Some(guest) = &guest {
            check_settled(toolstack, guest)?;
        }
        Ok((guest, Resolved { state, answer, boots }))
    }

    /// Connects to the other host. For an assumption it is no error that the host cannot be reached: it is said to be off.
    fn connect(&self, toolstack: &Toolstack) -> Result<Option<PeerChannel>, JobError> {
        let Some(path) = &self.channel else { return Ok(None) };
        match (toolstack.connect_peer(path), self.how) {
            (Ok(channel), _) => Ok(Some(channel)),
            (Err(_), ResolveKind::AssumeReceiverDead | ResolveKind::AssumeSenderDead) => Ok(None),
            (Err(error), ResolveKind::Ask | ResolveKind::Answer) => Err(error.into()),
        }
    }
}

/// Fails if the guest still waits for the other host.
fn check_settled(toolstack: &Toolstack, guest: &Guest) -> Result<(), JobError> {
    let waits = toolstack.migrations()?.into_iter().find(|migration| {
        migration.guest == guest.id() && migration.role == MigrationRole::Sender && migration.unresolved
    });
    match waits {
        Some(migration) => {
            Err(Cause::from(HandoverError::Unresolved { name: guest.name.clone(), host: migration.peer })
                .into())
        }
        None => Ok(()),
    }
}
