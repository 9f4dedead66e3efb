//! A connection that is listened to all the time, so that a person at a prompt hears what happens at once.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use qmp::{Kind, Member, Message};
use serde_json::value::RawValue;

use super::client::{Client, Sender};

/// The connection has ended, and with it the session.
#[derive(Debug, thiserror::Error)]
#[error("The session has ended")]
pub(crate) struct Ended;

/// A session with a thread of its own that reads.
pub(crate) struct Session {
    sender: Sender,
    answers: Receiver<Message>,
    deadline: Duration,
}

impl Session {
    /// Listens from now on. `say` gets events, and why the connection ended.
    pub(crate) fn start(
        client: Client,
        deadline: Duration,
        mut say: impl FnMut(News) + Send + 'static,
    ) -> Result<Self> {
        client.set_deadline(None)?;
        let sender = client.sender()?;
        let (answered, answers) = mpsc::channel();
        let mut client = client;
        // It ends with the connection, or with the process.
        thread::spawn(move || {
            loop {
                match client.event() {
                    Ok(message) if message.kind() == Kind::Event => say(News::Event(message)),
                    Ok(message) => {
                        if answered.send(message).is_err() {
                            return;
                        }
                    }
                    Err(error) => return say(News::End(error)),
                }
            }
        });
        Ok(Self { sender, answers, deadline })
    }

    /// Has a command executed.
    pub(crate) fn call(&mut self, command: &str, arguments: Option<&str>) -> Result<Box<RawValue>> {
        let id = self.sender.ask(command, arguments).context(Ended)?;
        let until = Instant::now() + self.deadline;
        loop {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                // An answer that is late for an earlier command is dropped.
                Ok(message) if message.read::<u64>(Member::Id) != Some(id) => {}
                Ok(message) => return super::client::returned(&message),
                Err(RecvTimeoutError::Timeout) => bail!("No answer in time"),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended.into()),
            }
        }
    }

    /// The connection has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        loop {
            match self.answers.try_recv() {
                Ok(_) => {}
                Err(mpsc::TryRecvError::Empty) => return false,
                Err(mpsc::TryRecvError::Disconnected) => return true,
            }
        }
    }
}

/// What is heard by the way.
#[derive(Debug)]
pub(crate) enum News {
    /// An event.
    Event(Message),
    /// The connection has ended, for this reason.
    End(anyhow::Error),
}
