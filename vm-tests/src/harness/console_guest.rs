//! PV guests of one page of code that do nothing but use their console (`testguest::console_guest`), made without any
//! toolstack: in a moment, many of them, with any key in their console's directory.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use xen::{
    Blob, Channel, CpuidPolicy, DomainKind, DomainSpec, Hypervisor, KernelBuild, RealHypervisor, TscMode,
};
use xen_types::{DomId, EventPort, Gfn, KiB};
use xenstore::{Access, Permissions, Store as _, Xenstore, XsPath};

use super::seconds;

/// Where the test command puts the guest's kernel.
pub(crate) const KERNEL: &str = "/root/console-guest";
const MEMORY: KiB = KiB(4096);
const EXTRA_MEMORY: KiB = KiB(1024);

/// A domain that is destroyed when this is dropped.
pub(crate) struct ConsoleGuest {
    pub(crate) domid: DomId,
    /// The console ring's machine frame.
    pub(crate) frame: Gfn,
    /// The guest's end of the console's event channel.
    pub(crate) port: EventPort,
    hypervisor: RealHypervisor,
    store: Xenstore,
}

impl ConsoleGuest {
    /// Makes a guest that does what `command` says (see `console.S`) and starts it.
    pub(crate) fn start(name: &str, command: &str, keys: &[(&str, &str)]) -> Result<Self> {
        let guest = Self::make(name, command, keys)?;
        guest.unpause()?;
        Ok(guest)
    }

    /// Makes a guest that does not run yet. `keys` come into its console's directory.
    pub(crate) fn make(name: &str, command: &str, keys: &[(&str, &str)]) -> Result<Self> {
        let hypervisor = RealHypervisor::open()?;
        let store = Xenstore::open()?;
        let mut uuid = *b"console-guest\0\0\0";
        uuid[13..].copy_from_slice(&name.len().to_le_bytes()[..3]);
        let domid = hypervisor.create_domain(&DomainSpec::new(DomainKind::Pv, uuid, 1))?;
        // From here on it is destroyed on every way out.
        let mut guest = Self { domid, frame: Gfn(0), port: EventPort(0), hypervisor, store };
        guest.build(command)?;
        guest.describe(name, keys)?;
        Ok(guest)
    }

    fn build(&mut self, command: &str) -> Result<()> {
        let xen = &self.hypervisor;
        xen.set_max_vcpus(self.domid, 1)?;
        xen.set_max_memory(self.domid, MEMORY + EXTRA_MEMORY)?;
        let channel = || -> Result<Channel> {
            let port = xen.alloc_unbound_port(self.domid, DomId::DOM0)?;
            Ok(Channel { port, peer: DomId::DOM0 })
        };
        let (store, console) = (channel()?, channel()?);
        xen.set_memory_map_limit(self.domid, MEMORY)?;
        xen.set_tsc_mode(self.domid, TscMode::Default)?;
        xen.apply_cpuid_policy(self.domid, &CpuidPolicy::default())?;
        let build = KernelBuild {
            kernel: Blob::File(KERNEL.into()),
            ramdisk: None,
            cmdline: command.to_owned(),
            memory: MEMORY,
            max_vcpus: 1,
            claim: false,
            store,
            console,
        };
        let built = xen.build_pv(self.domid, &build)?;
        (self.frame, self.port) = (built.console_frame, console.port);
        self.store.introduce(self.domid, built.store_frame, store.port)?;
        Ok(())
    }

    fn describe(&self, name: &str, keys: &[(&str, &str)]) -> Result<()> {
        let dir = XsPath::new(format!("/local/domain/{}", self.domid))?;
        let console = dir.join("console")?;
        let readable = Permissions::owned_by(DomId::DOM0).allow(self.domid, Access::Read);
        let (frame, port) = (self.frame.to_string(), self.port.to_string());
        let usual = [("type", "xenconsoled"), ("limit", "1048576"), ("output", "pty"), ("tty", "")];
        self.store.transaction(|t| {
            t.mkdir(&dir)?;
            t.set_perms(&dir, &readable)?;
            t.write(&dir.join("name")?, name.as_bytes())?;
            t.mkdir(&console)?;
            t.set_perms(&console, &readable)?;
            for (key, value) in usual.into_iter().chain(keys.iter().copied()) {
                t.write(&console.join(key)?, value.as_bytes())?;
            }
            t.write(&console.join("ring-ref")?, frame.as_bytes())?;
            t.write(&console.join("port")?, port.as_bytes())
        })?;
        Ok(())
    }

    pub(crate) fn unpause(&self) -> Result<()> {
        Ok(self.hypervisor.unpause_domain(self.domid)?)
    }

    /// Waits until the console has a pseudo-terminal, other than `old`, and gives its path.
    pub(crate) fn tty(&self, old: &str) -> Result<String> {
        let key = XsPath::new(format!("/local/domain/{}/console/tty", self.domid))?;
        let watch = self.store.watch(&key)?;
        let deadline = Instant::now() + seconds(30);
        loop {
            let tty = self.store.read_string(&key, 64)?;
            if let Some(tty) = tty.filter(|tty| !tty.is_empty() && tty != old) {
                return Ok(tty);
            }
            let more = watch.recv_deadline(deadline)?;
            ensure!(more.is_some(), "domain {} has no pseudo-terminal", self.domid);
        }
    }

    /// Waits until the domain has shut down by itself.
    pub(crate) fn wait_for_end(&self) -> Result<()> {
        let watch = self.store.watch(&xenstore::SpecialWatch::ReleaseDomain)?;
        let deadline = Instant::now() + seconds(60);
        loop {
            let info = self.hypervisor.domain_info(self.domid)?.context("the domain is gone")?;
            if info.state.shutdown.is_some() {
                return Ok(());
            }
            let more = watch.recv_deadline(deadline)?;
            ensure!(more.is_some(), "domain {} does not end", self.domid);
        }
    }
}

impl Drop for ConsoleGuest {
    fn drop(&mut self) {
        // The comparison after a case tells what could not be undone.
        let _ = self.hypervisor.destroy_domain(self.domid);
        let _ = self.store.release(self.domid);
        if let Ok(dir) = XsPath::new(format!("/local/domain/{}", self.domid)) {
            let _ = self.store.rm(&dir);
        }
    }
}
