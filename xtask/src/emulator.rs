//! The choice of the QEMU that emulates the host.

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use image::compiled::Program;
use image::packages::Store;
use testhost::{Accel, Emulator, Machine, Observer as _};

use crate::stubdom::compile;
use crate::view::View;

/// The variable for those commands that have no option, and the default of the option.
const VARIABLE: &str = "OUTRIGGER_EMULATOR";

/// A QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Debian's sources with its faults in the emulation of SVM removed, compiled on this machine.
    Patched,
    /// Debian's own program.
    Debian,
}

/// Which QEMU emulates the host.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct EmulatorOption {
    /// The QEMU that emulates the host; otherwise the patched one where it is compiled, else Debian's.
    #[arg(long, env = VARIABLE, value_enum, value_name = "WHICH")]
    emulator: Option<Choice>,
}

impl EmulatorOption {
    /// Those of the environment, for a command without the option.
    pub(crate) fn from_env() -> Result<Self> {
        let emulator = match std::env::var(VARIABLE) {
            Ok(word) if !word.is_empty() => Some(
                Choice::from_str(&word, false)
                    .map_err(|_| anyhow!("{VARIABLE}={word}: patched or debian is expected"))?,
            ),
            _ => None,
        };
        Ok(Self { emulator })
    }

    /// Finds the emulator. The patched one is compiled when it was asked for by name; otherwise Debian's is used where it
    /// is not there, and that is said.
    fn find(self, view: &mut View) -> Result<Emulator> {
        if self.emulator == Some(Choice::Debian) {
            return Ok(Emulator::debian());
        }
        let store = Store::from_environment()?;
        if let Some(emulator) = Emulator::newest(&store) {
            return Ok(emulator);
        }
        if self.emulator.is_none() {
            view.progress(
                "Debian's QEMU emulates the host: guests must not use its first CPU, where this QEMU occasionally \
                 breaks them (--emulator patched compiles one that does not)",
            );
            return Ok(Emulator::debian());
        }
        let compiled = compile(&store, &[Program::Emulator], true, view)?;
        let (_, emulator) = compiled.first().ok_or_else(|| anyhow!("Nothing was compiled"))?;
        Ok(Emulator::patched(emulator))
    }

    /// The usual machine with this emulator, executed by `accel`.
    pub(crate) fn machine(self, accel: Accel, view: &mut View) -> Result<Machine> {
        let emulator = match accel {
            Accel::Tcg => self.find(view)?,
            // The patched one is compiled for software emulation alone.
            Accel::Kvm(_) => Emulator::debian(),
        };
        Ok(Machine { emulator, accel, ..Machine::default() })
    }
}

/// The usual machine with the emulator that the environment asks for, for a command without the option.
pub(crate) fn machine(accel: Accel, view: &mut View) -> Result<Machine> {
    EmulatorOption::from_env()?.machine(accel, view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_needs_neither_a_cache_nor_a_compiler() {
        let options = EmulatorOption { emulator: Some(Choice::Debian) };
        let machine = options.machine(Accel::Tcg, &mut View::new(true, false)).unwrap();
        assert_eq!(machine, Machine::default());
    }
}
