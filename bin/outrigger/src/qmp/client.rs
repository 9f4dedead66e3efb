//! A blocking client of a guest's QMP socket.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use qmp::{Decoder, Kind, Limits, Member, Message, harmless};
use serde_json::Value;
use serde_json::value::RawValue;

/// QEMU's refusal.
#[derive(Debug, thiserror::Error)]
#[error("{class}: {description}")]
pub(crate) struct Refused {
    class: String,
    description: String,
}

/// The end of a connection that is written to.
pub(crate) struct Sender {
    stream: UnixStream,
    next_id: u64,
}

impl Sender {
    /// Asks for a command; gives the id that its answer has.
    pub(crate) fn ask(&mut self, command: &str, arguments: Option<&str>) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let name = Value::from(command);
        let arguments = arguments.map(|arguments| format!(",\"arguments\":{arguments}")).unwrap_or_default();
        self.send(&format!("{{\"execute\":{name}{arguments},\"id\":{id}}}\n"))?;
        Ok(id)
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).context("The connection was lost")
    }
}

/// What a command has returned, or QEMU's refusal.
pub(crate) fn returned(answer: &Message) -> Result<Box<RawValue>> {
    if let Some(value) = answer.raw(Member::Return) {
        return Ok(value);
    }
    let error: Value = answer.read(Member::Error).unwrap_or_default();
    let text = |member: &str| harmless(error[member].as_str().unwrap_or("?"), 1000);
    Err(Refused { class: text("class"), description: text("desc") }.into())
}

/// A connection that has negotiated.
pub(crate) struct Client {
    sender: Sender,
    decoder: Decoder,
    /// Events that came while something else was waited for.
    events: VecDeque<Message>,
}

impl Client {
    /// Connects, waits for the greeting, negotiates.
    pub(crate) fn connect(socket: &Path, deadline: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("Cannot connect to the guest's QMP socket {}", socket.display()))?;
        stream.set_read_timeout(Some(deadline)).context("Cannot set a deadline")?;
        let sender = Sender { stream, next_id: 1 };
        let mut client = Self { sender, decoder: Decoder::new(Limits::QEMU), events: VecDeque::new() };
        let greeting = client.receive().context("No session with the guest's QEMU")?;
        if greeting.kind() != Kind::Greeting {
            bail!("The daemon sent no greeting");
        }
        client.call("qmp_capabilities", Some(r#"{"enable": []}"#))?;
        Ok(client)
    }

    /// How long an answer may take; nothing: for as long as the guest lives.
    pub(crate) fn set_deadline(&self, deadline: Option<Duration>) -> Result<()> {
        self.sender.stream.set_read_timeout(deadline).context("Cannot set a deadline")
    }

    fn receive(&mut self) -> Result<Message> {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(message) = self.decoder.next_message() {
                return message.context("The daemon's answer cannot be read");
            }
            let count = match self.sender.stream.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("Timed out"),
                Err(error) => return Err(error).context("The connection was lost"),
            };
            if count == 0 {
                bail!("The connection was closed: the guest is gone, or the daemon was stopped");
            }
            self.decoder.push(chunk.get(..count).unwrap_or_default());
        }
    }

    /// Has a command executed.
    pub(crate) fn call(&mut self, command: &str, arguments: Option<&str>) -> Result<Box<RawValue>> {
        self.sender.ask(command, arguments)?;
        returned(&self.answer()?)
    }

    /// The end to write to, beside this one.
    pub(crate) fn sender(&self) -> Result<Sender> {
        let stream = self.sender.stream.try_clone().context("Cannot duplicate the connection")?;
        Ok(Sender { stream, next_id: self.sender.next_id })
    }

    /// Sends a message as it is written.
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.sender.send(text)
    }

    /// The next message that is no event.
    pub(crate) fn answer(&mut self) -> Result<Message> {
        loop {
            let message = self.receive()?;
            match message.kind() {
                Kind::Event => self.events.push_back(message),
                _ => return Ok(message),
            }
        }
    }

    /// The next message, those first that came by the way.
    pub(crate) fn event(&mut self) -> Result<Message> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => self.receive(),
        }
    }
}
