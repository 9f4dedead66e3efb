//! Consoles: ours, stock xenconsoled and QEMU's console backend beside each other, fed by the same guests.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xenstore::{Store as _, Xenstore, XsPath};

use super::sources::{
    echoes, file_rate, file_relay_rate, fresh_folder, open_tty, open_tty_blocking, precise, pty_rate,
    pty_relay_rate, read_rate, ring_rate, socket, wait_for_size,
};
use super::{FOLDER, STOCK_PID, figure};
use crate::harness::console_guest::ConsoleGuest;
use crate::harness::daemons::ConsoleDaemon;
use crate::harness::seconds;

/// How long bytes are counted.
const WINDOW: Duration = Duration::from_secs(3);
/// How long idleness is watched.
const IDLE_WINDOW: Duration = Duration::from_secs(10);
/// Bytes after which a console's memory is full.
const FULL: u64 = 80 * 1024;
/// Consoles in the measurements of many.
const MANY: usize = 8;
/// Idle consoles.
const IDLE: usize = 50;
/// Keys pressed.
const KEYS: u32 = 100;
const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";

type Part = fn() -> Result<()>;

/// What can be measured by itself. Those that are compared stand beside each other in time, because other work on the
/// machine comes and goes.
pub(super) const PARTS: [(&str, Part); 6] = [
    ("file_one", || files("file_one", 1)),
    ("file_eight", || files("file_eight", MANY)),
    ("pty_one", || terminals("pty_one", 1)),
    ("pty_eight", || terminals("pty_eight", MANY)),
    ("keys", keys),
    ("idle", idle),
];

