//! Converts the toolstack's types to those of the interface.

use std::error::Error as StdError;
use std::path::Path;

use api::types::{Failure, Guest as ApiGuest, State, Unreadable};
use toolstack::host::HostError;
use toolstack::{Cause, Error, GuestEvent, Toolstack, UnreadableRecord};
use xen::{DomainInfo, Errno, HostCapabilities, ShutdownReason};
use xen_types::KiB;

use crate::job::Job;
use crate::registry::Entry;

/// An error with its causes in one line, for the log.
pub(crate) fn chain(error: &dyn StdError) -> String {
    std::iter::once(error.to_string()).chain(causes(error)).collect::<Vec<_>>().join(": ")
}

fn causes(error: &dyn StdError) -> Vec<String> {
    std::iter::successors(error.source(), |&error| error.source()).map(ToString::to_string).collect()
}

/// A lifecycle's failure.
pub(crate) fn failure(job: Job, error: &Error) -> Failure {
    let Error::Step(step) = error else { return refused(error) };
    if let Cause::NameTaken { name, domid } = &step.cause {
        return Failure::NameTaken { name: name.clone(), domid: *domid };
    }
    Failure::StepFailed {
        lifecycle: job.name().to_owned(),
        id: step.id.to_owned(),
        step: step.label.to_owned(),
        message: step.cause.to_string(),
        causes: causes(&step.cause),
        hint: hint(&step.cause).map(str::to_owned),
        undo_failures: step.undo.iter().map(|left| chain(left)).collect(),
        log: step.stubdomain_log.clone(),
    }
}

/// The failure of an operation without steps, or of one that completed all of them.
pub(crate) fn refused(error: &Error) -> Failure {
    let hint = match error {
        Error::Step(step) => hint(&step.cause),
        Error::NotRestarted { cause, .. } => hint(cause),
        Error::NotClean { .. } => Some("run `outrigger destroy` again to finish"),
        Error::NotDetached { .. } => Some("run the same command again to finish"),
        Error::Cause(cause) => hint(cause),
    };
    Failure::Failed { message: error.to_string(), causes: causes(error), hint: hint.map(str::to_owned) }
}

/// The failure of a query to Xen or xenstore.
pub(crate) fn unanswered(cause: &Cause) -> Failure {
    let hint = hint(cause).map(str::to_owned);
    Failure::Failed { message: cause.to_string(), causes: causes(cause), hint }
}

/// What the user can do, if the cause's own text does not say it.
fn hint(cause: &Cause) -> Option<&'static str> {
    match cause {
        Cause::Device { source, .. } => hint(source),
        Cause::Hypervisor(error) => match error.errno() {
            Some(Errno::ENOMEM) => {
                Some("`outrigger info` shows the free memory; stop a guest, or lower memory=")
            }
            // The text covers these two.
            Some(Errno::EPERM | Errno::ESRCH) => None,
            _ => Some("`xl dmesg` shows Xen's own messages"),
        },
        Cause::Host(HostError::ScriptStuck { .. }) => {
            Some("make the device or the server respond again, then destroy the guest")
        }
        Cause::Host(HostError::ScriptFailed { .. }) => {
            Some("Xen's scripts write their own log, /var/log/xen/xen-hotplug.log")
        }
        Cause::StubdomainDied { .. } => {
            Some("the stubdomain's log may show why; `outrigger image info` shows what its image contains")
        }
        Cause::Backend { .. } => {
            Some("dom0 needs the modules xen-blkback for disks and xen-netback for vifs")
        }
        Cause::DomainStays { .. } => Some("close whatever uses it in dom0, then destroy the guest again"),
        Cause::NoGuest(_) => Some("`outrigger list` shows the guests"),
        _ => None,
    }
}

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
