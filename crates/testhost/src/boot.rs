//! The boot: from QEMU's start until dom0 says that its daemons are up.

use std::time::{Duration, Instant};

use crate::HostError;
use crate::events::Event;
use crate::vm::Vm;

/// Nothing on any channel for so long during the boot: it hangs. The longest silence of a good boot is 8 s.
const BOOT_SILENCE: Duration = Duration::from_secs(90);
/// The whole boot.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Waits until dom0 says that its daemons are up.
pub(crate) fn boot(vm: &mut Vm<'_>) -> Result<(), HostError> {
    vm.set_phase("boot");
    let end = Instant::now() + vm.scaled(BOOT_LIMIT);
    let silence = vm.scaled(BOOT_SILENCE);
    loop {
        let deadline = end.min(vm.last_heard() + silence);
        if Instant::now() >= deadline {
            return Err(vm.hung(silence));
        }
        let Some(Event::Control(line)) = vm.next(deadline)? else { continue };
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ready", uptime) => {
                vm.observer().progress(&format!("dom0 and its daemons are up (dom0's uptime: {uptime} s)"));
                return Ok(());
            }
            ("step", what) => vm.observer().progress(&format!("dom0: {what}")),
            ("failed", why) => return Err(vm.init_failed(why)),
            _ => {}
        }
    }
}
