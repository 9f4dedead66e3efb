//! The daemons: killed at any moment, they lose nothing; a dead device model is noticed.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use xen_types::DomId;

use super::Case;
use crate::harness::command::{XL, outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::daemons::{kill_hard, start, start_outriggerd};
use crate::harness::events::Events;
use crate::harness::guest::{Made, wait_for_domain};
use crate::harness::qmp::Qmp;
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("daemon::sigkill_loses_no_guest", sigkill),
    Case::new("daemon::sigkill_during_create_leaves_nothing", sigkill_during_create),
    Case::new("daemon::consoled_sigkill_takes_consoles_up_again", consoled_sigkill),
    Case::new("daemon::dead_stubdomain_is_noticed_and_guest_destroyed", dead_stub),
    Case::new("daemon::dead_stubdomain_restarts_guest_when_asked", dead_stub_restart),
    Case::new("daemon::api_is_introspectable", introspection),
];

fn sigkill() -> Result<()> {
    let (guest, mut console) = GuestConfig::hello("keeper").boot()?;
    kill_hard("outriggerd")?;
    outrigger(&["list"])?.refused(5, &["outriggerd"])?;
    // The guest does not notice.
    console.echo("anyone?")?;
    start_outriggerd()?;
    guest.must_be_the_same()?;
    guest.destroy()
}

fn sigkill_during_create() -> Result<()> {
    let child = create_in_background(&GuestConfig::hello("half"))?;
    // The stubdomain's name is there as soon as it is made: well within the create.
    wait_for_domain("half-dm")?;
    kill_hard("outriggerd")?;
    let status = child.wait_with_output()?.status;
    ensure!(!status.success(), "create says it has succeeded");
    start_outriggerd()?;
    // It listens first, and clears up then.
    wait_until_gone("half")
}

fn create_in_background(config: &GuestConfig) -> Result<Child> {
    let config = config.write()?;
    let mut command = Command::new("outrigger");
    command.args(["create", &config.to_string_lossy()]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

fn wait_until_gone(name: &str) -> Result<()> {
    let deadline = Instant::now() + seconds(60);
    while outrigger(&["domid", name])?.status != 4 {
        ensure!(Instant::now() < deadline, "the half-made guest is still there");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn consoled_sigkill() -> Result<()> {
    let (guest, _console) = GuestConfig::hello("voice").boot()?;
    kill_hard("outrigger-consoled")?;
    start("outrigger-consoled", || Console::serial(&guest, 0).is_ok())?;
    Console::serial(&guest, 0)?.echo("back again")?;
    guest.destroy()
}

/// Kills a stubdomain as a crash of its kernel would.
fn kill_stub(guest: &Made) -> Result<()> {
    let stub = guest.stub()?.to_string();
    run(XL, &["destroy", &stub])?.good()?;
    Ok(())
}

fn dead_stub() -> Result<()> {
    let guest = GuestConfig::hello("victim").create()?;
    let mut events = Events::subscribe()?;
    kill_stub(&guest)?;
    let start = Instant::now();
    events.wait_for("victim", "dm-died", 10)?;
    let noticed = start.elapsed();
    ensure!(noticed < seconds(2), "noticed only after {noticed:?}");
    events.wait_for("victim", "destroyed", 30)?;
    guest.must_be_gone().context("the guest without a device model")?;
    ensure!(outrigger(&["dm-log", "victim"])?.status == 0, "the log was not kept");
    Ok(())
}

fn dead_stub_restart() -> Result<()> {
    let config = GuestConfig::hello("phoenix").line("on_device_model_crash='restart'");
    let guest = config.create()?;
    let mut events = Events::subscribe()?;
    let mut client = client_with_a_request("phoenix", guest.stub()?)?;
    let start = Instant::now();
    kill_stub(&guest)?;
    client_is_told(&mut client, start)?;
    events.wait_for("phoenix", "created", 120)?;
    connection_ends(client, start)?;
    is_answered("phoenix")?;
    let again = guest.successor()?;
    config.booted(&again)?;
    again.destroy()
}

/// A client with a request that is with QEMU, which does not get to answer it.
fn client_with_a_request(guest: &str, stub: DomId) -> Result<Qmp> {
    let mut client = Qmp::connect(guest)?;
    run(XL, &["pause", &stub.to_string()])?.good()?;
    client.send(&json!({"execute": "query-status", "id": "mine"}))?;
    Qmp::connect(guest)?.wait_in_flight(1, 30)?;
    Ok(client)
}

fn is_answered(guest: &str) -> Result<()> {
    let answer = Qmp::connect(guest)?.ask(&json!({"execute": "query-status", "id": 1}))?;
    ensure!(answer["id"] == 1 && answer["return"]["status"].is_string(), "{answer}");
    Ok(())
}

/// Who spoke with the dead one's QEMU is told, and not left to wait; the new one's answers.
fn client_is_told(client: &mut Qmp, end: Instant) -> Result<()> {
    let failed = client.answer(60)?;
    let why = failed["error"]["desc"].as_str().unwrap_or_default();
    ensure!(failed["id"] == "mine" && why.contains("the device model has ended"), "{failed}");
    client.event("OUTRIGGER_SESSION_LOST", 30)?;
    ensure!(end.elapsed() < seconds(10), "told only after {:?}", end.elapsed());
    Ok(())
}

/// A connection to the dead one's QEMU is closed within a minute of its end.
fn connection_ends(mut client: Qmp, end: Instant) -> Result<()> {
    while client.message(60).is_ok() {}
    ensure!(end.elapsed() < seconds(60), "a connection to a QEMU that is gone stays open");
    Ok(())
}

/// Calls, and what is in their answers.
const CALLS: [(&str, &str); 5] = [
    (r#"{"method":"org.varlink.service.GetInfo"}"#, "io.outrigger"),
    (
        r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.outrigger"}}"#,
        "method Create",
    ),
    (r#"{"method":"io.outrigger.Nonsense"}"#, "org.varlink.service.MethodNotFound"),
    (r#"{"method":"io.outrigger.Get","parameters":{"guest":7}}"#, "org.varlink.service.InvalidParameter"),
    // The connection has survived both.
    (r#"{"method":"io.outrigger.List"}"#, "guests"),
];

fn introspection() -> Result<()> {
    let mut stream = UnixStream::connect(api::DEFAULT_SOCKET)?;
    stream.set_read_timeout(Some(seconds(10)))?;
    for (call, wanted) in CALLS {
        let answer = call_varlink(&mut stream, call)?;
        ensure!(answer.contains(wanted), "{call}: no \"{wanted}\" in {answer}");
    }
    Ok(())
}

/// The answer to a call, frame by frame as the protocol has it.
fn call_varlink(stream: &mut UnixStream, call: &str) -> Result<String> {
    stream.write_all(call.as_bytes())?;
    stream.write_all(&[0])?;
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != 0 {
        text.push(byte[0]);
    }
    Ok(String::from_utf8(text)?)
}
