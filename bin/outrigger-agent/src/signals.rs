//! Signals and the ends of children.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stubdom_abi::AgentExit;

use crate::error::AgentError;

/// The signals that the agent takes: the end of a child, and a request to shut down.
fn set() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect()
}

/// Opens a descriptor for the signals that the agent takes, which are blocked from here on.
pub(crate) fn open() -> Result<SignalFd, AgentError> {
    set().thread_block().map_err(AgentError::system("block signals"))?;
    SignalFd::with_flags(&set(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(AgentError::system("make a descriptor for signals"))
}

/// Takes all signals that have come; returns whether one of them asks to shut down.
pub(crate) fn take(signals: &SignalFd) -> bool {
    let mut stops = false;
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        stops |= signal != Some(Signal::SIGCHLD);
    }
    stops
}

/// Runs `spawn` with no signal blocked, because a child inherits what is blocked, and SIGTERM would not reach QEMU.
///
/// A signal that comes meanwhile is lost, since PID 1 has no handlers: the loop therefore also reaps without one.
pub(crate) fn unblocked<T>(spawn: impl FnOnce() -> T) -> Result<T, AgentError> {
    set().thread_unblock().map_err(AgentError::system("unblock signals"))?;
    let value = spawn();
    set().thread_block().map_err(AgentError::system("block signals"))?;
    Ok(value)
}

/// Reaps every child that has ended, orphans of others included; returns how each did.
pub(crate) fn reap() -> Vec<(Pid, AgentExit)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => ended.push((pid, AgentExit::Exited(low_byte(status)))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                ended.push((pid, AgentExit::Killed(low_byte(signal as i32))));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// A status or a signal's number, which are below 256 on Linux.
fn low_byte(number: i32) -> u8 {
    u8::try_from(number & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_gets_the_signals_that_the_agent_takes_for_itself() {
        let _signals = open().unwrap();
        let mut command = Command::new("cat");
        command.arg("/proc/self/status").stdout(Stdio::piped());
        let output = unblocked(|| command.spawn()).unwrap().unwrap().wait_with_output().unwrap();
        let status = String::from_utf8(output.stdout).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        assert_eq!(u64::from_str_radix(blocked.trim(), 16), Ok(0), "{status}");
    }
}
