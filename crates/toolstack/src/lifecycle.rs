//! What is done when a guest or its device model ends: a pure decision.

use config::{Action, DeviceModelCrashAction, GuestConfig};
use serde::Serialize;
use xen::ShutdownReason;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest shut itself down, or was shut down.
    Shutdown(ShutdownReason),
    /// The stubdomain, or QEMU in it, ended while the guest ran.
    DeviceModelDied,
    /// The guest's domain is gone: someone else destroyed it.
    Gone,
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
    /// Nothing is wrong: it suspended itself because someone saves it.
    Nothing,
}

/// Decides by the configuration's `on_…` keys (xl.cfg(5), "Event Actions").
#[must_use]
pub fn decide(config: &GuestConfig, event: &GuestEvent) -> Decision {
    let lifecycle = &config.lifecycle;
    let action = match event {
        // Whoever destroyed it wanted it gone; only our part is left to be cleared.
        GuestEvent::Gone => return Decision::Destroy,
        GuestEvent::DeviceModelDied => {
            return match config.device_model.on_crash {
                DeviceModelCrashAction::Destroy => Decision::Destroy,
                DeviceModelCrashAction::Restart => Decision::Restart,
                DeviceModelCrashAction::Preserve => Decision::PauseAndPreserve,
            };
        }
        GuestEvent::Shutdown(ShutdownReason::Suspend) => return Decision::Nothing,
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
