//! The device's state on its way out of a stubdomain and into another.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use console::attach::SOCKET_DIR;
use console::stream::Stream;
use stubdom_abi::DmKey;
use xen_types::DomId;
use xenstore::{Store as _, Xenstore};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;
use crate::harness::daemons::{kill_hard, start_outriggerd};
use crate::harness::guest::{Made, wait_for_domain};
use crate::harness::seconds;
use crate::harness::vchan::Asking;

pub(super) const CASES: &[Case] =
    &[Case::new("state::goes_out_of_and_into_a_stubdomain_in_frames", out_and_in)];

/// Consoles 1 and 2.
const OUT: u32 = 1;
const IN: u32 = 2;
/// What QEMU's states begin with.
const MAGIC: &[u8] = b"QEVM";

fn out_and_in() -> Result<()> {
    let giver = GuestConfig::hello("giver").create()?;
    let state = saved_twice(&giver)?;
    giver.destroy()?;
    let taker = created_with(&state)?;
    let log = outrigger(&["dm-log", "taker"])?.good()?.stdout;
    ensure!(log.contains(&format!("received a state of {} bytes", state.len())), "it says nothing: {log}");
    println!("     {} bytes went out, twice, and came in", state.len());
    taker.destroy()
}

/// A guest whose QEMU waits for a state, and gets it.
fn created_with(state: &[u8]) -> Result<Made> {
    let config =
        GuestConfig::hello("taker").line("device_model_args=['-incoming', '$STUBDOM_RESTORE_INCOMING_ARG']");
    // It comes back when QEMU says that it runs, which it does when it has the whole state.
    let creation = std::thread::spawn(move || config.create());
    let sent = stream(wait_for_domain("taker-dm")?, IN)?.send(&mut &*state);
    let taker = creation.join().map_err(|_| anyhow::anyhow!("the creation panicked"))??;
    ensure!(sent? == state.len() as u64, "another length was sent");
    Ok(taker)
}

/// QEMU's way out stays open after a state: there can be another.
fn saved_twice(giver: &Made) -> Result<Vec<u8>> {
    let (target, stub) = giver.domids()?;
    // The daemon holds the one session of the monitor, and lets nobody save through its own.
    kill_hard("outriggerd")?;
    let mut monitor = monitor(stub, target)?;
    monitor.command(r#"{"execute": "stop"}"#)?;
    let (first, second) = (save(&mut monitor, stub, target)?, save(&mut monitor, stub, target)?);
    for state in [&first, &second] {
        ensure!(state.starts_with(MAGIC), "a state of {} bytes is none of QEMU's", state.len());
    }
    monitor.command(r#"{"execute": "cont"}"#)?;
    drop(monitor);
    start_outriggerd()?;
    Ok(second)
}

/// A session of QEMU's monitor.
fn monitor(stub: DomId, target: DomId) -> Result<Asking> {
    let mut monitor = Asking::connect(stub, &DmKey::QmpVchan.path(stub, target))?;
    ensure!(monitor.line()?.starts_with("{\"QMP\""), "no greeting");
    monitor.command(r#"{"execute": "qmp_capabilities"}"#)?;
    Ok(monitor)
}

/// What a toolstack does for a state: takes the stream, asks QEMU, says that it was all.
fn save(monitor: &mut Asking, stub: DomId, target: DomId) -> Result<Vec<u8>> {
    let stream = stream(stub, OUT)?;
    let receiver = std::thread::spawn(move || {
        let mut state = Vec::new();
        stream.receive(&mut state).map(|length| (state, length))
    });
    monitor.command(
        r#"{"execute": "xen-save-devices-state", "arguments": {"filename": "/dev/fdset/1", "live": false}}"#,
    )?;
    Xenstore::open()?.write(&DmKey::StateEnd.path(stub, target), b"1")?;
    let (state, length) = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(state.len() as u64 == length, "{} bytes came of {length}", state.len());
    Ok(state)
}

/// The stream of a console that the daemon may not have found yet.
fn stream(stub: DomId, number: u32) -> Result<Stream> {
    let deadline = Instant::now() + seconds(60);
    loop {
        match Stream::open(Path::new(SOCKET_DIR), stub, number, seconds(60)) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::yield_now(),
        }
    }
}
