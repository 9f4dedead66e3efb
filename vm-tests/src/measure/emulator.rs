//! The guests that the emulator breaks, and how long Linux guests take to boot.
//!
//! What broke guests under QEMU as Debian has it: whichever CPU restores an FPU state writes to a word of the first CPU's,
//! which that changes itself whenever a guest leaves to Xen. So here a guest on the first CPU does nothing but leave, and
//! dom0 on the second nothing but switch between processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;
use vm_report::places::{EXITS_DISK, LINUX_DISK};

use super::example::folder;
use super::sources::precise;
use super::{Failures, LOGS, figure, has_words};
use crate::harness::command::{Stopped, XL, run};
use crate::harness::guest::{Made, list};
use crate::harness::seconds;

/// How long the first guest leaves to Xen in a run.
const PART: Duration = Duration::from_secs(90);
/// So often the guest leaves for each dot on its serial port.
const EXITS_A_DOT: u64 = 20_000;
/// Between two looks at a guest: dom0 is to do nothing else.
const AGAIN: Duration = Duration::from_millis(500);

/// An end of the pipe.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum End {
    /// Writes byte after byte.
    Write,
    /// Reads byte after byte.
    Read,
}

/// Is one end of a pipe, until the other one is gone. Each byte is a call of the system.
pub(super) fn switch(end: End) -> Result<()> {
    let mut byte = [b'\n'];
    loop {
        let moved = match end {
            End::Write => nix::unistd::write(std::io::stdout(), &byte)?,
            End::Read => nix::unistd::read(std::io::stdin(), &mut byte)?,
        };
        if moved == 0 {
            return Ok(());
        }
    }
}

/// Two processes on dom0's CPU that take turns.
struct Switches([Stopped; 2]);

impl Switches {
    fn start() -> Result<Self> {
        let end = |end: &str| {
            let mut command = Command::new("/proc/self/exe");
            command.args(["measure", "switch", end]);
            command
        };
        let mut writer = end("write").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let pipe = writer.stdout.take().context("no pipe")?;
        let writer = Stopped(writer);
        let reader = end("read").stdin(pipe).stdout(Stdio::null()).spawn()?;
        Ok(Self([writer, Stopped(reader)]))
    }

    /// Ends them, and fails when they have not run all the time.
    fn stop(mut self) -> Result<()> {
        for Stopped(process) in &mut self.0 {
            ensure!(process.try_wait()?.is_none(), "what switches in dom0 has ended");
        }
        Ok(())
    }
}

/// Measures both, `runs` times.
pub(super) fn measure(runs: u32) -> Result<()> {
    let mut failures = Failures::default();
    let exits = config("exits", EXITS_DISK, "memory = 32\ncpus = '0'\n")?;
    let linux = [
        ("linux1", config("linux1", LINUX_DISK, "memory = 256\n")?),
        ("linux2", config("linux2", LINUX_DISK, "memory = 256\n")?),
    ];
    broken()?;
    let (mut exits_broken, mut linux_broken) = (0, 0);
    for run in 1..=runs {
        println!("-- run {run} of {runs}: exits");
        failures.tried("exits", exits_beside_switches(&exits));
        exits_broken += broken()?;
        println!("-- run {run} of {runs}: two Linux guests");
        for (outcome, (name, _)) in both(&linux).into_iter().zip(&linux) {
            failures.tried(name, outcome);
        }
        linux_broken += broken()?;
    }
    figure("exits.broken", precise(exits_broken), "guests");
    figure("linux.broken", precise(linux_broken), "guests");
    failures.end()
}

/// The configuration of a guest with a disk of its own.
fn config(name: &str, disk: &str, more: &str) -> Result<PathBuf> {
    let image = folder()?.join(format!("{name}.img"));
    fs::copy(disk, &image).with_context(|| format!("cannot copy {disk}"))?;
    let text = format!(
        "name = '{name}'\ntype = 'hvm'\nvcpus = 1\nvga = 'none'\nserial = 'pty'\nhdtype = 'ahci'\n\
         disk = [ 'format=raw, vdev=hda, access=rw, target={}' ]\n\
         on_poweroff = 'destroy'\non_reboot = 'destroy'\non_crash = 'destroy'\n{more}",
        image.display()
    );
    let path = folder()?.join(format!("{name}.cfg"));
    fs::write(&path, text)?;
    Ok(path)
}

