//! Commands of our own that a client may give on its connection, named as QAPI wants extensions to be named.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ClientId, Mux, text};
use crate::error::ErrorClass;
use crate::message::{Member, Message};

/// What the names of our commands begin with.
pub(super) const PREFIX: &str = "__io.outrigger_";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscribe {
    events: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeRole {
    role: Option<String>,
    #[serde(default, rename = "unsafe")]
    toolstack: bool,
}

impl Mux {
    /// The guest has left this host, and its device model is about to end: clients are told why.
    pub fn guest_left(&mut self, data: &Value) {
        self.tell_all("OUTRIGGER_GUEST_LEFT", data);
    }

    pub(super) fn own_command(&mut self, id: ClientId, command: &str, message: &Message, out_of_band: bool) {
        let arguments = message.get(Member::Arguments).unwrap_or("{}");
        let outcome = match command.strip_prefix(PREFIX) {
            Some("subscribe") => self.subscribe(id, arguments),
            Some("role") => self.take_role(id, arguments),
            Some("status") => Ok(self.status(id)),
            _ => Err((ErrorClass::CommandNotFound, "Outrigger has no such command".to_owned())),
        };
        let own_id = message.get(Member::Id);
        let text = match outcome {
            Ok(answer) => text::answer(&answer, own_id),
            Err((class, text)) => text::error(&class, &text, own_id),
        };
        self.reply(id, text, out_of_band);
    }

    fn subscribe(&mut self, id: ClientId, arguments: &str) -> Result<String, (ErrorClass, String)> {
        let Subscribe { events } = serde_json::from_str(arguments).map_err(generic)?;
        if let Some(client) = self.clients.get_mut(&id) {
            client.wanted = Some(events);
        }
        Ok("{}".to_owned())
    }

    fn take_role(&mut self, id: ClientId, arguments: &str) -> Result<String, (ErrorClass, String)> {
        let TakeRole { role, toolstack } = serde_json::from_str(arguments).map_err(generic)?;
        let Some(client) = self.clients.get_mut(&id) else { return Ok("{}".to_owned()) };
        let name = role.unwrap_or_else(|| client.role.name().to_owned());
        let Some(role) = self.policy.take(client.peer, &name, toolstack) else {
            let names: Vec<_> = self.policy.names().collect();
            let shown = crate::error::harmless(&name, 64);
            let text = format!(
                "the role {shown} does not exist or is not allowed for you; the roles are: {}",
                names.join(", ")
            );
            return Err((ErrorClass::Generic, text));
        };
        client.role = role;
        Ok(json!({"role": name, "unsafe": toolstack}).to_string())
    }

    fn status(&self, id: ClientId) -> String {
        let role = self.clients.get(&id).map(|client| client.role.name().to_owned());
        let counts = self.counts;
        json!({
            "session": if self.is_up() { "up" } else { "down" },
            "role": role,
            "clients": self.clients.len(),
            "in-flight": self.flight.len(),
            "sessions": counts.sessions,
            "requests": counts.requests,
            "events": counts.events,
            "events-dropped": counts.dropped,
            "strikes": counts.strikes,
        })
        .to_string()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn generic(error: serde_json::Error) -> (ErrorClass, String) {
    (ErrorClass::Generic, error.to_string())
}
