//! Tells a guest that the emulated host has broken from one that ours has.
//!
//! QEMU 7.2, when it emulates AMD's virtualisation, now and then leaves Xen's own registers in the guest's control block
//! at an exit; it was seen on CPU 0 alone, hence guests run on CPU 1. The guest then goes on at an instruction of Xen's,
//! triple-faults, and reboots as a guest would. Xen's log shows it: the guest's instruction pointer is in Xen's own text,
//! where no guest can get by itself.

use super::command::{XL, run};

/// How Xen tells of it, before the guest's registers.
const FAULT: &str = "Triple fault";
/// Xen's code segment and where its text lies (`xen/include/asm-x86/config.h`).
const WITHIN_XEN: &str = "e008:[<ffff82d";
/// Lines of a dump between the fault and the instruction pointer.
const NEAR: usize = 6;

/// How far Xen's log was, in seconds since its boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(f64);

impl Mark {
    /// The end of Xen's log.
    pub(crate) fn now() -> Self {
        Self(log().lines().filter_map(seconds_of).fold(0.0, f64::max))
    }

    /// Xen's word that since then a guest was given Xen's own registers.
    pub(crate) fn broken_guest(self) -> Option<String> {
        find(&log(), self.0)
    }
}

fn log() -> String {
    // Without Xen's own tools nobody can tell, and every failure counts.
    run(XL, &["dmesg"]).map(|output| output.stdout).unwrap_or_default()
}

fn find(log: &str, after: f64) -> Option<String> {
    let lines: Vec<&str> = log.lines().filter(|line| seconds_of(line).is_some_and(|at| at > after)).collect();
    let faults = lines.iter().enumerate().filter(|(_, line)| line.contains(FAULT));
    faults
        .filter_map(|(at, fault)| {
            let dump = lines.iter().skip(at).take(NEAR);
            let rip = dump.into_iter().find(|line| line.contains("RIP:") && line.contains(WITHIN_XEN))?;
            Some(format!("{}; {}", fault.trim(), rip.trim()))
        })
        .next()
}

/// The time stamp of `(XEN) [  205.056353] …`. Before Xen knows the time its stamps are hexadecimal, as in
/// `(XEN) [0000000012345678] …`, and some of them would do for a decimal number.
fn seconds_of(line: &str) -> Option<f64> {
    let stamp = line.strip_prefix("(XEN) [")?.split_once(']')?.0.trim();
    let (whole, part) = stamp.split_once('.')?;
    let is_plain = [whole, part].iter().all(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    if is_plain { stamp.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKEN: &str = "(XEN) [    5.995802] Freed 656kB init memory\n\
        (XEN) [  205.056353] d37v0 Triple fault - invoking HVM shutdown action 1\n\
        (XEN) [  205.064890] *** Dumping Dom37 vcpu#0 state: ***\n\
        (XEN) [  205.066936] ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----\n\
        (XEN) [  205.072018] CPU:    0\n\
        (XEN) [  205.072308] RIP:    e008:[<ffff82d0402044a5>]\n";

    #[test]
    fn guest_with_xens_registers_is_the_emulators() {
        assert!(find(BROKEN, 6.0).unwrap().contains("d37v0"));
        assert_eq!(find(BROKEN, 300.0), None, "it was before");
    }

    #[test]
    fn stamps_of_before_the_clock_are_none() {
        for stamp in ["0000000012345678", "0000000041e98012", "00000000374c7b77"] {
            assert_eq!(seconds_of(&format!("(XEN) [{stamp}] Command line")), None, "{stamp}");
        }
        assert_eq!(seconds_of("(XEN) [  205.056353] x"), Some(205.056_353));
    }

    #[test]
    fn guest_that_faults_by_itself_is_not() {
        let own = BROKEN.replace("e008:[<ffff82d0402044a5>]", "0008:[<0000000000102c3f>]");
        assert_eq!(find(&own, 6.0), None);
        assert_eq!(find("", 0.0), None);
    }
}