/// A guest that a measurement has created; the emulator may break it at any moment.
struct Measured {
    name: &'static str,
    guest: Made,
    log: PathBuf,
}

/// What became of a guest that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Words,
    GuestIsGone,
    TooLate,
}

impl Measured {
    fn create(name: &'static str, config: &Path) -> Result<Self> {
        let log = Path::new(LOGS).join(format!("{name}-dm.3.log"));
        // That of a guest before it.
        let _ = fs::remove_file(&log);
        let guest = Made::create(config, &[]).with_context(|| format!("create of {name}"))?;
        Ok(Self { name, guest, log })
    }

    fn is_listed(&self) -> Result<bool> {
        Ok(list()?.iter().any(|guest| guest.name == self.name))
    }

    /// Waits until it says these words on its serial port.
    fn hear(&self, words: &str, within: u64) -> Result<Heard> {
        let deadline = Instant::now() + seconds(within);
        while !has_words(&self.log, words) {
            if !self.is_listed()? {
                return Ok(Heard::GuestIsGone);
            }
            if Instant::now() >= deadline {
                return Ok(Heard::TooLate);
            }
            std::thread::sleep(AGAIN);
        }
        Ok(Heard::Words)
    }

    /// Destroys it, if it is still there.
    fn end(self) -> Result<()> {
        if self.is_listed()? {
            // It may go by itself in this moment.
            let _ = self.guest.destroy();
        } else {
            self.guest.leave();
        }
        Ok(())
    }
}

/// How many guests had Xen's own instruction pointer since the last time that this was called.
fn broken() -> Result<u64> {
    let log = run(XL, &["dmesg", "-c"])?.good()?.stdout;
    Ok(with_xens_rip(&log))
}

fn with_xens_rip(log: &str) -> u64 {
    let is_xens = |line: &str| {
        line.split("RIP:").skip(1).any(|after| after.trim_start_matches(' ').starts_with("e008:[<ffff82d"))
    };
    log.lines().map(|line| u64::from(is_xens(line))).sum()
}

fn exits_beside_switches(config: &Path) -> Result<()> {
    run(XL, &["vcpu-pin", "0", "0", "1"])?.good()?;
    let outcome = Switches::start().and_then(|switches| exits(config).and_then(|()| switches.stop()));
    run(XL, &["vcpu-pin", "0", "0", "all"])?.good()?;
    outcome
}

/// A guest that leaves to Xen all the time, created again when it breaks.
fn exits(config: &Path) -> Result<()> {
    let mut left = PART;
    while !left.is_zero() {
        let guest = Measured::create("exits", config)?;
        let heard = guest.hear("TESTGUEST ready", 120)?;
        ensure!(heard == Heard::Words, "the guest of exits did not start: {heard:?}");
        let begun = Instant::now();
        while begun.elapsed() < left && guest.is_listed()? {
            std::thread::sleep(AGAIN);
        }
        let dots = fs::read(&guest.log)?.iter().map(|byte| u64::from(*byte == b'.')).sum::<u64>();
        figure("exits.rate", precise(dots * EXITS_A_DOT) / begun.elapsed().as_secs_f64(), "per_s");
        left = left.saturating_sub(begun.elapsed());
        guest.end()?;
    }
    Ok(())
}

/// Two Linux guests at once, wherever Xen runs them.
fn both(configs: &[(&'static str, PathBuf); 2]) -> [Result<()>; 2] {
    std::thread::scope(|scope| {
        let threads = configs.each_ref().map(|(name, config)| scope.spawn(move || linux(name, config)));
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))))
    })
}

/// Boots a Linux guest. One that the emulator breaks is counted elsewhere.
fn linux(name: &'static str, config: &Path) -> Result<()> {
    let guest = Measured::create(name, config)?;
    let begun = Instant::now();
    match guest.hear("TESTGUEST up", 600)? {
        Heard::Words => figure("linux.boot", begun.elapsed().as_secs_f64(), "s"),
        other => println!("{name} did not come up: {other:?}"),
    }
    guest.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_with_xens_instruction_pointer_is_broken() {
        let log = "(XEN) RIP:    e008:[<ffff82d040325ea1>] vmx_asm\n(XEN) RIP:    0010:[<ffffffff81>]\n(XEN) hello\n";
        assert_eq!(with_xens_rip(log), 1);
        assert_eq!(with_xens_rip(""), 0);
    }
}
