//! Live migration between the hosts of a pair: xl with QEMU in dom0, xl with the stubdomain, ours. The guest is Linux with its
//! PV drivers, and all three move it through the same relay.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vm_report::Omission;
use vm_report::places::LINUX_DISK;

use super::create::{Kind, stub_keys};
use super::sources::precise;
use super::{Failures, STOCK_PID, figure};
use crate::harness::command::{Output, XL, run_within};
use crate::harness::config::GuestConfig;
use crate::harness::counter::{self, Count, Port};
use crate::harness::guest::Made;
use crate::harness::pair::{Pair, Task, conducted, migration, write_disk};
use crate::harness::peer::{SHARED_DISK, SMALL_SHARED_DISK, Side};
use crate::harness::relay::{Relay, XL_LOG};
use crate::harness::seconds;

/// The guest's memory, in MiB: a small one, and one whose memory takes most of the time.
const SIZES: [u64; 2] = [256, 1024];
/// The pages that the guest writes in each turn: little beside what a migration sends.
const PAGES: u64 = 16;
/// How many turns the guest makes before it moves.
const BEFORE: usize = 30;
/// How many turns it makes afterwards: the first may have begun before.
const AFTER: usize = 5;
/// The guest.
const NAME: &str = "mover";
/// The serial port of xl's guest with QEMU in dom0, at both hosts.
const COM1: &str = "/tmp/com1";
/// How long a command may take, and a migration, in seconds.
const PATIENCE: u64 = 300;
const LIMIT: u64 = 1200;
/// Between two questions to a host that waits.
const BETWEEN: Duration = Duration::from_secs(60);
/// How many of the last lines say why something was left out.
const SHOWN: usize = 8;
/// The guest's processor. With AVX, a guest that xl with QEMU in dom0 has migrated between two emulated hosts dies of its
/// next AVX instruction ("invalid opcode"). Without XSAVE it has no AVX.
const CPUID: &str = "'host,xsave=0'";

/// Measures all three, `runs` times, with so much memory or with all sizes. Both hosts call it.
pub(super) fn measure(runs: u32, sizes: &[u64]) -> Result<()> {
    let sizes = if sizes.is_empty() { &SIZES } else { sizes };
    conducted(|pair| {
        write_disk(SHARED_DISK, &std::fs::read(LINUX_DISK)?)?;
        // Zeros follow.
        write_disk(SMALL_SHARED_DISK, counter::program(PAGES).as_bytes())?;
        let mut failures = Failures::default();
        for run in 1..=runs {
            println!("-- run {run} of {runs}");
            sizes.iter().try_for_each(|&mib| all(pair, mib, &mut failures))?;
        }
        failures.end()
    })
}

fn all(pair: &mut Pair, mib: u64, failures: &mut Failures) -> Result<()> {
    let options = ["--log=none", STOCK_PID].map(str::to_owned);
    Side::BOTH.into_iter().try_for_each(|side| pair.ask(side, Task::ToXl(options.to_vec())))?;
    for kind in [Kind::XlDom0, Kind::XlStub] {
        if let Err(error) = once(pair, kind, mib) {
            // What xl cannot do is a result.
            let log = pair.ask::<Output>(Side::B, run(&["tail", "-n", "8", XL_LOG]))?.stdout;
            let why = format!("{}\nthe receiver: {}", last_lines(&format!("{error:#}")), last_lines(&log));
            println!("{}", Omission { omitted: format!("{mib}.{}", kind.name()), why }.line());
            sweep(pair, kind)?;
        }
    }
    Side::BOTH.into_iter().try_for_each(|side| pair.ask(side, Task::ToOurs))?;
    let outcome = once(pair, Kind::Ours, mib);
    if failures.tried(&format!("{} with {mib} MiB", Kind::Ours.name()), outcome).is_none() {
        sweep(pair, Kind::Ours)?;
    }
    Ok(())
}

/// Creates the guest on host-a, migrates it to host-b, and destroys it there.
fn once(pair: &mut Pair, kind: Kind, mib: u64) -> Result<()> {
    create(kind, mib).context("create")?;
    let before = count(pair, kind, Side::A, BEFORE)?;
    let clocks = pair.set_clocks()?;
    let (took, lowest) = migrate(pair, kind)?;
    let after = count(pair, kind, Side::B, AFTER)?;
    let ms = |micros: i64| precise(micros.unsigned_abs()) / 1000.0;
    println!(
        "   {} with {mib} MiB: stood still for {} ms at most before; the clocks differ by {:.1} ms, asked in {:.1} ms",
        kind.name(),
        before.gap * 10,
        ms(clocks.ahead),
        ms(clocks.took)
    );
    ensure!(after.number > before.number, "it has started anew: {before:?} {after:?}");
    ensure!(after.gap > before.gap, "it did not stand still for longer than before: {before:?} {after:?}");
    let of = |what: &str| format!("{what}_{mib}.{}", kind.name());
    figure(&of("migrate"), took.as_secs_f64(), "s");
    figure(&of("downtime"), precise(after.gap) / 100.0, "s");
    figure(&of("dom0_free"), precise(lowest) / 1024.0, "MiB");
    pair.ask::<Output>(Side::B, run(&[kind.program(), "destroy", NAME]))?.good().map(drop)
}

