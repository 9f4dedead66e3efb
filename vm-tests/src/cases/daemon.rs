//! The daemons: killed at any moment, they lose nothing; a dead device model is noticed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use xenstore::{Store, Xenstore, XsPath};

use super::Case;
use crate::harness::command::{XL, outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::daemons::{kill_hard, start, start_outriggerd};
use crate::harness::events::Events;
use crate::harness::guest::{Made, hello, must_run};
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
    let guest = Made::create(&hello("keeper", "")?, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("echoing COM1", 60)?;
    kill_hard("outriggerd")?;
    outrigger(&["list"])?.refused(5, &["outriggerd"])?;
    // The guest does not notice.
    console.type_text("anyone?")?;
    console.wait_for("anyone?", 30)?;
    start_outriggerd()?;
    let again = must_run("keeper")?;
    ensure!(again.domid == guest.guest.domid && again.stub_domid == guest.guest.stub_domid, "{again:?}");
    guest.destroy()
}

fn sigkill_during_create() -> Result<()> {
    let config = hello("half", "")?;
    let store = Xenstore::open()?;
    let child = Command::new("outrigger")
        .args(["create", &config.to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The stubdomain's name is there as soon as it is made: well within the create.
    let domains = XsPath::new("/local/domain")?;
    let watch = store.watch(&domains)?;
    let deadline = Instant::now() + seconds(60);
    'found: loop {
        for id in store.list(&domains)?.unwrap_or_default() {
            let name = store.read_string(&domains.join(&id)?.join("name")?, 256)?;
            if name.as_deref() == Some("half-dm") {
                break 'found;
            }
        }
        ensure!(watch.recv_deadline(deadline)?.is_some(), "no stubdomain came");
    }
    kill_hard("outriggerd")?;
    let status = child.wait_with_output()?.status;
    ensure!(!status.success(), "create says it has succeeded");
    start_outriggerd()?;
    // It listens first, and clears up then.
    let deadline = Instant::now() + seconds(60);
    while outrigger(&["domid", "half"])?.status != 4 {
        ensure!(Instant::now() < deadline, "the half-made guest is still there");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn consoled_sigkill() -> Result<()> {
    let guest = Made::create(&hello("voice", "")?, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("echoing COM1", 60)?;
    kill_hard("outrigger-consoled")?;
    start("outrigger-consoled", || Console::serial(&guest, 0).is_ok())?;
    let mut console = Console::serial(&guest, 0)?;
    console.type_text("back again")?;
    console.wait_for("back again", 30)?;
    guest.destroy()
}

/// Kills a stubdomain as a crash of its kernel would.
fn kill_stub(guest: &Made) -> Result<()> {
    let stub = guest.stub()?.to_string();
    run(XL, &["destroy", &stub])?.good()?;
    Ok(())
}

fn dead_stub() -> Result<()> {
    let guest = Made::create(&hello("victim", "")?, &[])?;
    let mut events = Events::subscribe()?;
    kill_stub(&guest)?;
    let start = Instant::now();
    events.wait_for("victim", "dm-died", 10)?;
    let noticed = start.elapsed();
    ensure!(noticed < seconds(2), "noticed only after {noticed:?}");
    events.wait_for("victim", "destroyed", 30)?;
    ensure!(outrigger(&["domid", "victim"])?.status == 4, "the guest without a device model is still there");
    ensure!(outrigger(&["dm-log", "victim"])?.status == 0, "the log was not kept");
    guest.leave();
    Ok(())
}

fn dead_stub_restart() -> Result<()> {
    let guest = Made::create(&hello("phoenix", "on_device_model_crash='restart'")?, &[])?;
    let mut events = Events::subscribe()?;
    let mut client = Qmp::connect("phoenix")?;
    // A request that is with QEMU, which does not get to answer it.
    run(XL, &["pause", &guest.stub()?.to_string()])?.good()?;
    client.send(&json!({"execute": "query-status", "id": "mine"}))?;
    Qmp::connect("phoenix")?.wait_in_flight(1, 30)?;
    let start = Instant::now();
    kill_stub(&guest)?;
    // Who spoke with the dead one's QEMU is told, and not left to wait; the new one's answers.
    let failed = client.answer(60)?;
    let why = failed["error"]["desc"].as_str().unwrap_or_default();
    ensure!(failed["id"] == "mine" && why.contains("the device model has ended"), "{failed}");
    client.event("OUTRIGGER_SESSION_LOST", 30)?;
    ensure!(start.elapsed() < seconds(10), "told only after {:?}", start.elapsed());
    events.wait_for("phoenix", "created", 120)?;
    while client.message(60).is_ok() {}
    ensure!(start.elapsed() < seconds(60), "a connection to a QEMU that is gone stays open");
    let answer = Qmp::connect("phoenix")?.ask(&json!({"execute": "query-status", "id": 1}))?;
    ensure!(answer["id"] == 1 && answer["return"]["status"].is_string(), "{answer}");
    let again = must_run("phoenix")?;
    ensure!(again.domid != guest.guest.domid, "it is the same domain");
    guest.leave();
    let again = Made { guest: again };
    Console::serial(&again, 0)?.wait_for("echoing COM1", 60)?;
    again.destroy()
}

fn introspection() -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(api::DEFAULT_SOCKET)?;
    stream.set_read_timeout(Some(seconds(10)))?;
    let ask = |stream: &mut std::os::unix::net::UnixStream, call: &str| -> Result<String> {
        stream.write_all(call.as_bytes())?;
        stream.write_all(&[0])?;
        let mut text = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte[0] != 0 {
            text.push(byte[0]);
        }
        Ok(String::from_utf8(text)?)
    };
    let info = ask(&mut stream, r#"{"method":"org.varlink.service.GetInfo"}"#)?;
    ensure!(info.contains("io.outrigger"), "{info}");
    let text = ask(
        &mut stream,
        r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.outrigger"}}"#,
    )?;
    ensure!(text.contains("method Create"), "{text}");
    let wrong = ask(&mut stream, r#"{"method":"io.outrigger.Nonsense"}"#)?;
    ensure!(wrong.contains("org.varlink.service.MethodNotFound"), "{wrong}");
    let wrong = ask(&mut stream, r#"{"method":"io.outrigger.Get","parameters":{"guest":7}}"#)?;
    ensure!(wrong.contains("org.varlink.service.InvalidParameter"), "{wrong}");
    // The connection has survived both.
    ensure!(ask(&mut stream, r#"{"method":"io.outrigger.List"}"#)?.contains("guests"), "no list");
    Ok(())
}
