//! Whether dom0 is as it was before a case.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use xenstore::{Store, Xenstore, XsPath};

use super::command::{XL, outrigger, run};
use super::seconds;

/// Free memory may differ by so much: Xen's own heap and dom0's balloon settle late.
const MEMORY_SLACK_KIB: u64 = 1024;

/// So many differences are named.
const SHOWN: usize = 12;

/// What a case could leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    nodes: BTreeSet<String>,
    loops: BTreeSet<String>,
    ports: BTreeSet<String>,
    files: BTreeSet<String>,
    free_kib: u64,
}

impl Host {
    /// Looks at dom0.
    pub(crate) fn look() -> Result<Self> {
        Ok(Self {
            nodes: nodes()?,
            loops: loops()?,
            ports: names("/sys/class/net")?.into_iter().filter(|name| name.starts_with("vif")).collect(),
            files: names("/var/lib/outrigger/guests")?,
            free_kib: free_kib()?,
        })
    }

    fn difference(&self, now: &Self) -> Vec<String> {
        let mut left = Vec::new();
        let mut more = |what: &str, before: &BTreeSet<String>, now: &BTreeSet<String>| {
            left.extend(now.difference(before).map(|name| format!("{what} {name} is left")));
            left.extend(before.difference(now).map(|name| format!("{what} {name} is gone")));
        };
        more("node", &self.nodes, &now.nodes);
        more("loop device", &self.loops, &now.loops);
        more("interface", &self.ports, &now.ports);
        more("state file", &self.files, &now.files);
        if now.free_kib + MEMORY_SLACK_KIB < self.free_kib {
            left.push(format!("{} KiB of memory are not free again", self.free_kib - now.free_kib));
        }
        left
    }
}

/// Fails unless dom0 is as before. What ends asynchronously in Xen and in the kernel gets a moment.
pub(crate) fn compare(before: &Host) -> Result<()> {
    let deadline = Instant::now() + seconds(10);
    let store = Xenstore::open()?;
    let watch = store.watch(&XsPath::new("/local/domain")?)?;
    loop {
        let left = before.difference(&Host::look()?);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let more = left.len().saturating_sub(SHOWN);
            let shown = left[..left.len().min(SHOWN)].join("; ");
            bail!(
                "dom0 is not as before: {shown}{}",
                if more > 0 { format!("; and {more} more") } else { String::new() }
            );
        }
        // Looked at again when xenstore changes, and now and then for what xenstore does not tell.
        let _ = watch.recv_deadline(Instant::now() + Duration::from_millis(300));
    }
}

/// Destroys what a failed case has left, until no domain but dom0 is there: an `xl` in the background may be making the
/// next one of a guest that rebooted.
pub(crate) fn sweep() -> Result<()> {
    let deadline = Instant::now() + seconds(60);
    let (store, domains) = (Xenstore::open()?, XsPath::new("/local/domain")?);
    let watch = store.watch(&domains)?;
    loop {
        let all = store.list(&domains)?.unwrap_or_default();
        let left: Vec<String> = all.into_iter().filter(|domid| domid != "0").collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("domains {} cannot be destroyed", left.join(", "));
        }
        let output = outrigger(&["list", "--json"])?;
        let ours: Vec<api::types::Guest> = serde_json::from_str(&output.stdout).unwrap_or_default();
        if ours.is_empty() {
            // Those of xl's, or of nobody's. One may have gone with another.
            left.iter().try_for_each(|domid| run(XL, &["destroy", domid]).map(drop))?;
        }
        ours.iter().try_for_each(|guest| outrigger(&["destroy", &guest.domid.to_string()]).map(drop))?;
        let _ = watch.recv_deadline(Instant::now() + Duration::from_millis(300));
    }
}

/// Fails when nodes of domains are there that were not before.
pub(crate) fn compare_nodes(before: &BTreeSet<String>) -> Result<()> {
    let now = nodes()?;
    let left: Vec<&String> = now.difference(before).take(SHOWN).collect();
    if left.is_empty() { Ok(()) } else { bail!("nodes are left: {left:?}") }
}

/// Nodes of domains; values change all the time, and dom0's own nodes are not a toolstack's.
pub(crate) fn nodes() -> Result<BTreeSet<String>> {
    let store = Xenstore::open()?;
    let mut found = BTreeSet::new();
    let mut waiting = vec![XsPath::new("/local/domain")?, XsPath::new("/vm")?, XsPath::new("/libxl")?];
    while let Some(path) = waiting.pop() {
        // A node can go between the listing of its parent and its own.
        for name in store.list(&path)?.unwrap_or_default() {
            let below = path.join(&name)?;
            found.insert(below.to_string());
            waiting.push(below);
        }
    }
    Ok(found)
}

fn loops() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in names("/sys/block")? {
        let backing = Path::new("/sys/block").join(&name).join("loop/backing_file");
        if let Ok(file) = fs::read_to_string(backing) {
            found.insert(format!("{name} on {}", file.trim()));
        }
    }
    Ok(found)
}

/// The names in a folder; none when it is missing.
pub(crate) fn names(folder: &str) -> Result<BTreeSet<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {folder}")),
    }
}

/// Memory of the host that nobody has.
pub(crate) fn free_kib() -> Result<u64> {
    let output = run("outrigger", &["info", "--json"])?.good()?;
    let info: serde_json::Value = serde_json::from_str(&output.stdout)?;
    info["free_memory_kib"].as_u64().context("outrigger info tells no free memory")
}
