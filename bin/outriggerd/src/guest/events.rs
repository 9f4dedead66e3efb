//! Events of guests in the interface's words.

use api::types::{Event, State};
use toolstack::{Guest, GuestEvent};
use xen::ShutdownReason;

/// An event of a guest, for subscribers.
pub(crate) fn event(guest: &Guest, kind: &str, detail: &str) -> Event {
    Event {
        name: guest.name.clone(),
        uuid: guest.uuid.to_string(),
        domid: guest.domid,
        kind: kind.to_owned(),
        detail: detail.to_owned(),
    }
}

/// The kind of the event.
pub(crate) const fn kind(event: &GuestEvent) -> &'static str {
    match event {
        GuestEvent::Gone | GuestEvent::EndedWithHost => "gone",
        GuestEvent::DeviceModelDied | GuestEvent::StubdomainDestroyed => "dm-died",
        GuestEvent::SuspendedLate => "suspended",
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
        GuestEvent::StubdomainDestroyed => "its stubdomain was destroyed externally",
        GuestEvent::SuspendedLate => "for a request that was given up; it goes on",
        GuestEvent::Shutdown(_) => "",
    }
}

/// The state that is shown for a preserved guest.
pub(crate) const fn shown(event: &GuestEvent) -> State {
    match event {
        GuestEvent::DeviceModelDied | GuestEvent::StubdomainDestroyed => State::DmDead,
        GuestEvent::Shutdown(ShutdownReason::Crash) => State::Crashed,
        GuestEvent::SuspendedLate => State::Suspended,
        GuestEvent::Shutdown(_) | GuestEvent::Gone | GuestEvent::EndedWithHost => State::ShutDown,
    }
}
