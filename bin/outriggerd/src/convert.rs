//! Converts the toolstack's types to those of the interface.

use std::path::Path;

use api::types::{Guest as ApiGuest, State, Unreadable};
use toolstack::{Cause, GuestEvent, Toolstack, UnreadableRecord};
use xen::{DomainInfo, HostCapabilities, ShutdownReason};
use xen_types::KiB;

use crate::registry::Entry;

/// The kind of the event.
pub(crate) const fn kind(event: &GuestEvent) -> &'static str {
    match event {
        GuestEvent::Gone | GuestEvent::EndedWithHost => "gone",
        GuestEvent::DeviceModelDied | GuestEvent::DeviceModelTaken => "dm-died",
        GuestEvent::Shutdown(reason) => match reason {
            ShutdownReason::PowerOff => "powered-off",
            ShutdownReason::Reboot => "rebooted",
            ShutdownReason::Suspend => "suspended",
            ShutdownReason::Watchdog => "watchdog",
            ShutdownReason::SoftReset => "soft-reset",
            ShutdownReason::Crash | ShutdownReason::Other(_) => "crashed",
        },
    }
}

/// Details of the event.
pub(crate) const fn detail(event: &GuestEvent) -> &'static str {
    match event {
        GuestEvent::Gone => "the guest was destroyed externally",
        GuestEvent::EndedWithHost => "the guest ended when the host went down",
        GuestEvent::DeviceModelDied => "see `outrigger dm-log` for QEMU's last log lines",
        GuestEvent::DeviceModelTaken => "its stubdomain was destroyed externally",
        GuestEvent::Shutdown(_) => "",
    }
}

/// The processor's capabilities, as `xl info` prints them.
pub(crate) fn virt_caps(caps: &HostCapabilities) -> String {
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

/// An unreadable state file in the interface's form.
pub(crate) fn unreadable(file: &UnreadableRecord) -> Unreadable {
    Unreadable {
        file: file.path.display().to_string(),
        uuid: file.uuid.map(|uuid| uuid.to_string()),
        name: file.name.as_ref().map(|name| stubdom_abi::harmless(name.as_bytes())),
        domid: file.domid,
        problem: file.cause.chain(),
    }
}

/// The folder of the state files, when it cannot be read.
pub(crate) fn unreadable_folder(folder: &Path, cause: &Cause) -> Unreadable {
    let file = folder.display().to_string();
    Unreadable { file, uuid: None, name: None, domid: None, problem: cause.chain() }
}

/// A guest as the interface shows it; none while it has no domain.
pub(crate) fn guest(toolstack: &Toolstack, entry: &Entry) -> Option<ApiGuest> {
    let guest = entry.guest.as_ref()?;
    let look = |domid, uuid| toolstack.domain_info(domid, uuid).ok().flatten();
    let (target, stub) = (look(guest.domid, guest.uuid), look(guest.stub_domid, guest.stub_uuid));
    let memory = |info: &Option<DomainInfo>| info.as_ref().map_or(KiB(0), |info| info.memory);
    let time = |info: &Option<DomainInfo>| {
        info.as_ref().map_or(0, |info| u64::try_from(info.cpu_time.as_nanos()).unwrap_or(u64::MAX))
    };
    let paused = target.as_ref().is_some_and(|info| info.state.paused);
    Some(ApiGuest {
        name: guest.name.clone(),
        uuid: guest.uuid.to_string(),
        domid: guest.domid,
        stub_domid: stub.as_ref().map(|_| guest.stub_domid),
        stub_uuid: stub.as_ref().map(|_| guest.stub_uuid.to_string()),
        state: if entry.state == State::Running && paused { State::Paused } else { entry.state },
        memory_kib: memory(&target),
        stub_memory_kib: memory(&stub),
        vcpus: target.as_ref().map_or(0, |info| info.online_vcpus),
        cpu_time_ns: time(&target),
        stub_cpu_time_ns: time(&stub),
        serials: u8::try_from(guest.config.serials.len()).unwrap_or(u8::MAX),
    })
}
