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
    channel: Way,
    /// The migration, if it is not only known by its guest.
    migration: Option<String>,
    how: ResolveKind,
    answer: String,
    operator: String,
}

/// The way to the other host.
#[derive(Debug)]
enum Way {
    None,
    /// A socket to which the daemon connects.
    Socket(PathBuf),
    Open(PeerChannel),
}

impl Resolving {
    /// Asks another host, which has opened this channel, about a migration.
    pub(super) fn through(channel: PeerChannel, migration: String) -> Self {
        Self {
            channel: Way::Open(channel),
            migration: Some(migration),
            how: ResolveKind::Ask,
            answer: String::new(),
            operator: String::new(),
        }
    }

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
            None => {
                let channel = channel.map_or(Way::None, Way::Socket);
                Ok(Self { channel, migration: None, how, answer, operator })
            }
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
        let Self { channel, migration, how, answer, operator } = self;
        let channel = connect(toolstack, channel, how)?;
        let how = match how {
            ResolveKind::Ask => Resolve::Ask,
            ResolveKind::Answer => Resolve::Answer(answer),
            ResolveKind::AssumeReceiverDead => Resolve::AssumeReceiverDead { operator },
            ResolveKind::AssumeSenderDead => Resolve::AssumeSenderDead { operator },
        };
        let ResolveOutcome { state, answer, guest, boots } =
            toolstack.resolve(migration.as_deref().unwrap_or(guest), &how, channel, events)?;
        if let Some(guest) = &guest {
            check_settled(toolstack, guest)?;
        }
        Ok((guest, Resolved { state, answer, boots }))
    }
}

/// Connects to the other host. For an assumption it is no error that the host cannot be reached: it is said to be off.
fn connect(toolstack: &Toolstack, way: Way, how: ResolveKind) -> Result<Option<PeerChannel>, JobError> {
    let path = match way {
        Way::None => return Ok(None),
        Way::Open(channel) => return Ok(Some(channel)),
        Way::Socket(path) => path,
    };
    match (toolstack.connect_peer(&path), how) {
        (Ok(channel), _) => Ok(Some(channel)),
        (Err(_), ResolveKind::AssumeReceiverDead | ResolveKind::AssumeSenderDead) => Ok(None),
        (Err(error), ResolveKind::Ask | ResolveKind::Answer) => Err(error.into()),
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
