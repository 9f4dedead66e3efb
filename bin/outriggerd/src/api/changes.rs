//! Changes of a running guest: from a call's parameters to what the guest's driver has the toolstack do.

use std::path::PathBuf;
use std::time::Duration;

use api::types::{
    BlockAttach, BlockDetach, CdEject, CdInsert, ConfigUpdate, DumpParameters, MigrateParameters,
    NetworkAttach, NetworkDetach, NetworkSetBridge, Refusal, SaveParameters, VcpuPin,
};
use config::{CpuSet, DiskSource, GuestConfig, HostDefaults, LoadedDevice, MacAddr, Vdev};
use toolstack::{AfterSave, Cause, Detach, Guest, GuestId, MigrateOptions, Pins, Toolstack, WhileDumped};
use xen_types::KiB;

use crate::guest::registry::{Key, Registry};
use crate::guest::request::{Change, MIGRATE};
use crate::refusal::{self, JobError};
use crate::reply::{Replies, short, tell_warnings};

impl Change {
    fn new(
        name: &'static str,
        work: impl FnOnce(&Toolstack, GuestId, &mut dyn FnMut(toolstack::Event)) -> Result<Guest, JobError>
        + Send
        + 'static,
    ) -> Self {
        Self { name, work: Box::new(|ts, id, events| work(ts, id, events).map(Some)), new_name: None }
    }

    /// The same change, whose client is given warnings first.
    fn after(self, warnings: Vec<String>) -> Self {
        let Self { name, work, new_name } = self;
        let work = move |ts: &Toolstack, id, events: &mut dyn FnMut(toolstack::Event)| {
            warnings.into_iter().for_each(|text| events(toolstack::Event::Warning { text }));
            work(ts, id, events)
        };
        Self { name, work: Box::new(work), new_name }
    }

    /// Saves the guest.
    pub(super) fn save(parameters: SaveParameters) -> Result<Self, Refusal> {
        let SaveParameters { path, checkpoint, paused, .. } = parameters;
        let path = absolute(path)?;
        let after = match (paused, checkpoint) {
            (true, _) => AfterSave::Pause,
            (false, true) => AfterSave::Run,
            (false, false) => AfterSave::Destroy,
        };
        let work = move |ts: &Toolstack, id, events: &mut dyn FnMut(toolstack::Event)| {
            Ok(ts.save(id, &path, after, events)?)
        };
        Ok(Self { name: "save", work: Box::new(work), new_name: None })
    }

    /// Dumps the guest's memory.
    pub(super) fn dump_core(parameters: DumpParameters) -> Result<Self, Refusal> {
        let DumpParameters { path, live, .. } = parameters;
        let path = absolute(path)?;
        let meanwhile = if live { WhileDumped::Runs } else { WhileDumped::Paused };
        Ok(Self::new("dump-core", move |ts, id, events| Ok(ts.dump_core(id, &path, meanwhile, events)?)))
    }

    /// Migrates the guest through the socket on which the client listens.
    pub(super) fn migrate(
        parameters: MigrateParameters,
        defaults: &HostDefaults,
        replies: &Replies,
    ) -> Result<Self, Refusal> {
        let MigrateParameters { channel, host, live, max_downtime_ms, bandwidth, compress, .. } = parameters;
        let path = parameters.dest_path.unwrap_or_default();
        let dest_config = match parameters.dest_config {
            Some(text) => Some(Box::new(loaded((&path, &text), defaults, replies)?)),
            None => None,
        };
        let path = absolute(channel)?;
        if host.is_empty() {
            return Err(bad("the other host has no name"));
        }
        let some = |number: u64| (number > 0).then_some(number);
        let max_downtime = some(max_downtime_ms).map(Duration::from_millis);
        let bandwidth = some(bandwidth);
        let options = MigrateOptions { host, live, max_downtime, bandwidth, compress, dest_config };
        let work = move |ts: &Toolstack, id, events: &mut dyn FnMut(toolstack::Event)| {
            let channel = ts.connect_peer(&path)?;
            Ok(ts.migrate(id, channel, &options, events)?)
        };
        Ok(Self { name: MIGRATE, work: Box::new(work), new_name: None })
    }

