//! Serial ports of guests that xl has made.

use std::fs::File;
use std::io::Read as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xenstore::{Store as _, Xenstore, XsPath};

use super::seconds;

/// What comes out of the first serial port of xl's guest.
pub(crate) struct Serial {
    name: String,
    texts: Receiver<Result<String>>,
    seen: String,
}

impl Serial {
    /// To be called before the guest starts: xl's QEMU in dom0 throws away what nobody reads.
    pub(crate) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), texts: serial_of(format!("{name}-dm")), seen: String::new() }
    }

    /// Waits until the guest has said these words.
    pub(crate) fn wait_for(&mut self, words: &str) -> Result<()> {
        self.wait_until(&format!("\"{words}\""), 120, |seen| seen.contains(words)).map(drop)
    }

    /// Waits until the guest has said anything.
    pub(crate) fn wait_for_byte(&mut self) -> Result<()> {
        self.wait_until("anything", 120, |seen| !seen.is_empty()).map(drop)
    }

    /// Waits until what the guest has said is what is looked for, and returns all of it.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        within: u64,
        found: impl Fn(&str) -> bool,
    ) -> Result<&str> {
        let deadline = Instant::now() + seconds(within);
        while !found(&self.seen) {
            match self.texts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => self.seen.push_str(&text?),
                Err(_) => bail!("{} did not say {what}, but {:?}", self.name, self.seen),
            }
        }
        Ok(&self.seen)
    }
}

/// Sends what comes out of the first serial port of xl's guest, whose stubdomain has this name, from its creation on.
fn serial_of(stub: String) -> Receiver<Result<String>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        if let Err(error) = read(&stub, &sender) {
            // Nobody listens any more when the guest was destroyed.
            let _ = sender.send(Err(error.context("cannot read the guest's serial port")));
        }
    });
    receiver
}

fn read(stub: &str, sender: &Sender<Result<String>>) -> Result<()> {
    let mut file = File::open(wait_for_tty(stub)?)?;
    let mut bytes = [0; 256];
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 || sender.send(Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())).is_err() {
            return Ok(());
        }
    }
}

/// Waits until the stubdomain of this name has a pty for its console 3, and gives its path.
fn wait_for_tty(stub: &str) -> Result<String> {
    let store = Xenstore::open()?;
    let domains = XsPath::new("/local/domain")?;
    let watch = store.watch(&domains)?;
    let deadline = Instant::now() + seconds(120);
    loop {
        if let Some(tty) = tty_of(&store, &domains, stub)? {
            return Ok(tty);
        }
        ensure!(Instant::now() < deadline, "{stub} got no serial port");
        // Writes come one by one; after a quiet second the tree is looked at anyway.
        let _ = watch.recv_deadline(deadline.min(Instant::now() + Duration::from_secs(1)));
    }
}

fn tty_of(store: &Xenstore, domains: &XsPath, stub: &str) -> Result<Option<String>> {
    for domain in store.list(domains)?.unwrap_or_default() {
        let domain = domains.join(&domain)?;
        if store.read_string(&domain.join("name")?, 256)?.as_deref() != Some(stub) {
            continue;
        }
        let tty = XsPath::new(format!("{domain}/device/console/3/tty"))?;
        if let Some(tty) = store.read_string(&tty, 64)?.filter(|tty| !tty.is_empty()) {
            return Ok(Some(tty));
        }
    }
    Ok(None)
}
