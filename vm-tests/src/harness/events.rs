//! What the daemon says that happens to guests.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::{Happened, Happening};

use super::seconds;

/// A subscription; happenings since its beginning are not lost.
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

    /// Waits for a happening of a guest.
    pub(crate) fn wait_for(&mut self, name: &str, kind: &str, within: u64) -> Result<Happening> {
        let deadline = Instant::now() + seconds(within);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("\"{kind}\" of {name} did not happen within {within} s; this did: {:?}", self.seen);
            }
            self.client.set_deadline(Some(left))?;
            let (Happened { happening }, _) = self
                .client
                .next_reply("Monitor")
                .with_context(|| format!("waiting for \"{kind}\" of {name}; until now: {:?}", self.seen))?;
            self.seen.push(format!("{} {}", happening.name, happening.kind));
            if happening.name == name && happening.kind == kind {
                return Ok(happening);
            }
        }
    }
}
