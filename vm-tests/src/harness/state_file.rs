//! Our daemon's state files, as a person may find, copy and damage them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::command::outrigger;
use super::config::GuestConfig;
use super::daemons::Daemon;
use super::guest::list;
use super::network::bridge;
use super::seconds;

/// Where they are.
pub(crate) const FOLDER: &str = "/var/lib/outrigger/guests";

/// The state file of a guest.
pub(crate) fn path(uuid: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{uuid}.json"))
}

/// A state file with another text, as long as this lives. The daemon was stopped while the text changed.
#[derive(Debug)]
pub(crate) struct Replaced {
    path: PathBuf,
    before: Option<String>,
}

impl Replaced {
    /// Puts this text into the file and restarts the daemon.
    pub(crate) fn with(path: &Path, text: &str) -> Result<Self> {
        let daemon = Daemon::stop()?;
        // From here on the file is as before on every way out.
        let replaced = Self { path: path.to_owned(), before: fs::read_to_string(path).ok() };
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        daemon.start()?;
        Ok(replaced)
    }

    /// As it is now, and gone when this is dropped, for a guest that is to be forgotten.
    pub(crate) fn gone_afterwards(path: &Path) -> Self {
        Self { path: path.to_owned(), before: None }
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if self.before.is_none() && !self.path.exists() {
            return;
        }
        // What fails here makes the case or the next one fail.
        let Ok(daemon) = Daemon::stop() else { return };
        let _ = match &self.before {
            Some(text) => fs::write(&self.path, text),
            None => fs::remove_file(&self.path),
        };
        let _ = daemon.start();
    }
}

/// The state file of a guest that is gone, with what any guest has: a loop device, a port of the bridge, a hotplug script
/// that has run.
#[derive(Debug)]
pub(crate) struct Ghost {
    pub(crate) uuid: String,
    text: String,
    domids: [u16; 2],
}

impl Ghost {
    /// Of a guest that is made and destroyed for this.
    pub(crate) fn of_a_real_guest() -> Result<Self> {
        let bridge = bridge()?;
        let guest = GuestConfig::hello("ghost")
            .nic(&format!("bridge={bridge}, script=vif-bridge"))
            .nic(&format!("bridge={bridge}"))
            .create()?;
        let uuid = guest.guest.uuid.clone();
        let text = fs::read_to_string(path(&uuid)).context("the guest has no state file")?;
        let domids = [guest.guest.domid.into(), guest.stub()?.into()];
        guest.destroy()?;
        Ok(Self { uuid, text, domids })
    }

    /// The file's text if its guest and stubdomain had had these numbers. Both its interfaces are then interface 0.
    pub(crate) fn text(&self, domids: [u16; 2], phase: &str, boot: Option<&str>) -> Result<String> {
        let mut text = self.text.clone();
        // In two turns, because the new number of one may be the old one of the other.
        for (at, old) in self.domids.iter().enumerate() {
            for devid in [0, 1] {
                text = text.replace(&format!("vif{old}.{devid}"), &format!("vif@{at}.0"));
                text = text.replace(&format!("backend/vif/{old}/{devid}"), &format!("backend/vif/@{at}/0"));
            }
        }
        for (at, new) in domids.iter().enumerate() {
            text = text.replace(&format!("@{at}"), &new.to_string());
        }
        let mut file: Value = serde_json::from_str(&text)?;
        file["domid"] = domids[0].into();
        file["stub_domid"] = domids[1].into();
        file["operation"] = match phase {
            "creating" => {
                json!({"kind": {"create": {"paused": false}}, "cursor": {"step": "", "way": "back"}})
            }
            "destroying" => json!({"kind": "destroy", "cursor": {"step": "", "way": "forward"}}),
            _ => Value::Null,
        };
        if let Some(boot) = boot {
            file["boot"] = boot.into();
        }
        Ok(serde_json::to_string_pretty(&file)?)
    }
}

/// Waits until the daemon neither lists a guest nor has its state file.
pub(crate) fn wait_until_forgotten(uuid: &str) -> Result<()> {
    let deadline = Instant::now() + seconds(30);
    loop {
        let is_listed = list()?.iter().any(|guest| guest.uuid == uuid);
        let has_file = path(uuid).exists();
        if !is_listed && !has_file {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the guest {uuid} is gone, but listed: {is_listed}, its state file there: {has_file}:\n{}",
            outrigger(&["list"])?
        );
        std::thread::yield_now();
    }
}
