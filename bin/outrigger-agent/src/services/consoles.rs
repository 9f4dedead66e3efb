//! The consoles' devices in raw mode.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use stubdom_abi::StubConsole;

use crate::error::AgentError;

/// Sets a terminal to raw mode: no echo, no translation.
pub(crate) fn set_raw<F: AsFd>(terminal: &F) -> Result<(), Errno> {
    let mut settings = tcgetattr(terminal)?;
    cfmakeraw(&mut settings);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)
}

/// The secondary consoles that the stubdomain has, whose numbers have no gap: `exists` looks for a Xen device by its
/// name.
pub(crate) fn present(exists: impl Fn(&str) -> bool) -> Vec<StubConsole> {
    let consoles = (1..).map_while(|number| StubConsole::from_number(number).ok());
    consoles.take_while(|console| exists(&format!("console-{}", console.number()))).collect()
}

/// Opens a console's device, in one direction, and sets it to raw mode.
///
/// What dom0 has written before waits in the console's ring, and comes with an interrupt as soon as the device is open.
/// The worker of the kernel that then applies the mode to it must not run before the mode is set: as a terminal's
/// line, an early byte 3 is Ctrl-C, which throws away all before it, and each byte is echoed.
pub(crate) fn open_raw(console: StubConsole) -> Result<File, AgentError> {
    open_with(console, OFlag::empty())
}

/// The same for an end that is polled: reads and writes do not wait.
pub(crate) fn open_raw_polled(console: StubConsole) -> Result<File, AgentError> {
    open_with(console, OFlag::O_NONBLOCK)
}

fn open_with(console: StubConsole, flags: OFlag) -> Result<File, AgentError> {
    let mut options = OpenOptions::new();
    match console {
        StubConsole::StateIn => options.read(true),
        // QEMU takes a descriptor from its set only when the way it is open is the way that it is to be used.
        StubConsole::StateOut => options.write(true),
        StubConsole::Log | StubConsole::Serial(_) => options.read(true).write(true),
    };
    // Never this process' controlling terminal.
    let mut open = || {
        let file = options
            .custom_flags((OFlag::O_NOCTTY | flags).bits())
            .open(console.device())
            .map_err(|error| errno_of(&error))?;
        set_raw(&file)?;
        Ok(file)
    };
    linux_sched::undisturbed(&mut open).map_err(|errno| AgentError::Console(console, errno))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_are_those_without_a_gap() {
        let among = |there: &[&str]| -> Vec<u32> {
            present(|name| there.contains(&name)).iter().map(|console| console.number().into()).collect()
        };
        assert!(among(&[]).is_empty());
        assert_eq!(among(&["console-1", "console-2", "console-3", "console-5", "vbd-768"]), [1, 2, 3]);
        let all: Vec<String> = (0..12).map(|number| format!("console-{number}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(among(&all), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