fn create(kind: Kind, mib: u64) -> Result<()> {
    let config = config(kind, mib);
    if kind == Kind::Ours {
        // The last one has moved away, and is destroyed.
        let guest = Made::create(&config.write()?, &["--force"])?;
        config.booted(&guest)?;
        guest.leave();
        return Ok(());
    }
    let path = config.write()?;
    run_within(seconds(PATIENCE), XL, &["create", &path.to_string_lossy()])?.good().map(drop)
}

fn config(kind: Kind, mib: u64) -> GuestConfig {
    let config = GuestConfig::linux(NAME, "").memory(mib).boot_disk(SHARED_DISK.as_ref());
    // A guest that ends stays ended: xl would make another one that counts from the start.
    let config =
        config.second_disk(SMALL_SHARED_DISK.as_ref()).set("on_reboot", "'destroy'").set("cpuid", CPUID);
    match kind {
        Kind::XlDom0 => config
            .set("device_model_stubdomain_override", "0")
            .set("serial", &format!("[ 'file:{COM1}', 'null' ]")),
        Kind::XlStub => stub_keys().into_iter().fold(config, |config, (key, value)| config.set(key, &value)),
        Kind::Ours => config,
    }
}

/// Waits until the guest has made so many turns there.
fn count(pair: &mut Pair, kind: Kind, side: Side, turns: usize) -> Result<Count> {
    let port = match kind {
        Kind::XlDom0 => Port::File(COM1.into()),
        Kind::XlStub => Port::Stub(NAME.to_owned()),
        Kind::Ours => return count_ours(pair, side, turns),
    };
    pair.ask(side, Task::XlCount(port, turns))
}

/// Each question is answered by a turn of its own.
fn count_ours(pair: &mut Pair, side: Side, turns: usize) -> Result<Count> {
    let mut asked = 0;
    loop {
        let count: Count = pair.ask(side, Task::Count(NAME.to_owned()))?;
        asked += 1;
        if asked >= AFTER && count.number >= turns as u64 {
            return Ok(count);
        }
    }
}

/// Migrates it; returns how long that took, and the least memory that either dom0 had, in KiB.
fn migrate(pair: &mut Pair, kind: Kind) -> Result<(Duration, u64)> {
    let relay = Relay::to(Side::B);
    Side::BOTH.into_iter().try_for_each(|side| pair.ask(side, Task::Watch))?;
    let start = Instant::now();
    let said = moved(pair, kind, relay)?;
    let took = start.elapsed();
    let mut lowest = u64::MAX;
    for side in Side::BOTH {
        lowest = lowest.min(pair.ask(side, Task::Lowest)?);
    }
    let said = said?.good()?;
    // Its rounds, and for how long the daemon says that the guest stood still; xl's progress is of no use.
    let is_shown = |line: &&str| ["\"round\"", "\"stood_still_ms\""].iter().any(|key| line.contains(key));
    said.stdout.lines().filter(is_shown).for_each(|line| println!("   {line}"));
    Ok((took, lowest))
}

/// Runs the command on host-a, which takes its time. host-b is asked something meanwhile, or it would give up waiting.
fn moved(pair: &mut Pair, kind: Kind, relay: Relay) -> Result<Result<Output>> {
    let args: Vec<String> = match kind {
        Kind::Ours => migration(Side::A, NAME, &relay.command()).map(str::to_owned).to_vec(),
        // With an empty ssh command, the host is the command.
        _ => ["migrate", "-s", "", NAME, &relay.xl().command()].map(str::to_owned).to_vec(),
    };
    let (sender, result) = mpsc::channel();
    thread::spawn(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // Nobody waits for it after a failure.
        let _ = sender.send(run_within(seconds(LIMIT), kind.program(), &args));
    });
    loop {
        match result.recv_timeout(BETWEEN) {
            Ok(said) => return Ok(said),
            Err(RecvTimeoutError::Timeout) => pair.ask::<i64>(Side::B, Task::Clock).map(drop)?,
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that migrates has panicked"),
        }
    }
}

fn run(words: &[&str]) -> Task {
    Task::Run(words.iter().map(|word| (*word).to_owned()).collect(), PATIENCE)
}

/// Destroys what a failure has left, at both hosts.
fn sweep(pair: &mut Pair, kind: Kind) -> Result<()> {
    for side in Side::BOTH {
        for name in [NAME.to_owned(), format!("{NAME}--incoming"), format!("{NAME}--migratedaway")] {
            // Most are not there.
            pair.ask::<Output>(side, run(&[kind.program(), "destroy", &name]))?;
        }
    }
    Ok(())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}
