//! Guests of stock xl's: what they are and have is none of our daemon's business.
//!
//! They are PV guests of one page of code (`testguest::console_guest`), so that one is made in seconds, each with a disk
//! on a loop device and an interface on the bridge.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use xenstore::{Store as _, Xenstore, XsPath};

use super::command::{XL, run, run_within};
use super::config::GuestConfig;
use super::guest::scratch;
use super::loops::loops_of;
use super::network::bridge;
use super::seconds;

/// So many differences are named.
const SHOWN: usize = 8;

/// A guest of xl's, destroyed when this is dropped.
#[derive(Debug)]
pub(crate) struct Stranger {
    pub(crate) name: String,
    pub(crate) domid: u16,
    /// Its disk's image.
    pub(crate) image: PathBuf,
    /// Everything that is known of it, as it was when it had been made.
    known: BTreeMap<String, String>,
}

impl Stranger {
    /// Makes a guest that runs, with a disk and an interface beside what the configuration has.
    pub(crate) fn running(config: GuestConfig) -> Result<Self> {
        Self::create(config, &[])
    }

    /// Makes a guest that is paused, and never ran.
    pub(crate) fn paused(config: GuestConfig) -> Result<Self> {
        Self::create(config, &["-p"])
    }

    fn create(config: GuestConfig, options: &[&str]) -> Result<Self> {
        let name = &config.name().to_owned();
        // A guest of ours may have its name.
        let image = scratch(&format!("xl-{name}.img"), &[0; 1 << 20])?;
        let config =
            config.disk(&format!("{},raw,xvda,w", image.display())).nic(&format!("bridge={}", bridge()?));
        let config = config.write()?;
        let config = config.to_string_lossy();
        run_within(seconds(120), XL, &[&["create"], options, &[&config]].concat())?.good()?;
        // From here on it is destroyed on every way out.
        let mut stranger = Self { name: name.to_owned(), domid: 0, image, known: BTreeMap::new() };
        let domid = run(XL, &["domid", name])?.good()?.stdout;
        stranger.domid = domid.trim().parse().with_context(|| format!("no domid: {domid}"))?;
        // The console daemon's word comes last.
        let tty = XsPath::new(format!("/local/domain/{}/console/tty", stranger.domid))?;
        let some = |value: Option<&[u8]>| value.filter(|tty| !tty.is_empty()).map(drop);
        Xenstore::open()?.wait_for(&tty, Instant::now() + seconds(30), some)?;
        stranger.known = stranger.look()?;
        Ok(stranger)
    }

    /// Fails unless it is in every way as it was when it had been made.
    pub(crate) fn must_be_untouched(&self) -> Result<()> {
        let now = self.look().with_context(|| format!("xl's guest {} was destroyed", self.name))?;
        let all: BTreeMap<_, _> = self.known.iter().chain(&now).collect();
        let changed = all.into_keys().filter(|key| self.known.get(*key) != now.get(*key));
        let show =
            |value: Option<&String>| value.map_or("missing".to_owned(), |value| format!("\"{value}\""));
        let mut changes: Vec<String> = changed
            .map(|key| format!("{key} was {} and is {}", show(self.known.get(key)), show(now.get(key))))
            .collect();
        let more = changes.len().saturating_sub(SHOWN);
        changes.truncate(SHOWN);
        ensure!(
            changes.is_empty(),
            "xl's guest {} was touched: {} ({more} more changes)",
            self.name,
            changes.join("; ")
        );
        Ok(())
    }

    /// The loop device of its disk.
    pub(crate) fn loop_device(&self) -> Result<String> {
        let device = loops_of(&self.image)?.into_keys().next();
        device.with_context(|| format!("{} has no loop device", self.image.display()))
    }

    /// Its line of `xl list`, its nodes, its loop devices, its interface.
    fn look(&self) -> Result<BTreeMap<String, String>> {
        let (state, uuid) = self.state()?;
        let mut known = nodes(&self.roots(&uuid)?)?;
        known.insert("its state".to_owned(), format!("domid {}, {state}, {uuid}", self.domid));
        for (device, state) in loops_of(&self.image)? {
            known.insert(device, state);
        }
        let interface = format!("/sys/class/net/vif{}.0", self.domid);
        for (what, value) in [
            ("flags", fs::read_to_string(format!("{interface}/flags")).unwrap_or_default()),
            ("bridge", Path::new(&interface).join("brport").exists().to_string()),
        ] {
            known.insert(format!("{interface}/{what}"), value.trim().to_owned());
        }
        Ok(known)
    }

    /// Its state letters and its UUID, by xl. Whether it runs just now or waits makes no difference.
    fn state(&self) -> Result<(String, String)> {
        let listed = run(XL, &["list", "-v", &self.name])?.good()?.stdout;
        let line = listed.lines().nth(1).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, domid, _, _, state, _, uuid, ..] = words.as_slice() else { bail!("xl list says: {listed}") };
        ensure!(*domid == self.domid.to_string(), "its domid was {} and is {domid}", self.domid);
        Ok((state.replace(['r', 'b'], "-"), (*uuid).to_owned()))
    }

    /// The directories in xenstore that are its alone.
    fn roots(&self, uuid: &str) -> Result<Vec<XsPath>> {
        let domid = self.domid;
        let mut roots =
            vec![format!("/local/domain/{domid}"), format!("/libxl/{domid}"), format!("/vm/{uuid}")];
        roots.extend(["vbd", "vif", "console"].map(|kind| format!("/local/domain/0/backend/{kind}/{domid}")));
        roots.into_iter().map(|root| Ok(XsPath::new(root)?)).collect()
    }

    /// Takes away what xl left, because someone else had destroyed the domain.
    fn sweep(&self) -> Result<()> {
        let store = Xenstore::open()?;
        let vm = format!("/local/domain/{}/vm", self.domid);
        let named = self.known.get(&vm).and_then(|vm| vm.strip_prefix("/vm/")).unwrap_or("none");
        for root in self.roots(named)? {
            store.rm(&root)?;
        }
        for empty in ["vbd", "vif", "console", ""].map(|kind| format!("/local/domain/0/backend/{kind}")) {
            let empty = XsPath::new(empty.trim_end_matches('/'))?;
            if store.list(&empty)?.is_some_and(|backends| backends.is_empty()) {
                store.rm(&empty)?;
            }
        }
        for device in loops_of(&self.image)?.into_keys() {
            run("losetup", &["-d", &device])?;
        }
        Ok(())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // The comparison after a case tells what could not be undone.
        let destroyed = run(XL, &["destroy", &self.name]).is_ok_and(|output| output.status == 0);
        if !destroyed && self.domid != 0 {
            let _ = self.sweep();
        }
    }
}

/// All nodes below these with their values, and the nodes themselves.
fn nodes(roots: &[XsPath]) -> Result<BTreeMap<String, String>> {
    let store = Xenstore::open()?;
    let mut found = BTreeMap::new();
    let mut waiting = roots.to_vec();
    while let Some(path) = waiting.pop() {
        let Some(value) = store.read(&path)? else { continue };
        found.insert(path.to_string(), String::from_utf8_lossy(&value).into_owned());
        for name in store.list(&path)?.unwrap_or_default() {
            waiting.push(path.join(&name)?);
        }
    }
    Ok(found)
}
