//! Guests that cases have made, and the files that they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use api::types::{Guest, Progress, Step};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore, XsPath};

use super::command::{outrigger, run_within};
use super::seconds;

/// The boot sector's disk, which the embedded host brings along.
pub(crate) const HELLO_DISK: &str = "/examples/hello-disk.img";
/// Where cases make files.
pub(super) const SCRATCH: &str = "/tmp/vm-tests";

/// Writes a file that the case needs and gives its path.
pub(crate) fn scratch(name: &str, content: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(SCRATCH)?;
    let path = Path::new(SCRATCH).join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The path of a file that the case makes: there is none of this name yet.
pub(crate) fn unused(name: &str) -> Result<PathBuf> {
    let path = scratch(name, b"")?;
    fs::remove_file(&path)?;
    Ok(path)
}

/// A guest that was created and is destroyed when the case ends.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) guest: Guest,
}

impl Made {
    /// Creates a guest.
    pub(crate) fn create(config: &Path, more: &[&str]) -> Result<Self> {
        Self::create_in_steps(config, more).map(|(guest, _)| guest)
    }

    /// Creates a guest, and returns the steps that this took.
    pub(crate) fn create_in_steps(config: &Path, more: &[&str]) -> Result<(Self, Vec<Step>)> {
        let config = config.to_string_lossy();
        let mut args = vec!["create", "--json"];
        args.extend(more);
        args.push(&config);
        let output = run_within(seconds(180), "outrigger", &args)?.good()?;
        let (mut guest, mut steps) = (None, Vec::new());
        for line in output.stdout.lines() {
            let progress: Progress =
                serde_json::from_str(line).with_context(|| format!("no progress: {line}"))?;
            steps.extend(progress.step);
            guest = progress.guest;
        }
        let guest = guest.with_context(|| format!("no guest in the last line: {}", output.stdout))?;
        Ok((Self { guest }, steps))
    }

    /// A guest that runs already.
    pub(crate) fn named(name: &str) -> Result<Self> {
        Ok(Self { guest: must_run(name)? })
    }

    /// The domids of the guest and of its stubdomain.
    pub(crate) fn domids(&self) -> Result<(DomId, DomId)> {
        Ok((self.guest.domid, self.stub()?))
    }

    /// Fails unless it is still in the same two domains.
    pub(crate) fn must_be_the_same(&self) -> Result<()> {
        let now = must_run(&self.guest.name)?;
        ensure!(now.domid == self.guest.domid && now.stub_domid == self.guest.stub_domid, "{now:?}");
        Ok(())
    }

    /// The stubdomain's domid.
    pub(crate) fn stub(&self) -> Result<DomId> {
        self.guest.stub_domid.with_context(|| format!("{} has no stubdomain", self.guest.name))
    }

    /// Destroys it now, and fails when that fails.
    pub(crate) fn destroy(self) -> Result<()> {
        let result = outrigger(&["destroy", &self.guest.domid.to_string()])?.good();
        std::mem::forget(self);
        result.map(drop)
    }

    /// Fails unless it has gone by itself.
    pub(crate) fn must_be_gone(self) -> Result<()> {
        must_be_gone(&self.guest.name)?;
        self.leave();
        Ok(())
    }

    /// The guest that has replaced it under its name, in another domain.
    pub(crate) fn successor(self) -> Result<Self> {
        let again = Self::named(&self.guest.name)?;
        ensure!(again.guest.domid != self.guest.domid, "it is the same domain");
        self.leave();
        Ok(again)
    }

    /// It is expected to go by itself.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Only on a failure's way out; the comparison afterwards tells what is left.
        let _ = outrigger(&["destroy", &self.guest.domid.to_string()]);
    }
}

/// The guests that the daemon lists.
pub(crate) fn list() -> Result<Vec<Guest>> {
    let output = outrigger(&["list", "--json"])?.good()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("not JSON: {}", output.stdout))
}

/// Fails unless the guest is listed.
pub(crate) fn must_run(name: &str) -> Result<Guest> {
    match list()?.into_iter().find(|guest| guest.name == name) {
        Some(guest) => Ok(guest),
        None => bail!("{name} is not listed"),
    }
}

/// Fails unless the daemon knows no guest of this name.
pub(crate) fn must_be_gone(name: &str) -> Result<()> {
    let output = outrigger(&["domid", name])?;
    ensure!(output.status == 4, "{name} is still there: {output}");
    Ok(())
}

/// Waits until xenstore has a domain of this name, and returns its domid.
pub(crate) fn wait_for_domain(name: &str) -> Result<DomId> {
    let store = Xenstore::open()?;
    let domains = XsPath::new("/local/domain")?;
    let watch = store.watch(&domains)?;
    let deadline = Instant::now() + seconds(60);
    loop {
        for domid in store.list(&domains)?.unwrap_or_default() {
            let named = store.read_string(&domains.join(&domid)?.join("name")?, 256)?;
            if named.as_deref() == Some(name) {
                return domid.parse().with_context(|| format!("{domid} is no domid"));
            }
        }
        ensure!(watch.recv_deadline(deadline)?.is_some(), "{name} did not come");
    }
}