    /// Suspends the guest.
    pub(super) fn suspend() -> Self {
        Self::new("suspend", |ts, id, events| Ok(ts.suspend(id, events)?))
    }

    /// Resumes it.
    pub(super) fn resume() -> Self {
        Self::new("resume", |ts, id, events| Ok(ts.resume(id, events)?))
    }

    /// Attaches a disk.
    pub(super) fn block_attach(parameters: &BlockAttach) -> Result<Self, Refusal> {
        let (disk, warnings) = device(config::load_disk("disk", &parameters.disk))?;
        let attach = Self::new("block-attach", move |ts, id, events| Ok(ts.attach_disk(id, &disk, events)?));
        Ok(attach.after(warnings))
    }

    /// Detaches a disk.
    pub(super) fn block_detach(parameters: &BlockDetach) -> Result<Self, Refusal> {
        let vdev = config::device_name(&parameters.vdev).map_err(bad)?;
        let how = how(parameters.force);
        Ok(Self::new("block-detach", move |ts, id, events| Ok(ts.detach_disk(id, vdev, how, events)?)))
    }

    /// Inserts a disc into a CD drive.
    pub(super) fn cd_insert(parameters: &CdInsert) -> Result<Self, Refusal> {
        let CdInsert { vdev, file, force, .. } = parameters;
        let vdev = config::device_name(vdev).map_err(bad)?;
        // `target=` takes all that follows, whatever is in the path.
        let text = format!("vdev={vdev},devtype=cdrom,format=raw,target={file}");
        let source = device(config::load_disk("disc", &text))?.0.source;
        Ok(Self::medium("cd-insert", vdev, source, *force))
    }

    /// Ejects the disc of a CD drive.
    pub(super) fn cd_eject(parameters: &CdEject) -> Result<Self, Refusal> {
        let vdev = config::device_name(&parameters.vdev).map_err(bad)?;
        Ok(Self::medium("cd-eject", vdev, DiskSource::Empty, parameters.force))
    }

    fn medium(name: &'static str, vdev: Vdev, source: DiskSource, force: bool) -> Self {
        Self::new(name, move |ts, id, events| Ok(ts.change_medium(id, vdev, &source, how(force), events)?))
    }

    /// Attaches a network interface.
    pub(super) fn network_attach(parameters: &NetworkAttach, host: &HostDefaults) -> Result<Self, Refusal> {
        let (mut nic, warnings) = device(config::load_nic("vif", &parameters.vif, Toolstack::NEXT_NIC))?;
        host.apply_nic(&mut nic).map_err(refusal::of_host)?;
        let attach = Self::new("network-attach", move |ts, id, events| Ok(ts.attach_nic(id, &nic, events)?));
        Ok(attach.after(warnings))
    }

    /// Detaches a network interface.
    pub(super) fn network_detach(parameters: &NetworkDetach) -> Result<Self, Refusal> {
        let which = WhichNic::read(&parameters.nic)?;
        let how = how(parameters.force);
        Ok(Self::new("network-detach", move |ts, id, events| {
            Ok(ts.detach_nic(id, which.find(ts, id)?, how, events)?)
        }))
    }

    /// Moves a network interface to another bridge.
    pub(super) fn network_set_bridge(parameters: NetworkSetBridge) -> Result<Self, Refusal> {
        let NetworkSetBridge { nic, bridge, .. } = parameters;
        let which = WhichNic::read(&nic)?;
        // For its complaints about the bridge's name.
        device(config::load_nic("vif", &format!("bridge={bridge}"), 0))?;
        Ok(Self::new("network-set-bridge", move |ts, id, events| {
            Ok(ts.set_bridge(id, which.find(ts, id)?, &bridge, events)?)
        }))
    }

    /// Replaces the configuration for the next start.
    pub(super) fn config_update(
        parameters: &ConfigUpdate,
        host: &HostDefaults,
        replies: &Replies,
    ) -> Result<Self, Refusal> {
        let config = loaded((&parameters.path, &parameters.config), host, replies)?;
        Ok(Self::new("config-update", move |ts, id, _| Ok(ts.set_next_config(id, &config)?)))
    }

