//! The device's state on its way out of a stubdomain and into another.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use console::attach::SOCKET_DIR;
use console::stream::Stream;
use stubdom_abi::DmKey;
use xen_types::DomId;
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use super::vchan::{Asking, answer};
use crate::harness::command::outrigger;
use crate::harness::daemons::{kill_hard, start_outriggerd};
use crate::harness::guest::{Made, hello};
use crate::harness::seconds;

pub(super) const CASES: &[Case] =
    &[Case::new("state::goes_out_of_and_into_a_stubdomain_in_frames", out_and_in)];

/// Consoles 1 and 2.
const OUT: u32 = 1;
const IN: u32 = 2;
/// What QEMU's states begin with.
const MAGIC: &[u8] = b"QEVM";

fn out_and_in() -> Result<()> {
    let giver = Made::create(&hello("giver", "")?, &[])?;
    let (stub, target) = (giver.stub()?, giver.guest.domid);
    // The daemon holds the one session of the monitor, and lets nobody save through its own.
    kill_hard("outriggerd")?;
    let mut monitor = Asking::connect(stub, &DmKey::QmpVchan.path(stub, target))?;
    ensure!(monitor.line()?.starts_with("{\"QMP\""), "no greeting");
    command(&mut monitor, r#"{"execute": "qmp_capabilities"}"#)?;
    command(&mut monitor, r#"{"execute": "stop"}"#)?;
    let first = save(&mut monitor, stub, target)?;
    // QEMU's way out stays open: there can be another.
    let state = save(&mut monitor, stub, target)?;
    for state in [&first, &state] {
        ensure!(state.starts_with(MAGIC), "a state of {} bytes is none of QEMU's", state.len());
    }
    command(&mut monitor, r#"{"execute": "cont"}"#)?;
    drop(monitor);
    start_outriggerd()?;
    giver.destroy()?;

    let config = hello("taker", "device_model_args=['-incoming', '$STUBDOM_RESTORE_INCOMING_ARG']")?;
    // It comes back when QEMU says that it runs, which it does when it has the whole state.
    let creation = std::thread::spawn(move || Made::create(&config, &[]));
    let stub = stub_of("taker")?;
    let sent = stream(stub, IN)?.send(&mut state.as_slice());
    let taker = creation.join().map_err(|_| anyhow::anyhow!("the creation panicked"))??;
    ensure!(sent? == state.len() as u64, "another length was sent");
    let log = outrigger(&["dm-log", "taker"])?.good()?.stdout;
    ensure!(log.contains(&format!("received a state of {} bytes", state.len())), "it says nothing: {log}");
    println!("     {} bytes went out, twice, and came in", state.len());
    taker.destroy()
}

/// Asks QEMU's monitor for something that has no answer.
fn command(monitor: &mut Asking, request: &str) -> Result<()> {
    monitor.send(request.as_bytes())?;
    let answer = answer(monitor)?;
    ensure!(answer.contains("{\"return\": {}}"), "{request}: {answer}");
    Ok(())
}

/// What a toolstack does for a state: takes the stream, asks QEMU, says that it was all.
fn save(monitor: &mut Asking, stub: DomId, target: DomId) -> Result<Vec<u8>> {
    let stream = stream(stub, OUT)?;
    let receiver = std::thread::spawn(move || {
        let mut state = Vec::new();
        stream.receive(&mut state).map(|length| (state, length))
    });
    command(
        monitor,
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

/// The stubdomain of a guest that is being created.
fn stub_of(name: &str) -> Result<DomId> {
    let store = Xenstore::open()?;
    let deadline = Instant::now() + seconds(60);
    let wanted = format!("{name}-dm");
    loop {
        for domid in store.list(&XsPath::new("/local/domain")?)?.unwrap_or_default() {
            let named = store.read(&XsPath::new(format!("/local/domain/{domid}/name"))?)?;
            if named.as_deref() == Some(wanted.as_bytes()) {
                return domid.parse().context("a domain without a number");
            }
        }
        ensure!(Instant::now() < deadline, "{wanted} does not come");
        std::thread::yield_now();
    }
}
