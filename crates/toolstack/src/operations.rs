//! Operations on guests that run.

use std::time::{Duration, Instant};

use config::Uuid;
use serde::Serialize;
use xen::{DomainInfo, DomainState, HvmParam, Trigger};
use xen_types::{DomId, KiB};
use xenstore::{Store, XsPath};

use crate::domain::{Domain, GuestId};
use crate::error::{Cause, ToolstackError as Error};
use crate::record::{GuestRecord, Phase};
use crate::tree::below;
use crate::wait::Watcher;
use crate::{Guest, Toolstack};

/// The longest name that is read, in bytes.
const NAME_LIMIT: usize = 256;

/// A domain as `list` shows it, made by any toolstack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DomainEntry {
    /// Its number.
    pub domid: DomId,
    /// Its name; `(null)` as `xl list` says when it has none.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Memory that it holds.
    pub memory: KiB,
    /// Online virtual CPUs.
    pub vcpus: u32,
    /// Its state in the letters of `xl list`.
    pub state: String,
    /// Processor time that it has used.
    pub cpu_time: Duration,
    /// The guest that it serves as a stubdomain.
    pub target: Option<DomId>,
}

/// What is known of one guest.
#[derive(Clone, Debug)]
pub struct GuestInfo {
    /// The guest.
    pub guest: Guest,
    /// How far its life is.
    pub phase: Phase,
    /// What Xen says of its domain; nothing when that is gone.
    pub domain: Option<DomainInfo>,
    /// What Xen says of its stubdomain; nothing when that is gone.
    pub stubdomain: Option<DomainInfo>,
}

/// How a guest was asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownWay {
    /// Its PV drivers took notice of `control/shutdown`.
    PvDrivers,
    /// A press of the virtual ACPI power button.
    PowerButton,
}

impl Toolstack {
    /// All domains, by number.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer.
    pub fn list(&self) -> Result<Vec<DomainEntry>, Error> {
        let domains = self.hypervisor.list_domains().map_err(Cause::from)?;
        domains.iter().map(|info| self.entry(info).map_err(Error::from)).collect()
    }

    fn entry(&self, info: &DomainInfo) -> Result<DomainEntry, Cause> {
        let dir = XsPath::domain(info.domid);
        // A stubdomain's `target` is only dom0's to write.
        let target = self.xenstore.read(&below(&dir, "target"))?;
        let target = target.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
        Ok(DomainEntry {
            domid: info.domid,
            name: self.domain_name(info.domid)?.unwrap_or_else(|| "(null)".to_owned()),
            uuid: Uuid::from_bytes(info.uuid),
            memory: info.memory,
            vcpus: info.online_vcpus,
            state: info.state.to_string(),
            cpu_time: info.cpu_time,
            target,
        })
    }

    /// A domain's name.
    ///
    /// # Errors
    /// When xenstore does not answer.
    pub fn domain_name(&self, domid: DomId) -> Result<Option<String>, Cause> {
        let value = self.xenstore.read(&below(&XsPath::domain(domid), "name"))?;
        Ok(value.map(|value| {
            let value = value.get(..NAME_LIMIT).unwrap_or(&value);
            String::from_utf8_lossy(value).chars().filter(|c| !c.is_control()).collect()
        }))
    }

    /// The domain with this name, or with this number when the text is one and no domain has it as its name.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none.
    pub fn find_domain(&self, name_or_domid: &str) -> Result<DomId, Error> {
        for info in self.hypervisor.list_domains().map_err(Cause::from)? {
            if self.domain_name(info.domid)?.as_deref() == Some(name_or_domid) {
                return Ok(info.domid);
            }
        }
        if let Ok(domid) = name_or_domid.parse::<DomId>()
            && self.hypervisor.domain_info(domid).map_err(Cause::from)?.is_some()
        {
            return Ok(domid);
        }
        Err(Cause::NoGuest(format!("called {name_or_domid}")).into())
    }

    /// All guests that have a state file.
    ///
    /// # Errors
    /// When Xen or the state files do not answer.
    pub fn guests(&self) -> Result<Vec<GuestInfo>, Error> {
        let records = self.records()?.guests;
        records.into_iter().filter_map(|record| self.info_of(record).transpose()).collect()
    }

    /// One guest.
    ///
    /// # Errors
    /// [`Cause::NoGuest`] when there is none.
    pub fn info(&self, id: GuestId) -> Result<GuestInfo, Error> {
        let record = self.record_of(id)?;
        let missing = || Cause::NoGuest(format!("with the UUID {id}"));
        self.info_of(record)?.ok_or_else(|| missing().into())
    }

    fn info_of(&self, record: GuestRecord) -> Result<Option<GuestInfo>, Error> {
        let phase = record.phase();
        let Some(guest) = record.guest() else { return Ok(None) };
        Ok(Some(GuestInfo {
            domain: self.domain_info(guest.domid, guest.uuid)?,
            stubdomain: self.domain_info(guest.stub_domid, guest.stub_uuid)?,
            phase,
            guest,
        }))
    }

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
        Ok(self.ask(id, "poweroff", Some(Trigger::Power))?)
    }

    /// Asks a guest with PV drivers to reboot.
    ///
    /// # Errors
    /// As for [`Self::shutdown`]; also when the guest has no PV drivers, as there is no button for it.
    pub fn reboot(&self, id: GuestId) -> Result<ShutdownWay, Error> {
        Ok(self.ask(id, "reboot", None)?)
    }

    fn ask(&self, id: GuestId, what: &str, button: Option<Trigger>) -> Result<ShutdownWay, Cause> {
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
        let Some(button) = button else {
            return Err(Cause::NoPvDrivers { name: name(), what: "be asked to reboot" });
        };
        self.hypervisor.send_trigger(domain.domid(), button, 0)?;
        Ok(ShutdownWay::PowerButton)
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
