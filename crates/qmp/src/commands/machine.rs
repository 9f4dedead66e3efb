use serde::{Deserialize, Serialize};

use super::{Nothing, commands};
use crate::monitor::Command;

commands! {
    /// Asks whether the machine runs.
    QueryStatus = "query-status" -> Status {}
    /// Asks for QEMU's version.
    QueryVersion = "query-version" -> Version {}
    /// Asks for the names of all commands.
    QueryCommands = "query-commands" -> Vec<CommandName> {}
    /// Stops the emulated machine.
    Stop = "stop" -> Nothing {}
    /// Continues it.
    Cont = "cont" -> Nothing {}
    /// Resets it.
    SystemReset = "system_reset" -> Nothing {}
    /// Presses its power button.
    SystemPowerdown = "system_powerdown" -> Nothing {}
    /// Wakes it from sleep.
    SystemWakeup = "system_wakeup" -> Nothing {}
    /// Injects a non-maskable interrupt.
    InjectNmi = "inject-nmi" -> Nothing {}
    /// Writes a picture of the screen into a file of the stubdomain.
    Screendump = "screendump" -> Nothing {
        /// The file, or `/dev/fdset/<n>`.
        filename: String,
        /// `ppm` or `png`; ppm when absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        format: Option<String>,
    }
}

/// Whether the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether it does.
    pub running: bool,
    /// `running`, `paused`, `inmigrate`, …
    pub status: String,
}

/// QEMU's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The number.
    pub qemu: VersionNumber,
    /// What the packager says.
    #[serde(default)]
    pub package: String,
}

/// The number of QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionNumber {
    /// 7 of 7.2.1.
    pub major: u32,
    /// 2 of 7.2.1.
    pub minor: u32,
    /// 1 of 7.2.1.
    pub micro: u32,
}

/// A command's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CommandName {
    /// The name.
    pub name: String,
}
