//! PID 1 of the device-model stubdomain.
//!
//! One static binary, five names: `/init` prepares the domain, starts QEMU and watches it; `/etc/qemu-ifup` and
//! `/etc/qemu-ifdown` are QEMU's hooks for taps; `/sbin/poweroff` (and `reboot`, `halt`) is what the kernel runs
//! when the toolstack writes `control/shutdown`; under its own name for it, the launcher that becomes QEMU
//! ([`sandbox`]). One thread, no runtime: PID 1 reaps every child itself.
//!
//! ```text
//! boot   once, in order: the steps up to QEMU, which may be held there
//! run    then: a source (services, signals, qmp) ─▶ machines ─▶ effect ─▶ performed
//! ```
//!
//! Decisions are made in [`machines`], which do no I/O and return an [`effect`] for everything that is to be done.
//! [`services`] do the I/O with Xen, the kernel and dom0; [`qmp`] and [`qemu`] that with QEMU.
//!
//! The domain ends with QEMU: it powers off when QEMU exited with status 0 or the toolstack asked for it, and
//! crashes (`SHUTDOWN_crash`) in every other case, after the reason was written to `agent/exit` and console 0.
#![forbid(unsafe_code)]

mod boot;
mod effect;
mod error;
mod fd;
mod machines;
mod plan;
mod qemu;
mod qmp;
mod run;
mod sandbox;
mod services;
mod signals;
mod system;

use std::process::ExitCode;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, sync};

use crate::services::log::Log;
use crate::services::net;

/// How long dom0 may take to read the last lines.
const FLUSH: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    match name {
        "qemu-ifup" | "qemu-ifdown" => {
            exit_code(net::script(&args.next().unwrap_or_default(), name == "qemu-ifup"))
        }
        "poweroff" | "reboot" | "halt" => stop_agent(),
        sandbox::launch::NAME => {
            // Returns only when it failed.
            eprintln!("{}", sandbox::launch::run(std::env::args_os().skip(1)));
            ExitCode::from(sandbox::launch::FAILED)
        }
        _ if getpid() == Pid::from_raw(1) => end(init()),
        _ => {
            eprintln!(
                "outrigger-agent {}: runs as PID 1 of a stubdomain, or as its qemu-ifup or poweroff",
                env!("CARGO_PKG_VERSION")
            );
            ExitCode::from(2)
        }
    }
}

/// The whole life of the stubdomain; returns whether it ended cleanly.
fn init() -> bool {
    let mut log = Log::default();
    log.line(&format!("version {}", env!("CARGO_PKG_VERSION")));
    let clean = match boot::boot(&mut log) {
        Some((boot, nics, qemu)) => run::run(boot, nics, qemu, &mut log).unwrap_or_else(|error| {
            log.error(&error);
            false
        }),
        None => false,
    };
    log.line(if clean { "powering off" } else { "ending the domain as crashed" });
    log.flush(FLUSH);
    clean
}

/// Ends the domain. `SHUTDOWN_poweroff` when clean; else a kernel panic, which is `SHUTDOWN_crash`.
fn end(clean: bool) -> ExitCode {
    sync();
    if !clean {
        // Allowed for root however `kernel.sysrq` is set.
        let _ = std::fs::write("/proc/sysrq-trigger", "c");
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // The end of PID 1 is a panic as well.
    ExitCode::FAILURE
}

/// `/sbin/poweroff`: the kernel was asked to shut down.
fn stop_agent() -> ExitCode {
    match kill(Pid::from_raw(1), Signal::SIGTERM) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn exit_code(result: Result<(), error::AgentError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}
