//! From the toolstack's words to the interface's.

use std::error::Error as StdError;

use api::types::{Failure, Guest as ApiGuest, State};
use toolstack::{Error, GuestEvent, Toolstack};
use xen::{DomainInfo, HostCapabilities, ShutdownReason};
use xen_types::{DomId, KiB};

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
    match error {
        Error::Step(step) => {
            if let toolstack::Cause::NameTaken { name, domid } = &step.cause {
                return Failure::NameTaken { name: name.clone(), domid: *domid };
            }
            Failure::StepFailed {
                lifecycle: job.name().to_owned(),
                step: step.step.to_owned(),
                message: step.cause.to_string(),
                causes: causes(&step.cause),
                hint: None,
                undo_failures: step.undo.iter().map(|left| chain(left)).collect(),
                log: step.stubdomain_log.clone(),
            }
        }
        other => failed(other),
    }
}

/// Any other failure.
pub(crate) fn failed(error: &dyn StdError) -> Failure {
    Failure::Failed { message: error.to_string(), causes: causes(error), hint: None }
}

/// The one word for what ended.
pub(crate) const fn kind(event: &GuestEvent) -> &'static str {
    match event {
        GuestEvent::Gone => "gone",
        GuestEvent::DeviceModelDied => "dm-died",
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

/// More about what ended.
pub(crate) const fn detail(event: &GuestEvent) -> &'static str {
    match event {
        GuestEvent::Gone => "another toolstack has destroyed it",
        GuestEvent::DeviceModelDied => "outrigger dm-log tells what its QEMU said last",
        GuestEvent::Shutdown(_) => "",
    }
}

/// What the processor offers, in the words of `xl info`.
pub(crate) fn virt_caps(caps: &HostCapabilities) -> String {
    let words = [
        (caps.pv, "pv"),
        (caps.hvm, "hvm"),
        (caps.hvm && caps.iommu, "hvm_directio"),
        (caps.pv && caps.iommu, "pv_directio"),
        (caps.hap, "hap"),
        (caps.shadow, "shadow"),
        (caps.iommu_shares_hap, "iommu_hap_pt_share"),
    ];
    words.into_iter().filter_map(|(has, word)| has.then_some(word)).collect::<Vec<_>>().join(" ")
}

/// A guest as the interface shows it; none while it has no domain.
pub(crate) fn guest(toolstack: &Toolstack, entry: &Entry) -> Option<ApiGuest> {
    let guest = entry.guest.as_ref()?;
    let look = |domid: DomId| toolstack.hypervisor().domain_info(domid).ok().flatten();
    let (target, stub) = (look(guest.domid), look(guest.stub_domid));
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
        state: if entry.state == State::Running && paused { State::Paused } else { entry.state },
        memory_kib: memory(&target),
        stub_memory_kib: memory(&stub),
        vcpus: target.as_ref().map_or(0, |info| info.online_vcpus),
        cpu_time_ns: time(&target),
        stub_cpu_time_ns: time(&stub),
        serials: u8::try_from(guest.config.serials.len()).unwrap_or(u8::MAX),
    })
}