/// Measures all of it, or the parts that are named, `runs` times.
pub(super) fn measure(runs: u32, parts: &[String]) -> Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.iter().any(|(name, _)| name == part)) {
        bail!("there is no part {unknown} of the console bench");
    }
    for run in 1..=runs {
        let chosen = |name| parts.is_empty() || parts.iter().any(|part| part == name);
        for (name, part) in PARTS.iter().filter(|(name, _)| chosen(*name)) {
            println!("-- run {run} of {runs}: {name}");
            let start = Instant::now();
            part().with_context(|| format!("cannot measure {name}"))?;
            println!("-- {name} took {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

fn floods(count: usize, keys: &[(&str, &str)]) -> Result<Vec<ConsoleGuest>> {
    (0..count).map(|nth| ConsoleGuest::start(&format!("flood{nth}"), "s", keys)).collect()
}

fn mega(rate: f64) -> f64 {
    rate / 1e6
}

/// The ring's own limit: bytes are taken and thrown away.
fn ring(id: &str, count: usize) -> Result<()> {
    let _nobody = ConsoleDaemon::none()?;
    figure(&format!("{id}.ring"), mega(ring_rate(&floods(count, &[])?, WINDOW)?), "MB/s");
    Ok(())
}

fn ttys(guests: &[ConsoleGuest]) -> Result<Vec<File>> {
    guests.iter().map(|guest| open_tty(&guest.tty("")?)).collect()
}

/// The logs of the floods.
fn logs(whose: &str, count: usize) -> Vec<PathBuf> {
    (0..count).map(|nth| format!("{FOLDER}/{whose}/guest-flood{nth}.log").into()).collect()
}

/// From guests to files.
fn files(id: &str, count: usize) -> Result<()> {
    for whose in ["stock", "ours", "qemu"] {
        fresh_folder(&Path::new(FOLDER).join(whose))?;
    }
    ring(id, count)?;
    {
        let _nobody = ConsoleDaemon::none()?;
        let rate = file_relay_rate(&floods(count, &[])?, Path::new(FOLDER), WINDOW)?;
        figure(&format!("{id}.relay"), mega(rate), "MB/s");
    }
    {
        let folder = format!("--log-dir={FOLDER}/stock");
        let _daemon = ConsoleDaemon::stock(&["--log=guest", &folder, STOCK_PID])?;
        let _guests = floods(count, &[])?;
        figure(&format!("{id}.stock"), mega(file_rate(&logs("stock", count), WINDOW)?), "MB/s");
    }
    qemu_files(id, count)?;
    let _daemon = ConsoleDaemon::ours(&[&format!("--log-dir={FOLDER}/ours")])?;
    let _guests = floods(count, &[("output", "null")])?;
    figure(&format!("{id}.ours"), mega(file_rate(&logs("ours", count), WINDOW)?), "MB/s");
    Ok(())
}

/// From guests to who reads their pseudo-terminals.
fn terminals(id: &str, count: usize) -> Result<()> {
    fresh_folder(Path::new(FOLDER))?;
    figure(&format!("{id}.pty"), mega(pty_rate(count, WINDOW)?), "MB/s");
    {
        let _nobody = ConsoleDaemon::none()?;
        figure(&format!("{id}.relay"), mega(pty_relay_rate(floods(count, &[])?, WINDOW)?), "MB/s");
    }
    {
        let _daemon = ConsoleDaemon::stock(&["--log=none", STOCK_PID])?;
        let guests = floods(count, &[])?;
        figure(&format!("{id}.stock"), mega(read_rate(ttys(&guests)?, WINDOW)?), "MB/s");
    }
    qemu_terminals(id, count)?;
    let _daemon = ConsoleDaemon::ours(&["--log=none"])?;
    // Nothing is lost: what is measured is what a reader gets.
    let guests = floods(count, &[("output-overflow", "block")])?;
    figure(&format!("{id}.ours"), mega(read_rate(ttys(&guests)?, WINDOW)?), "MB/s");
    Ok(())
}

/// From a key to its echo.
fn keys() -> Result<()> {
    fresh_folder(Path::new(FOLDER))?;
    {
        let _daemon = ConsoleDaemon::stock(&["--log=none", STOCK_PID])?;
        let echo = ConsoleGuest::start("echo", "e", &[])?;
        key_latency("stock", &echo, None)?;
        let guests = floods(MANY, &[])?;
        key_latency("stock", &echo, Some(guests.len()))?;
    }
    let folder = format!("--log-dir={FOLDER}/ours");
    let daemon = ConsoleDaemon::ours(&[&folder])?;
    let echo = ConsoleGuest::start("echo", "e", &[])?;
    key_latency("ours", &echo, None)?;
    let took = echoes(socket(&echo)?, 1).and_then(|_| echoes(socket_without_replay(&echo)?, KEYS))?;
    figure("key_socket.ours", middle(&took), "ms");
    let before = daemon.number("smaps_rollup", "Pss:")?;
    let guests = floods(MANY, &[("output", "null")])?;
    // Each has said more than is kept by then.
    for path in logs("ours", MANY) {
        wait_for_size(&path, FULL)?;
    }
    let after = daemon.number("smaps_rollup", "Pss:")?;
    figure("memory_full.ours", precise(after.saturating_sub(before)) / precise(MANY as u64), "KiB");
    key_latency("ours", &echo, Some(guests.len()))
}

/// A viewer behind the replay.
fn socket_without_replay(guest: &ConsoleGuest) -> Result<std::os::unix::net::UnixStream> {
    use std::io::{Read as _, Write as _};

    let mut stream = std::os::unix::net::UnixStream::connect(
        Path::new(console::attach::SOCKET_DIR).join(console::request::CONTROL),
    )?;
    stream.set_read_timeout(Some(seconds(30)))?;
    writeln!(stream, "view {}.0 since=0", guest.domid)?;
    let mut answer = [0; 3];
    stream.read_exact(&mut answer)?;
    // What came in the last second may still come: quiet is what counts.
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    stream.set_read_timeout(Some(seconds(30)))?;
    Ok(stream)
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// From a key to its echo through the pseudo-terminal, alone or while others flood.
fn key_latency(whose: &str, echo: &ConsoleGuest, floods: Option<usize>) -> Result<()> {
    let mut tty = open_tty(&echo.tty("")?)?;
    // What an earlier reader left.
    while std::io::Read::read(&mut tty, &mut [0; 4096]).is_ok_and(|count| count > 0) {}
    let took = echoes(open_tty_blocking(&echo.tty("")?)?, KEYS)?;
    let id = if floods.is_some() { "key_in_flood" } else { "key" };
    figure(&format!("{id}.{whose}"), middle(&took), "ms");
    figure(&format!("{id}_worst.{whose}"), took.last().copied().unwrap_or(f64::NAN), "ms");
    Ok(())
}

/// Consoles that say nothing.
fn idle() -> Result<()> {
    fresh_folder(Path::new(FOLDER))?;
    idle_cost("stock", &ConsoleDaemon::stock(&["--log=guest", &format!("--log-dir={FOLDER}"), STOCK_PID])?)?;
    idle_cost("ours", &ConsoleDaemon::ours(&[&format!("--log-dir={FOLDER}")])?)
}

/// Time, wake-ups and memory of a daemon with many consoles that say nothing.
fn idle_cost(whose: &str, daemon: &ConsoleDaemon) -> Result<()> {
    let before = daemon.number("smaps_rollup", "Pss:")?;
    let guests: Vec<ConsoleGuest> =
        (0..IDLE).map(|nth| ConsoleGuest::start(&format!("idle{nth}"), "i", &[])).collect::<Result<_>>()?;
    for guest in &guests {
        guest.tty("")?;
    }
    // The last one's start.
    std::thread::sleep(Duration::from_secs(1));
    let memory = daemon.number("smaps_rollup", "Pss:")?.saturating_sub(before);
    let switches = |daemon: &ConsoleDaemon| daemon.number("status", "voluntary_ctxt_switches:");
    let (time, wakes) = (daemon.time()?, switches(daemon)?);
    std::thread::sleep(IDLE_WINDOW);
    figure(&format!("idle_time.{whose}"), precise(daemon.time()? - time) * 10.0, "ms");
    figure(&format!("idle_wakes.{whose}"), precise(switches(daemon)? - wakes), "count");
    figure(&format!("memory_idle.{whose}"), precise(memory) / precise(IDLE as u64), "KiB");
    Ok(())
}

/// QEMU as the console backend of one domain.
struct Qemu(Child);

impl Qemu {
    fn start(guest: &ConsoleGuest) -> Result<Self> {
        let store = Xenstore::open()?;
        let domid = guest.domid;
        let front = format!("/local/domain/{domid}/console");
        let back = format!("/local/domain/0/backend/console/{domid}/0");
        for (key, value) in [
            (format!("{front}/backend"), back.as_str()),
            (format!("{front}/backend-id"), "0"),
            (format!("{back}/frontend"), front.as_str()),
            (format!("{back}/frontend-id"), &domid.to_string()),
            (format!("{back}/online"), "1"),
            (format!("{back}/state"), "1"),
            (format!("{back}/protocol"), "vt100"),
        ] {
            store.write(&XsPath::new(key)?, value.as_bytes())?;
        }
        let child = Command::new(QEMU)
            .args(["-xen-domid", &domid.to_string(), "-xen-attach", "-name", "bench", "-M", "xenpv"])
            .args(["-nographic", "-vnc", "none", "-monitor", "none", "-serial", "none"])
            .stdin(Stdio::null())
            .stdout(File::create(format!("{FOLDER}/qemu-{domid}.log"))?)
            .stderr(File::create(format!("{FOLDER}/qemu-{domid}.err"))?)
            .spawn()
            .context("cannot start QEMU")?;
        Ok(Self(child))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_files(id: &str, count: usize) -> Result<()> {
    let _nobody = ConsoleDaemon::none()?;
    let paths: Vec<PathBuf> = (0..count).map(|nth| format!("{FOLDER}/qemu/{nth}").into()).collect();
    let outputs: Vec<String> = paths.iter().map(|path| format!("file:{}", path.display())).collect();
    let guests: Vec<ConsoleGuest> = outputs
        .iter()
        .enumerate()
        .map(|(nth, output)| {
            ConsoleGuest::make(&format!("flood{nth}"), "s", &[("type", "ioemu"), ("output", output)])
        })
        .collect::<Result<_>>()?;
    let _qemus = guests.iter().map(Qemu::start).collect::<Result<Vec<_>>>()?;
    guests.iter().try_for_each(ConsoleGuest::unpause)?;
    figure(&format!("{id}.qemu"), mega(file_rate(&paths, WINDOW)?), "MB/s");
    forget(&guests)
}

fn qemu_terminals(id: &str, count: usize) -> Result<()> {
    let _nobody = ConsoleDaemon::none()?;
    let keys = [("type", "ioemu"), ("output", "pty")];
    let guests = (0..count)
        .map(|nth| ConsoleGuest::make(&format!("flood{nth}"), "s", &keys))
        .collect::<Result<Vec<_>>>()?;
    let _qemus = guests.iter().map(Qemu::start).collect::<Result<Vec<_>>>()?;
    let ttys = ttys(&guests)?;
    guests.iter().try_for_each(ConsoleGuest::unpause)?;
    figure(&format!("{id}.qemu"), mega(read_rate(ttys, WINDOW)?), "MB/s");
    forget(&guests)
}

/// Removes the backends' nodes.
fn forget(guests: &[ConsoleGuest]) -> Result<()> {
    let store = Xenstore::open()?;
    for guest in guests {
        store.rm(&XsPath::new(format!("/local/domain/0/backend/console/{}", guest.domid))?)?;
    }
    Ok(())
}
