//! How the toolstack, on threads that may block, asks a guest's QEMU.

use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::QmpError;

/// A typed command: its fields are its arguments.
pub trait Command: Serialize {
    /// Its name.
    const NAME: &'static str;
    /// What it gives back. Members that the type does not have are ignored.
    type Answer: DeserializeOwned;
}

/// A command with its arguments, ready to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// The command's name.
    pub command: String,
    /// Its arguments, an object.
    pub arguments: Option<Box<RawValue>>,
    /// Whether it is executed out of its turn, before those that wait.
    pub out_of_band: bool,
}

impl Request {
    /// A command without arguments.
    #[must_use]
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), arguments: None, out_of_band: false }
    }

    /// A command by name, with arguments.
    ///
    /// # Errors
    /// [`QmpError::BadRequest`] when they are no JSON.
    pub fn with(command: impl Into<String>, arguments: &impl Serialize) -> Result<Self, QmpError> {
        let command = command.into();
        match serde_json::value::to_raw_value(arguments) {
            Ok(raw) => Ok(Self { command, arguments: Some(raw), out_of_band: false }),
            Err(source) => Err(QmpError::BadRequest { command, source }),
        }
    }

    /// A typed command.
    ///
    /// # Errors
    /// [`QmpError::BadRequest`] when its arguments are no JSON.
    pub fn of<C: Command>(command: &C) -> Result<Self, QmpError> {
        Self::with(C::NAME, command)
    }

    /// The same, executed out of its turn. Only a few commands can be (`allow-oob` in QEMU's schema).
    #[must_use]
    pub fn out_of_band(mut self) -> Self {
        self.out_of_band = true;
        self
    }

    /// The line that goes to QEMU, with this id.
    #[must_use]
    pub fn line(&self, id: u64) -> String {
        let execute = if self.out_of_band { "exec-oob" } else { "execute" };
        let command = Value::from(self.command.as_str());
        match &self.arguments {
            Some(arguments) => {
                format!("{{\"{execute}\":{command},\"arguments\":{},\"id\":{id}}}\n", arguments.get())
            }
            None => format!("{{\"{execute}\":{command},\"id\":{id}}}\n"),
        }
    }
}

/// An event of QEMU. An unknown one is as good as a known one.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `DEVICE_DELETED`.
    pub name: String,
    /// What it says; null when nothing.
    pub data: Value,
}

impl Event {
    /// A member of its data as a string.
    #[must_use]
    pub fn text(&self, member: &str) -> Option<&str> {
        self.data.get(member).and_then(Value::as_str)
    }
}

/// Events of one subscription, in their order, from the moment of the subscription on.
pub trait Events: Send {
    /// The next event.
    ///
    /// # Errors
    /// [`QmpError::NoEvent`] at the deadline; [`QmpError::Lost`] when the session was lost, so that events may have
    /// been missed.
    fn next(&mut self, deadline: Instant) -> Result<Event, QmpError>;
}

impl dyn Events + '_ {
    /// The first event of which `wanted` is true; others are passed over.
    ///
    /// # Errors
    /// As for [`Events::next`].
    pub fn wait(
        &mut self,
        deadline: Instant,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        loop {
            let event = self.next(deadline)?;
            if wanted(&event) {
                return Ok(event);
            }
        }
    }
}

/// The monitor of one guest's QEMU.
pub trait Monitor: Send + Sync {
    /// Has a command executed and waits for its answer, at most until the deadline.
    ///
    /// # Errors
    /// Any [`QmpError`] but `NoEvent`.
    fn execute(&self, request: &Request, deadline: Instant) -> Result<Box<RawValue>, QmpError>;

    /// Subscribes to events by name; no names: all. Subscribe before the command whose event is waited for.
    ///
    /// # Errors
    /// [`QmpError::NoSession`].
    fn events(&self, names: &[&str]) -> Result<Box<dyn Events>, QmpError>;
}

/// Has a typed command executed; its answer is checked against its type.
///
/// # Errors
/// Any [`QmpError`] but `NoEvent`.
pub fn run<C: Command>(monitor: &dyn Monitor, command: &C, deadline: Instant) -> Result<C::Answer, QmpError> {
    let answer = monitor.execute(&Request::of(command)?, deadline)?;
    serde_json::from_str(answer.get())
        .map_err(|source| QmpError::BadAnswer { command: C::NAME.to_owned(), source })
}
