//! A moment in which a thread of Linux runs before all others of its processor.
//!
//! This crate has `unsafe` for one system call, `sched_setscheduler`: neither `nix` nor `rustix` offers it.

use std::cell::Cell;
use std::io;

use nix::libc::{SCHED_FIFO, SCHED_OTHER, sched_param, sched_setscheduler};

/// The highest real-time priority.
const FIRST: i32 = 99;

/// Runs `work` at the highest real-time priority, as far as this process may have it.
///
/// On the only processor of a machine nothing but interrupts runs meanwhile, unless `work` sleeps: no other process,
/// and no worker of the kernel. Work within such work changes nothing. What `work` starts has the priority too, and
/// keeps it.
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    thread_local!(static IS_FIRST: Cell<bool> = const { Cell::new(false) });
    if IS_FIRST.get() {
        return work();
    }
    // Without the right to it, the work is done all the same.
    IS_FIRST.set(set(SCHED_FIFO, FIRST).is_ok());
    let value = work();
    if IS_FIRST.replace(false) {
        // Giving up a privilege is always allowed.
        let _ = set(SCHED_OTHER, 0);
    }
    value
}

fn set(policy: i32, priority: i32) -> io::Result<()> {
    let parameters = sched_param { sched_priority: priority };
    // SAFETY: 0 is the calling thread, and the parameters are read during the call only.
    let status = unsafe { sched_setscheduler(0, policy, &raw const parameters) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 41st field of `/proc/thread-self/stat`, the policy (proc(5)).
    fn policy() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        after_name.split_whitespace().nth(38).unwrap().parse().unwrap()
    }

    #[test]
    fn the_priority_lasts_as_long_as_the_work() {
        let may = set(SCHED_FIFO, FIRST).and_then(|()| set(SCHED_OTHER, 0)).is_ok();
        let during = undisturbed(|| (undisturbed(policy), policy()));
        let expected = if may { SCHED_FIFO } else { SCHED_OTHER };
        assert_eq!(during, (expected, expected));
        assert_eq!(policy(), SCHED_OTHER);
    }
}