    /// Chooses the CPUs of vCPUs.
    pub(super) fn vcpu_pin(parameters: &VcpuPin, host: &HostDefaults) -> Result<Self, Refusal> {
        let set = |text: &Option<String>| text.as_deref().map(str::parse::<CpuSet>).transpose().map_err(bad);
        let (mut hard, soft) = (set(&parameters.hard)?, set(&parameters.soft)?);
        if !parameters.ignore_masks {
            hard = hard.map(|cpus| host.allowed(cpus)).transpose().map_err(refusal::of_host)?;
        }
        let pins = Pins { vcpu: parameters.vcpu, hard, soft };
        Ok(Self::new("vcpu-pin", move |ts, id, events| Ok(ts.pin_vcpus(id, pins, events)?)))
    }

    /// Limits the memory.
    pub(super) fn mem_max(memory: KiB) -> Self {
        Self::new("mem-max", move |ts, id, events| Ok(ts.set_max_memory(id, memory, events)?))
    }

    /// Sets the number of vCPUs.
    pub(super) fn vcpu_set(vcpus: u32) -> Self {
        Self::new("vcpu-set", move |ts, id, events| Ok(ts.set_vcpus(id, vcpus, events)?))
    }

    /// Sets the memory.
    pub(super) fn mem_set(memory: KiB) -> Self {
        Self::new("mem-set", move |ts, id, events| Ok(ts.set_memory(id, memory, events)?))
    }

    /// Renames the guest. From now on no other guest can take the name.
    pub(super) fn rename(registry: &Registry, key: Key, name: String) -> Result<Self, Refusal> {
        let reservation = registry.reserve(key, &name)?;
        let change = Self::new("rename", move |ts, id, events| Ok(ts.rename(id, &name, events)?));
        Ok(Self { new_name: Some(reservation), ..change })
    }
}

/// A guest's configuration from the text of a file, with what the host sets for every guest.
/// The client is told what there is to say of it.
pub(super) fn loaded(
    (path, text): (&str, &str),
    host: &HostDefaults,
    replies: &Replies,
) -> Result<GuestConfig, Refusal> {
    let loaded = config::load_str(path, text);
    let Some(mut config) = loaded.config else {
        return Err(Refusal::BadConfig { diagnostics: loaded.render(false) });
    };
    host.apply(&mut config).map_err(refusal::of_host)?;
    tell_warnings(replies, &loaded.diagnostics, |diagnostic| diagnostic.one_line(&loaded.source));
    Ok(config)
}

/// A network interface by its number or its address.
#[derive(Clone, Copy, Debug)]
enum WhichNic {
    Number(u32),
    Address(MacAddr),
}

impl WhichNic {
    fn read(text: &str) -> Result<Self, Refusal> {
        match text.parse() {
            Ok(number) => Ok(Self::Number(number)),
            Err(_) => text.parse().map(Self::Address).map_err(bad),
        }
    }

    fn find(self, toolstack: &Toolstack, id: GuestId) -> Result<u32, JobError> {
        let address = match self {
            Self::Number(devid) => return Ok(devid),
            Self::Address(address) => address,
        };
        let found = toolstack.nics(id)?.into_iter().find(|entry| entry.mac == address);
        if let Some(entry) = found {
            return Ok(entry.nic.devid);
        }
        let name = toolstack.info(id)?.guest.name;
        Err(Cause::NoDevice { name, device: format!("network interface {address}") }.into())
    }
}

/// A path that does not depend on the daemon's folder.
pub(super) fn absolute(path: String) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(bad(format!("the path {} is not absolute", path.display())))
    }
}

const fn how(force: bool) -> Detach {
    if force { Detach::Force } else { Detach::Ask }
}

/// A device, and the warnings about it.
fn device<T>(loaded: LoadedDevice<T>) -> Result<(T, Vec<String>), Refusal> {
    let diagnostics = loaded.render(false);
    let lines = loaded.diagnostics.iter().map(|diagnostic| short(&diagnostic.one_line(&loaded.source)));
    let warnings = lines.collect();
    match loaded.device {
        Some(device) => Ok((device, warnings)),
        None => Err(Refusal::BadConfig { diagnostics: diagnostics + "\n" }),
    }
}

fn bad(why: impl std::fmt::Display) -> Refusal {
    Refusal::BadConfig { diagnostics: format!("error: {why}\n") }
}
