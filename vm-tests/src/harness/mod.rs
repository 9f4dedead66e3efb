//! What the cases have in common.

pub(crate) mod clean;
pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod console_guest;
pub(crate) mod consoles;
pub(crate) mod core_file;
pub(crate) mod counter;
pub(crate) mod daemons;
pub(crate) mod disk;
pub(crate) mod events;
pub(crate) mod evidence;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod idle;
pub(crate) mod initramfs;
pub(crate) mod loops;
pub(crate) mod lowest;
pub(crate) mod network;
pub(crate) mod pair;
pub(crate) mod peer;
pub(crate) mod qmp;
pub(crate) mod relay;
pub(crate) mod screen;
pub(crate) mod shell;
pub(crate) mod state_file;
pub(crate) mod stranger;
pub(crate) mod terminal;
pub(crate) mod vchan;
pub(crate) mod xl_serial;

use std::time::Duration;

/// A deadline stretched by the one setting for slow machines.
pub(crate) fn seconds(seconds: u64) -> Duration {
    let scale = std::env::var("OUTRIGGER_TIME_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    Duration::from_secs(seconds).mul_f64(f64::clamp(scale, 0.1, 100.0))
}
