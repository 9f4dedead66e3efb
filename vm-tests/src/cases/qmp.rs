//! QMP: many clients, none trusted, no session stuck.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use console::attach::SOCKET_DIR;
use console::request::Request;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use stubdom_abi::{DmKey, Feature, Features};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::consoles::Console;
use crate::harness::daemons::pid;
use crate::harness::daemons::{kill_hard, start, start_outriggerd};
use crate::harness::guest::{Made, hello, scratch};
use crate::harness::qmp::Qmp;
use crate::harness::seconds;
use crate::harness::terminal::Terminal;

pub(super) const CASES: &[Case] = &[
    Case::new("qmp::command_line_asks_and_policy_refuses", command_line),
    Case::new("qmp::prompt_completes_remembers_and_hears_events", prompt),
    Case::new("qmp::daemon_killed_within_an_answer_recovers", killed),
    Case::new("qmp::stubdomain_without_vchan_has_it_on_a_console", on_console),
];

fn status(client: &mut Qmp, id: &Value) -> Result<()> {
    let answer = client.ask(&json!({"execute": "query-status", "id": id}))?;
    ensure!(answer["return"]["status"] == "running" && answer["id"] == *id, "{answer}");
    Ok(())
}

fn command_line() -> Result<()> {
    let guest = Made::create(&hello("asked", "")?, &[])?;
    let said = outrigger(&["qmp", "--json", "asked", "query-status"])?.good()?.stdout;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    ensure!(said["running"] == true, "{said}");
    // The largest answer: a stubdomain has to have the memory for it.
    let schema = outrigger(&["qmp", "--json", "asked", "query-qmp-schema"])?.good()?.stdout;
    ensure!(schema.contains("query-status"), "it is not the schema: {schema}");
    outrigger(&["qmp", "asked", "qom-list", "path=/machine"])?.good()?;
    outrigger(&["qmp", "asked", "qom-list", "{\"path\": \"/machine\"}"])?.good()?;
    outrigger(&["qmp", "asked", "qom-list", "path=/nowhere"])?.refused(1, &["DeviceNotFound"])?;
    outrigger(&["qmp", "asked", "quit"])?.refused(1, &["--unsafe"])?;
    outrigger(&["qmp", "asked", "screendump", "filename=/etc/passwd"])?.refused(1, &["does not allow"])?;
    outrigger(&["qmp", "--role=observer", "asked", "system_reset"])?.refused(1, &["observer"])?;
    outrigger(&["qmp", "--role=king", "asked", "query-status"])?.refused(1, &["observer, operator"])?;
    outrigger(&["qmp", "nobody", "query-status"])?.refused(4, &["nobody"])?;
    let mut watcher = Qmp::connect("asked")?;
    outrigger(&["qmp", "--unsafe", "asked", "stop"])?.good()?;
    watcher.event("STOP", 30)?;
    outrigger(&["qmp", "--unsafe", "asked", "{\"execute\": \"cont\"}"])?.good()?;
    watcher.event("RESUME", 30)?;
    let mut child = Command::new("outrigger")
        .args(["qmp", "asked", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start outrigger")?;
    let requests = "{\"execute\": \"query-status\", \"id\": 1}{\"execute\": \"query-name\", \"id\": 2}\n";
    child.stdin.take().context("no input")?.write_all(requests.as_bytes())?;
    let output = String::from_utf8(child.wait_with_output()?.stdout)?;
    let ids: Vec<_> = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
    ensure!(ids.len() == 2 && ids[0]["id"] == 1 && ids[1]["id"] == 2, "{output}");
    guest.destroy()
}

/// As a person has it: a terminal, keys, and what happens meanwhile.
fn prompt() -> Result<()> {
    let guest = Made::create(&hello("typed", "")?, &[])?;
    let home = scratch("typed-state", b"")?;
    std::fs::remove_file(&home)?;
    let start = || {
        let mut command = Command::new("outrigger");
        command.args(["qmp", "typed"]).env("TERM", "xterm").env("XDG_STATE_HOME", &home);
        let mut terminal = Terminal::run(&mut command)?;
        terminal.hear("qmp typed> ", 90)?;
        anyhow::Ok(terminal)
    };
    let mut terminal = start()?;
    terminal.press(b"query-statu\t\r")?;
    terminal.hear("\"running\": true", 30)?;
    terminal.press(b"qom-list pa\t/machine/peripheral\r")?;
    terminal.hear("path=", 30)?;
    terminal.hear("\"type\"", 30)?;
    terminal.press(b"query-nothing\r")?;
    terminal.hear("query-nothing failed: CommandNotFound", 30)?;
    outrigger(&["qmp", "--unsafe", "typed", "stop"])?.good()?;
    terminal.hear("\"STOP\"", 30)?;
    outrigger(&["qmp", "--unsafe", "typed", "cont"])?.good()?;
    terminal.hear("\"RESUME\"", 30)?;
    terminal.press(b"\x04")?;
    let status = terminal.end(30)?;
    ensure!(status.success(), "it ended with {status}");
    // The first of the three lines is remembered in another session.
    let mut terminal = start()?;
    terminal.press(b"\x1b[A\x1b[A\x1b[A\r")?;
    terminal.hear("\"running\": true", 30)?;
    guest.destroy()?;
    terminal.hear("The connection was closed", 30)?;
    terminal.press(b"query-status\r")?;
    let status = terminal.end(30)?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    Ok(())
}

/// The daemon dies while a long answer is half way through the vchan, and the ring keeps the other half.
fn killed() -> Result<()> {
    let guest = Made::create(&hello("cut", "")?, &[])?;
    for _ in 0..3 {
        let mut client = Qmp::connect("cut")?;
        client.send(&json!({"execute": "query-qmp-schema"}))?;
        client.send(&json!({"execute": "query-status"}))?;
        kill_hard("outriggerd")?;
        while client.message(30).is_ok() {}
        start_outriggerd()?;
        status(&mut Qmp::connect("cut")?, &json!("again"))?;
    }
    guest.destroy()
}

/// Neither side of the console knows where the other one was cut, and there is nobody in between who would.
fn on_console() -> Result<()> {
    let guest = Made::create(&hello("plain", "device_model_qmp='console'")?, &[])?;
    let (stub, target) = (guest.stub()?, guest.guest.domid);
    // Behind the two serial ports.
    let monitor = 5;
    let store = Xenstore::open()?;
    let features = store.read(&DmKey::Features.path(stub, target))?.unwrap_or_default();
    ensure!(!Features::decode(&features).has(Feature::QmpVchan), "a vchan is announced");
    ensure!(store.list(&DmKey::QmpVchan.path(stub, target))?.is_none(), "a vchan is served");

    let said = outrigger(&["qmp", "--json", "plain", "query-status"])?.good()?.stdout;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    ensure!(said["running"] == true, "{said}");
    let clients = (0..4).map(|_| Qmp::connect("plain")).collect::<Result<Vec<_>>>()?;
    let ask = |(number, mut client): (usize, Qmp)| -> Result<()> {
        (0..5).try_for_each(|round| status(&mut client, &json!([number, round])))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            clients.into_iter().enumerate().map(|client| scope.spawn(move || ask(client))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    Console::serial(&guest, 0)?.wait_for("echoing COM1", 60)?;

    request_cut(stub, monitor)?;
    answer_cut(stub, monitor)?;
    guest.destroy()
}

/// The daemon dies with half of a request sent, which is longer than what can be on the way.
fn request_cut(stub: DomId, monitor: u32) -> Result<()> {
    let path = "a".repeat(30_000);
    let mut client = Qmp::connect("plain")?;
    let consoled = pid("outrigger-consoled")?;
    kill(consoled, Signal::SIGSTOP)?;
    client.send(&json!({"execute": "qom-list", "arguments": {"path": path}}))?;
    let killed = Qmp::connect("plain")
        .and_then(|mut other| other.wait_in_flight(1, 30))
        .and_then(|()| kill_hard("outriggerd"));
    kill(consoled, Signal::SIGCONT)?;
    killed?;
    start_outriggerd()?;
    let start = Instant::now();
    status(&mut Qmp::connect("plain")?, &json!("after a cut request"))?;
    println!("     in step {:?} after half a request", start.elapsed());
    // What QEMU had of it was dropped, and answered as what cannot be.
    let mut seen = Console::attach(stub, monitor)?;
    seen.wait_for("JSON parse error, stray '\\\"aaaa", 10)?;
    ensure!(!seen.seen.contains("DeviceNotFound"), "it was executed: {}", seen.seen);
    Ok(())
}

/// The console daemon dies with half of an answer taken.
fn answer_cut(stub: DomId, monitor: u32) -> Result<()> {
    let consoled = pid("outrigger-consoled")?;
    let mut client = Qmp::connect("plain")?;
    let before = said_by(stub, monitor)?;
    client.send(&json!({"execute": "query-qmp-schema", "id": "long"}))?;
    let deadline = Instant::now() + seconds(30);
    while said_by(stub, monitor)? == before {
        ensure!(Instant::now() < deadline, "QEMU does not answer");
    }
    kill(consoled, Signal::SIGKILL)?;
    let failed = client.answer(60)?;
    let why = failed["error"]["desc"].as_str().unwrap_or_default();
    ensure!(failed["id"] == "long" && why.contains("was lost"), "{failed}");
    client.event("OUTRIGGER_SESSION_LOST", 30)?;
    start("outrigger-consoled", || Console::attach(stub, monitor).is_ok())?;
    let start = Instant::now();
    client.event("OUTRIGGER_SESSION_RESTORED", 60)?;
    status(&mut client, &json!("after a cut answer"))?;
    println!("     in step {:?} after half an answer", start.elapsed());
    Ok(())
}

/// How many bytes a console has said.
fn said_by(domid: DomId, number: u32) -> Result<u64> {
    let mut report = String::new();
    console::attach::ask(SOCKET_DIR.as_ref(), &Request::List)?.read_to_string(&mut report)?;
    let id = format!("{domid}.{number} connected ");
    let line = report.lines().find_map(|line| line.strip_prefix(&id)).context("no such console")?;
    Ok(line.split(' ').next().context("no number")?.parse()?)
}
