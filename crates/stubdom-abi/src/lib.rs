//! What the toolstack and the device-model stubdomain agree on, as types.
//!
//! One place for both sides: where each key is in xenstore ([`paths`]), how the arguments of QEMU are handed over
//! ([`Argv`]), which console is which ([`StubConsole`], [`QmpConsole`]), and what the stubdomain reports ([`AgentExit`],
//! [`Features`], [`Heartbeat`], [`DmState`]) and how that is read without trusting it ([`StubReport`]), and a [`stream`]
//! with an end over a console that has none. `docs/stubdom-api.md` is its prose, enough to write another stubdomain or
//! another toolstack. The base is `docs/misc/stubdom.txt` of Xen 4.14 and later. [`QemuAbilities`] is what the builder of
//! an image tells a toolstack about its QEMU.
#![forbid(unsafe_code)]

mod abilities;
mod argv;
mod cmdline;
mod console;
mod fdset;
mod image;
mod keys;
pub mod paths;
mod report;
pub mod stream;

pub use abilities::QemuAbilities;
pub use argv::{Argv, ArgvError};
pub use cmdline::{HOLD_WORD, PCI_WORD, QMP_CONSOLE_WORD, STATE_FRAMES_WORD, Serves, has_word};
pub use console::{ConsoleError, QmpConsole, SerialPort, StubConsole};
pub use fdset::{StubDevid, StubDevidError};
pub use image::ImageConfig;
pub use keys::{
    AgentExit, DmState, Feature, Features, HEARTBEAT_INTERVAL, HEARTBEAT_STALE, HELD_STEP, Heartbeat,
    MAX_STUB_VALUE, SERVING_STEP, harmless,
};
pub use paths::DmKey;
pub use report::StubReport;

/// The descriptor at which QEMU finds its incoming state, when console 2 exists.
pub const STATE_IN_FD: i32 = 3;
/// The descriptor to which QEMU writes its state, when console 1 exists; also in [`STATE_OUT_FDSET`].
pub const STATE_OUT_FD: i32 = 4;
/// The set of descriptors that holds [`STATE_OUT_FD`], so that QMP can name it as `/dev/fdset/1`.
pub const STATE_OUT_FDSET: u32 = 1;
/// The largest number of the target's disks that are emulated: `/dev/xvda` to `/dev/xvdz`.
pub const MAX_EMULATED_DISKS: usize = 26;

/// The stubdomain's device that holds the target's disk `index` (in configuration order), or nothing above 25.
///
/// ```
/// assert_eq!(stubdom_abi::disk_device(1).as_deref(), Some("/dev/xvdb"));
/// assert_eq!(stubdom_abi::disk_device(26), None);
/// ```
#[must_use]
pub fn disk_device(index: usize) -> Option<String> {
    let letter = (b'a'..=b'z').nth(index)?;
    Some(format!("/dev/xvd{}", char::from(letter)))
}

/// The stubdomain's PV interface that belongs to the target's NIC `index` (in configuration order).
#[must_use]
pub fn nic_device(index: usize) -> String {
    format!("eth{index}")
}

/// The tap that a stubdomain makes for its PV NIC `devid` when that is plugged in later: `ifname` of the `netdev_add`
/// that uses it.
///
/// ```
/// assert_eq!(stubdom_abi::plugged_tap(3), "tap3");
/// ```
#[must_use]
pub fn plugged_tap(devid: u32) -> String {
    format!("tap{devid}")
}
