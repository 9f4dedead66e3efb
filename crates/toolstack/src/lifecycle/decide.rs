//! What is done when a guest or its device model ends: a pure decision.

use config::{Action, DeviceModelCrashAction, GuestConfig};
use serde::Serialize;
use xen::ShutdownReason;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest shut itself down, or was shut down.
    Shutdown(ShutdownReason),
    /// The guest suspended itself for a request that was given up.
    SuspendedLate,
    /// The stubdomain, or QEMU in it, ended while the guest ran.
    DeviceModelDied,
    /// Another program destroyed the stubdomain. `xl destroy` does so before it destroys the guest.
    StubdomainDestroyed,
    /// The guest's domain is gone: someone else destroyed it.
    Gone,
    /// The host was restarted, which ended all its guests.
    EndedWithHost,
}

/// What is to be done with a guest that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Destroy it and forget it.
    Destroy,
    /// Destroy it and create it again from its configuration.
    Restart,
    /// Rename it, keep it, and create a new one from its configuration.
    RenameRestart,
    /// Keep it as it is.
    Preserve,
    /// Pause it and keep it: its device model is dead, so it would only hang.
    PauseAndPreserve,
    /// Let it go on where it was.
    GoOn,
    /// Nothing is wrong: it suspended itself because someone saves it.
    Nothing,
}

/// Decides by the configuration's `on_…` keys (xl.cfg(5), "Event Actions").
#[must_use]
pub fn decide(config: &GuestConfig, event: &GuestEvent) -> Decision {
    let lifecycle = &config.lifecycle;
    let action = match event {
        // It was destroyed externally; only our part remains to be removed.
        GuestEvent::Gone => return Decision::Destroy,
        // The host decides whether a guest starts with it, and nothing is left that could be preserved.
        GuestEvent::EndedWithHost => return Decision::Destroy,
        GuestEvent::DeviceModelDied | GuestEvent::StubdomainDestroyed => {
            return match config.device_model.on_crash {
                DeviceModelCrashAction::Destroy => Decision::Destroy,
                DeviceModelCrashAction::Restart => Decision::Restart,
                DeviceModelCrashAction::Preserve => Decision::PauseAndPreserve,
            };
        }
        GuestEvent::Shutdown(ShutdownReason::Suspend) => return Decision::Nothing,
        GuestEvent::SuspendedLate => return Decision::GoOn,
        GuestEvent::Shutdown(ShutdownReason::PowerOff) => lifecycle.on_poweroff,
        GuestEvent::Shutdown(ShutdownReason::Reboot) => lifecycle.on_reboot,
        GuestEvent::Shutdown(ShutdownReason::Watchdog) => lifecycle.on_watchdog,
        GuestEvent::Shutdown(ShutdownReason::SoftReset) => lifecycle.on_soft_reset,
        GuestEvent::Shutdown(ShutdownReason::Crash | ShutdownReason::Other(_)) => lifecycle.on_crash,
    };
    match action {
        Action::Destroy => Decision::Destroy,
        Action::Restart => Decision::Restart,
        Action::RenameRestart => Decision::RenameRestart,
        Action::Preserve => Decision::Preserve,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &str, event: &GuestEvent, decision: Decision) {
        let text = format!("type=\"hvm\"\nname=\"x\"\nmemory=64\n{lines}");
        let config = config::load_str("x.cfg", &text).config.expect("a configuration without errors");
        assert_eq!(decide(&config, event), decision, "{lines} {event:?}");
    }

    #[test]
    fn each_end_has_its_key_and_default() {
        use ShutdownReason::{Crash, PowerOff, Reboot, Suspend, Watchdog};
        let ended = GuestEvent::Shutdown;
        check("", &ended(PowerOff), Decision::Destroy);
        check("", &ended(Reboot), Decision::Restart);
        check("", &ended(Crash), Decision::Destroy);
        check("", &ended(Suspend), Decision::Nothing);
        check("", &GuestEvent::SuspendedLate, Decision::GoOn);
        check("on_poweroff=\"preserve\"", &ended(PowerOff), Decision::Preserve);
        check("on_reboot=\"destroy\"", &ended(Reboot), Decision::Destroy);
        check("on_crash=\"rename-restart\"", &ended(Crash), Decision::RenameRestart);
        check("on_watchdog=\"restart\"", &ended(Watchdog), Decision::Restart);
        check("on_crash=\"restart\"", &ended(ShutdownReason::Other(9)), Decision::Restart);
    }

    #[test]
    fn a_dead_device_model_never_leaves_a_guest_that_only_hangs() {
        check("", &GuestEvent::DeviceModelDied, Decision::Destroy);
        let key = |value| format!("on_device_model_crash=\"{value}\"");
        check(&key("restart"), &GuestEvent::DeviceModelDied, Decision::Restart);
        check(&key("preserve"), &GuestEvent::DeviceModelDied, Decision::PauseAndPreserve);
        check("on_crash=\"preserve\"", &GuestEvent::Gone, Decision::Destroy);
    }
}
