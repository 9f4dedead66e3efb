//! Converts the toolstack's types to those of the interface, and back.

use std::path::Path;

use api::types::{Channel, Disk, Incomplete, Migration, Nic, Role, TriggerKind, Unreadable};
use config::{ChannelConnection, DiskSource};
use toolstack::{
    Cause, ChannelEntry, DiskEntry, MigrationInfo, MigrationRole, NicEntry, Signal, UnreadableRecord,
    WithoutDrivers,
};
use xen::HostCapabilities;

use crate::guest::request::Quick;
use crate::guest::view::View;

/// The processor's capabilities, as `xl info` prints them.
pub(super) fn virt_caps(caps: &HostCapabilities) -> String {
    let words = [
        (caps.pv, "pv"),
        (caps.hvm, "hvm"),
        (caps.hvm && caps.iommu, "hvm_directio"),
        (caps.pv && caps.iommu, "pv_directio"),
        (caps.hap, "hap"),
        (caps.shadow, "shadow"),
        (caps.iommu_shares_hap, "iommu_hap_pt_share"),
        (caps.vmtrace, "vmtrace"),
        (caps.vpmu, "vpmu"),
    ];
    words.into_iter().filter_map(|(has, word)| has.then_some(word)).collect::<Vec<_>>().join(" ")
}

/// What is left of a guest that was not created, in the interface's form.
pub(super) fn incomplete(view: &View) -> Option<Incomplete> {
    let left = view.incomplete.as_ref()?;
    let (uuid, problem) = (left.id.to_string(), left.problem.clone());
    Some(Incomplete { name: view.name.clone(), uuid, problem })
}

/// An unreadable state file in the interface's form.
pub(super) fn unreadable(file: &UnreadableRecord) -> Unreadable {
    Unreadable {
        file: file.path.display().to_string(),
        uuid: file.uuid.map(|uuid| uuid.to_string()),
        name: file.name.as_ref().map(|name| stubdom_abi::harmless(name.as_bytes())),
        domid: file.domid,
        problem: file.cause.chain(),
    }
}

/// The folder of the state files, when it cannot be read.
pub(super) fn unreadable_folder(folder: &Path, cause: &Cause) -> Unreadable {
    let file = folder.display().to_string();
    Unreadable { file, uuid: None, name: None, domid: None, problem: cause.chain() }
}

/// What `Trigger` asks for.
pub(super) const fn trigger(kind: TriggerKind, vcpu: u32) -> Quick {
    let signal = match kind {
        TriggerKind::Power => Signal::Power,
        TriggerKind::Sleep => Signal::Sleep,
        TriggerKind::Nmi => Signal::Nmi,
        TriggerKind::Reset => Signal::Reset,
        TriggerKind::Init => Signal::Init,
        TriggerKind::S3resume => return Quick::Wake,
    };
    Quick::Trigger(signal, vcpu)
}

/// What `Reboot` asks for.
pub(super) const fn reboot(reset: bool) -> Quick {
    Quick::Reboot(if reset { WithoutDrivers::Reset } else { WithoutDrivers::Refuse })
}

/// A channel as the interface shows it.
pub(super) fn channel(entry: ChannelEntry) -> Channel {
    let ChannelEntry { number, channel, link } = entry;
    Channel {
        number,
        name: channel.name,
        connection: match channel.connection {
            ChannelConnection::Pty => "pty".to_owned(),
            ChannelConnection::Socket(path) => path,
        },
        state: link.state.map(|state| state.number().into()),
        event_channel: link.event_channel,
        ring_ref: link.rings.first().copied().flatten(),
        backend: link.backend,
    }
}

/// A disk as the interface shows it.
pub(super) fn disk(entry: DiskEntry) -> Disk {
    let DiskEntry { disk, stub_vdev, link } = entry;
    Disk {
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
        state: link.state.map(|state| state.number().into()),
        event_channel: link.event_channel,
        ring_ref: link.rings.first().copied().flatten(),
        backend: link.backend,
    }
}

/// A network interface as the interface shows it.
pub(super) fn nic(entry: NicEntry) -> Nic {
    let NicEntry { nic, mac, bridge, emulated, link } = entry;
    Nic {
        devid: nic.devid,
        mac: mac.to_string(),
        bridge,
        model: nic.model,
        emulated,
        state: link.state.map(|state| state.number().into()),
        event_channel: link.event_channel,
        tx_ring_ref: link.rings.first().copied().flatten(),
        rx_ring_ref: link.rings.get(1).copied().flatten(),
        backend: link.backend,
    }
}

/// A migration as the interface shows it.
pub(super) fn migration(info: MigrationInfo) -> Migration {
    let MigrationInfo { id, guest, name, peer, role, state, unresolved, stood_still } = info;
    let role = match role {
        MigrationRole::Sender => Role::Sender,
        MigrationRole::Receiver => Role::Receiver,
    };
    let stood_still_ms = stood_still.and_then(|took| u64::try_from(took.as_millis()).ok());
    Migration { id, guest: guest.to_string(), name, peer, role, state, unresolved, stood_still_ms }
}
