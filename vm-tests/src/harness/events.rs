//! What the daemon says that happens to guests.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::{Event, Monitored};

use super::seconds;

/// A subscription; events since its beginning are not lost.
#[derive(Debug)]
pub(crate) struct Events {
    client: Client,
    seen: Vec<String>,
}

impl Events {
    /// Subscribes.
    pub(crate) fn subscribe() -> Result<Self> {
        let mut client = Client::connect(Path::new(api::DEFAULT_SOCKET))?;
        client.begin("Monitor", &serde_json::json!({}))?;
        Ok(Self { client, seen: Vec::new() })
    }

    /// Waits for an event of a guest.
    pub(crate) fn wait_for(&mut self, name: &str, kind: &str, within: u64) -> Result<Event> {
        let deadline = Instant::now() + seconds(within);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("\"{kind}\" of {name} did not happen within {within} s; this did: {:?}", self.seen);
            }
            self.client.set_deadline(Some(left))?;
            let (Monitored { event }, _) = self
                .client
                .next_reply("Monitor")
                .with_context(|| format!("waiting for \"{kind}\" of {name}; until now: {:?}", self.seen))?;
            self.seen.push(format!("{} {}", event.name, event.kind));
            if event.name == name && event.kind == kind {
                return Ok(event);
            }
        }
    }
}
