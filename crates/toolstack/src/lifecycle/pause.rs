//! Pausing a guest, and asking it to power off or reboot.

use std::time::Instant;

use serde::Serialize;
use xen::{DomainState, HvmParam, ShutdownReason, Trigger};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::domain::{Domain, GuestId};
use crate::error::{Cause, ToolstackError as Error};
use crate::nodes::below;
use crate::record::GuestRecord;
use crate::wait::Watcher;

/// How a guest was asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownWay {
    /// Its PV drivers took notice of `control/shutdown`.
    PvDrivers,
    /// A press of the virtual ACPI power button.
    PowerButton,
    /// It was reset, without being asked.
    Reset,
}

/// What a reboot does with a guest that has no PV drivers, and so cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutDrivers {
    /// Nothing: it fails.
    Refuse,
    /// It is reset, and loses what it has not written to its disks.
    Reset,
}

/// What is done instead of asking a guest's PV drivers.
#[derive(Clone, Copy)]
enum Instead {
    Press(Trigger),
    Reset,
    Fail,
}

impl Toolstack {
    /// Pauses a guest's vCPUs. Its stubdomain keeps running; it has nothing to do then.
    ///
    /// # Errors
    /// When there is no such guest or Xen refuses.
    pub fn pause(&self, id: GuestId) -> Result<(), Error> {
        let (_, domain) = self.running(id)?;
        Ok(self.hypervisor.pause_domain(domain.domid()).map_err(Cause::from)?)
    }

    /// Pauses a guest unless it is paused already: Xen counts pauses, and one unpause must be enough.
    ///
    /// # Errors
    /// As for [`Self::pause`].
    pub fn pause_once(&self, id: GuestId) -> Result<(), Error> {
        let (_, domain) = self.running(id)?;
        match self.look(domain)? {
            Some(info) if !info.state.paused => self.pause(id),
            _ => Ok(()),
        }
    }

    /// Lets a guest's vCPUs run.
    ///
    /// # Errors
    /// When there is no such guest or Xen refuses.
    pub fn unpause(&self, id: GuestId) -> Result<(), Error> {
        let (_, domain) = self.running(id)?;
        Ok(self.hypervisor.unpause_domain(domain.domid()).map_err(Cause::from)?)
    }

    /// Starts a guest whose creation was interrupted before its start. A guest that has shut down is not new.
    ///
    /// # Errors
    /// As for [`Self::unpause`].
    pub fn start_if_new(&self, id: GuestId) -> Result<(), Error> {
        let (_, domain) = self.running(id)?;
        match self.look(domain)? {
            Some(info) if info.state.paused && info.state.shutdown.is_none() => self.unpause(id),
            _ => Ok(()),
        }
    }

    /// A guest's record and its existing domain.
    fn running(&self, id: GuestId) -> Result<(GuestRecord, Domain), Cause> {
        let record = self.record_of(id)?;
        match record.guest_domain(self)? {
            Some(domain) => Ok((record, domain)),
            None => Err(Cause::NotRunning { name: record.name, reason: None }),
        }
    }

    /// Asks a guest to power off: through its PV drivers, or with the power button if it has none.
    ///
    /// It returns when the guest has taken notice, not when it is off.
    ///
    /// # Errors
    /// [`Cause::NotNow`] when the guest is paused, has ended, or has PV drivers that take no notice.
    pub fn shutdown(&self, id: GuestId) -> Result<ShutdownWay, Error> {
        Ok(self.ask(id, "poweroff", Instead::Press(Trigger::Power))?)
    }

    /// Asks a guest with PV drivers to reboot. There is no button for it, so `without` says what is done with a guest
    /// that has none.
    ///
    /// # Errors
    /// As for [`Self::shutdown`]; [`Cause::NoPvDrivers`].
    pub fn reboot(&self, id: GuestId, without: WithoutDrivers) -> Result<ShutdownWay, Error> {
        let instead = match without {
            WithoutDrivers::Refuse => Instead::Fail,
            WithoutDrivers::Reset => Instead::Reset,
        };
        Ok(self.ask(id, "reboot", instead)?)
    }

    fn ask(&self, id: GuestId, what: &str, instead: Instead) -> Result<ShutdownWay, Cause> {
        let (record, domain) = self.running(id)?;
        let name = || record.name.clone();
        match self.look(domain)?.map(|info| info.state) {
            None => return Err(Cause::NotRunning { name: name(), reason: None }),
            Some(DomainState { shutdown: Some(reason), .. }) => {
                return Err(Cause::NotRunning { name: name(), reason: Some(reason) });
            }
            Some(DomainState { paused: true, .. }) => return Err(Cause::Paused { name: name() }),
            Some(_) => {}
        }
        // A guest's PV drivers set this when they listen for event channels.
        if self.hypervisor.hvm_param(domain.domid(), HvmParam::CallbackIrq)? != 0 {
            return self.ask_pv_drivers(domain, what, &record).map(|()| ShutdownWay::PvDrivers);
        }
        match instead {
            Instead::Press(button) => {
                self.hypervisor.send_trigger(domain.domid(), button, 0)?;
                Ok(ShutdownWay::PowerButton)
            }
            Instead::Reset => {
                self.hypervisor.shutdown_domain(domain.domid(), ShutdownReason::Reboot)?;
                Ok(ShutdownWay::Reset)
            }
            Instead::Fail => Err(Cause::NoPvDrivers { name: name(), what: "be asked to reboot" }),
        }
    }

    fn ask_pv_drivers(&self, domain: Domain, what: &str, record: &GuestRecord) -> Result<(), Cause> {
        let path = below(&XsPath::domain(domain.domid()), "control/shutdown");
        let mut watcher = Watcher::new();
        watcher.watch(&self.xenstore, &path)?;
        self.xenstore.write(&path, what.as_bytes())?;
        let deadline = Instant::now() + self.deadlines.shutdown_ack;
        // The drivers empty the node when they have read it.
        let seen = watcher.until(deadline, || {
            Ok(self.xenstore.read(&path)?.is_none_or(|value| value != what.as_bytes()).then_some(()))
        })?;
        if seen.is_some() {
            return Ok(());
        }
        if self.look(domain)?.is_none() {
            return Err(Cause::NotRunning { name: record.name.clone(), reason: None });
        }
        // So that they do not act on it later, unexpectedly.
        self.xenstore.write(&path, b"")?;
        let (name, after) = (record.name.clone(), self.deadlines.shutdown_ack);
        Err(Cause::NotAcknowledged { name, what: "shutdown request", after })
    }
}
