//! Methods that change a guest which runs: from parameters to what its driver has the toolstack do, and the lists of
//! what the guest has.

use api::types::{
    BlockAttach, BlockDetach, CdEject, CdInsert, Disk as ApiDisk, NetworkAttach, NetworkDetach,
    NetworkSetBridge, Nic as ApiNic, Progress, Refusal, TriggerKind,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use config::{DiskSource, LoadedDevice, MacAddr, Vdev};
use toolstack::{Cause, Detach, DiskEntry, Guest, GuestId, NicEntry, Signal, Toolstack};
use xen_types::KiB;

use crate::answer::Answer;
use crate::driver::Replies;
use crate::refusal::JobError;

/// How much of a picture goes into one reply, in bytes.
const PART: usize = 1 << 20;
/// What settles a change that an earlier daemon began.
pub(crate) const SETTLE: &str = "settle";
/// The change that changes nothing.
pub(crate) const SCREENSHOT: &str = "screenshot";

/// The toolstack's operation on the guest.
type Work =
    dyn FnOnce(&Toolstack, GuestId, &mut dyn FnMut(toolstack::Event)) -> Result<Guest, JobError> + Send;

/// A change of a guest, for its driver.
pub(crate) struct Change {
    /// Its name, as steps and errors carry it.
    pub(crate) name: &'static str,
    /// The guest's name after it, when that changes.
    pub(crate) new_name: Option<String>,
    /// What is done.
    pub(crate) work: Box<Work>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Change {
    fn new(
        name: &'static str,
        work: impl FnOnce(&Toolstack, GuestId, &mut dyn FnMut(toolstack::Event)) -> Result<Guest, JobError>
        + Send
        + 'static,
    ) -> Self {
        Self { name, new_name: None, work: Box::new(work) }
    }

    /// Attaches a disk.
    pub(crate) fn block_attach(parameters: &BlockAttach) -> Result<Self, Refusal> {
        let disk = device(config::load_disk("disk", &parameters.disk))?;
        Ok(Self::new("block-attach", move |ts, id, events| Ok(ts.attach_disk(id, &disk, events)?)))
    }

    /// Detaches a disk.
    pub(crate) fn block_detach(parameters: &BlockDetach) -> Result<Self, Refusal> {
        let vdev = config::device_name(&parameters.vdev).map_err(bad)?;
        let how = how(parameters.force);
        Ok(Self::new("block-detach", move |ts, id, events| Ok(ts.detach_disk(id, vdev, how, events)?)))
    }

    /// Inserts a disc into a CD drive.
    pub(crate) fn cd_insert(parameters: &CdInsert) -> Result<Self, Refusal> {
        let CdInsert { vdev, file, force, .. } = parameters;
        let vdev = config::device_name(vdev).map_err(bad)?;
        // `target=` takes all that follows, whatever is in the path.
        let text = format!("vdev={vdev},devtype=cdrom,format=raw,target={file}");
        let source = device(config::load_disk("disc", &text))?.source;
        Ok(Self::medium("cd-insert", vdev, source, *force))
    }

    /// Ejects the disc of a CD drive.
    pub(crate) fn cd_eject(parameters: &CdEject) -> Result<Self, Refusal> {
        let vdev = config::device_name(&parameters.vdev).map_err(bad)?;
        Ok(Self::medium("cd-eject", vdev, DiskSource::Empty, parameters.force))
    }

    fn medium(name: &'static str, vdev: Vdev, source: DiskSource, force: bool) -> Self {
        Self::new(name, move |ts, id, events| Ok(ts.change_medium(id, vdev, &source, how(force), events)?))
    }

    /// Attaches a network interface.
    pub(crate) fn network_attach(parameters: &NetworkAttach) -> Result<Self, Refusal> {
        let nic = device(config::load_nic("vif", &parameters.vif, Toolstack::NEXT_NIC))?;
        Ok(Self::new("network-attach", move |ts, id, events| Ok(ts.attach_nic(id, &nic, events)?)))
    }

    /// Detaches a network interface.
    pub(crate) fn network_detach(parameters: &NetworkDetach) -> Result<Self, Refusal> {
        let which = WhichNic::read(&parameters.nic)?;
        let how = how(parameters.force);
        Ok(Self::new("network-detach", move |ts, id, events| {
            Ok(ts.detach_nic(id, which.find(ts, id)?, how, events)?)
        }))
    }

    /// Moves a network interface to another bridge.
    pub(crate) fn network_set_bridge(parameters: NetworkSetBridge) -> Result<Self, Refusal> {
        let NetworkSetBridge { nic, bridge, .. } = parameters;
        let which = WhichNic::read(&nic)?;
        // For its complaints about the bridge's name.
        device(config::load_nic("vif", &format!("bridge={bridge}"), 0))?;
        Ok(Self::new("network-set-bridge", move |ts, id, events| {
            Ok(ts.set_bridge(id, which.find(ts, id)?, &bridge, events)?)
        }))
    }

    /// Sets the number of vCPUs.
    pub(crate) fn vcpu_set(vcpus: u32) -> Self {
        Self::new("vcpu-set", move |ts, id, events| Ok(ts.set_vcpus(id, vcpus, events)?))
    }

    /// Sets the memory.
    pub(crate) fn mem_set(memory: KiB) -> Self {
        Self::new("mem-set", move |ts, id, events| Ok(ts.set_memory(id, memory, events)?))
    }

    /// Takes a screenshot, which goes to the client in parts.
    pub(crate) fn screenshot(replies: &Replies) -> Self {
        let replies = replies.clone();
        Self::new(SCREENSHOT, move |ts, id, events| {
            let png = ts.screenshot(id, events)?;
            for part in png.chunks(PART) {
                let data = Some(BASE64_STANDARD.encode(part));
                // A client that has gone wants no picture.
                let _ = replies.blocking_send(Answer::more(&Progress { data, ..Progress::default() }));
            }
            Ok(ts.info(id)?.guest)
        })
    }

    /// Renames the guest.
    pub(crate) fn rename(name: String) -> Self {
        let to = name.clone();
        let change = Self::new("rename", move |ts, id, events| Ok(ts.rename(id, &to, events)?));
        Self { new_name: Some(name), ..change }
    }
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

const fn how(force: bool) -> Detach {
    if force { Detach::Force } else { Detach::Ask }
}

fn device<T>(loaded: LoadedDevice<T>) -> Result<T, Refusal> {
    let diagnostics = loaded.render(false);
    loaded.device.ok_or_else(|| Refusal::BadConfig { diagnostics: diagnostics + "\n" })
}

fn bad(why: impl std::fmt::Display) -> Refusal {
    Refusal::BadConfig { diagnostics: format!("error: {why}\n") }
}

/// What `Trigger` sends, in the hypervisor's words.
pub(crate) const fn signal(kind: TriggerKind) -> Signal {
    match kind {
        TriggerKind::Power => Signal::Power,
        TriggerKind::Sleep => Signal::Sleep,
        TriggerKind::Nmi => Signal::Nmi,
        TriggerKind::Reset => Signal::Reset,
        TriggerKind::Init => Signal::Init,
    }
}

/// A disk as the interface shows it.
pub(crate) fn disk(entry: DiskEntry) -> ApiDisk {
    let DiskEntry { disk, stub_vdev, link } = entry;
    ApiDisk {
        vdev: disk.vdev.to_string(),
        devid: disk.vdev.devid(),
        cdrom: disk.is_cdrom(),
        writable: disk.is_writable(),
        source: match disk.source {
            DiskSource::Empty => String::new(),
            DiskSource::Path(path) => path,
            DiskSource::Script { target, .. } => target,
        },
        emulated_by: stub_vdev.map(|vdev| vdev.to_string()),
        state: link.state,
        event_channel: link.event_channel,
        ring_ref: link.rings.first().copied().flatten(),
        backend: link.backend,
    }
}

/// A network interface as the interface shows it.
pub(crate) fn nic(entry: NicEntry) -> ApiNic {
    let NicEntry { nic, mac, bridge, emulated, link } = entry;
    ApiNic {
        devid: nic.devid,
        mac: mac.to_string(),
        bridge,
        model: nic.model,
        emulated,
        state: link.state,
        event_channel: link.event_channel,
        tx_ring_ref: link.rings.first().copied().flatten(),
        rx_ring_ref: link.rings.get(1).copied().flatten(),
        backend: link.backend,
    }
}
