//! The choice of the QEMU that emulates the host.

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use image::compiled::Program;
use image::packages::Store;
use testhost::{Emulator, Machine, Observer as _};

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

/// What to do when none is compiled yet and nobody asked for one by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// Compile it, which takes minutes.
    Compile {
        /// Installs missing Debian packages without asking.
        yes: bool,
    },
    /// Say so and take Debian's.
    UseDebian,
}

/// Which QEMU emulates the host.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Options {
    /// The QEMU that emulates the host; otherwise the patched one where it is compiled, else Debian's.
    #[arg(long, env = VARIABLE, value_enum, value_name = "WHICH")]
    emulator: Option<Choice>,
}

impl Options {
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

    /// Finds the emulator, or compiles it.
    pub(crate) fn find(self, absent: Absent, view: &mut View) -> Result<Emulator> {
        if self.emulator == Some(Choice::Debian) {
            return Ok(Emulator::debian());
        }
        let store = Store::from_environment()?;
        if let Some(emulator) = Emulator::newest(&store) {
            return Ok(emulator);
        }
        let yes = match absent {
            Absent::Compile { yes } => yes,
            Absent::UseDebian if self.emulator.is_some() => true,
            Absent::UseDebian => {
                view.progress(
                    "Debian's QEMU emulates the host: keep guests off its first CPU, where that QEMU breaks one now \
                     and then (--emulator patched compiles one that does not)",
                );
                return Ok(Emulator::debian());
            }
        };
        let compiled = compile(&store, &[Program::Emulator], yes, view)?;
        let (_, emulator) = compiled.first().ok_or_else(|| anyhow!("Nothing was compiled"))?;
        Ok(Emulator::patched(emulator))
    }

    /// The usual machine with this emulator.
    pub(crate) fn machine(self, absent: Absent, view: &mut View) -> Result<Machine> {
        Ok(Machine { emulator: self.find(absent, view)?, ..Machine::default() })
    }
}

/// The usual machine with the emulator that the environment asks for, for a command without the option.
pub(crate) fn machine(view: &mut View) -> Result<Machine> {
    Options::from_env()?.machine(Absent::UseDebian, view)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_needs_neither_a_cache_nor_a_compiler() {
        let options = Options { emulator: Some(Choice::Debian) };
        let machine = options.machine(Absent::Compile { yes: true }, &mut View::new(true, false)).unwrap();
        assert_eq!(machine, Machine::default());
    }
}
