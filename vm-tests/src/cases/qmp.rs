//! QMP: many clients, none trusted, no session stuck.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use console::attach::SOCKET_DIR;
use console::request::Request;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use stubdom_abi::{DmKey, Feature, Features};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::daemons::{kill_hard, pid, start, start_outriggerd};
use crate::harness::guest::{Made, unused};
use crate::harness::qmp::{Qmp, at_once, by_command};
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
    let guest = GuestConfig::hello("asked").create()?;
    commands_are_answered()?;
    commands_are_refused()?;
    events_come()?;
    requests_from_a_pipe()?;
    guest.destroy()
}

fn commands_are_answered() -> Result<()> {
    let said = by_command("asked", "query-status")?;
    ensure!(said["running"] == true, "{said}");
    // The largest answer: a stubdomain has to have the memory for it.
    let schema = outrigger(&["qmp", "--json", "asked", "query-qmp-schema"])?.good()?.stdout;
    ensure!(schema.contains("query-status"), "it is not the schema: {schema}");
    outrigger(&["qmp", "asked", "qom-list", "path=/machine"])?.good()?;
    outrigger(&["qmp", "asked", "qom-list", "{\"path\": \"/machine\"}"])?.good().map(drop)
}

fn commands_are_refused() -> Result<()> {
    outrigger(&["qmp", "asked", "qom-list", "path=/nowhere"])?.refused(1, &["DeviceNotFound"])?;
    outrigger(&["qmp", "asked", "quit"])?.refused(1, &["--unsafe"])?;
    outrigger(&["qmp", "asked", "screendump", "filename=/etc/passwd"])?.refused(1, &["does not allow"])?;
    outrigger(&["qmp", "--role=observer", "asked", "system_reset"])?.refused(1, &["observer"])?;
    outrigger(&["qmp", "--role=king", "asked", "query-status"])?.refused(1, &["observer, operator"])?;
    outrigger(&["qmp", "nobody", "query-status"])?.refused(4, &["nobody"]).map(drop)
}

fn events_come() -> Result<()> {
    let mut watcher = Qmp::connect("asked")?;
    outrigger(&["qmp", "--unsafe", "asked", "stop"])?.good()?;
    watcher.event("STOP", 30)?;
    outrigger(&["qmp", "--unsafe", "asked", "{\"execute\": \"cont\"}"])?.good()?;
    watcher.event("RESUME", 30).map(drop)
}

fn requests_from_a_pipe() -> Result<()> {
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
    Ok(())
}

/// As a person has it: a terminal, keys, and what happens meanwhile.
fn prompt() -> Result<()> {
    let guest = GuestConfig::hello("typed").create()?;
    let home = unused("typed-state")?;
    let mut terminal = start_prompt(&home)?;
    prompt_completes(&mut terminal)?;
    prompt_hears_events(&mut terminal)?;
    end_of_input_ends_it(terminal)?;
    // The first of the three lines is remembered in another session.
    let mut terminal = start_prompt(&home)?;
    terminal.press(b"\x1b[A\x1b[A\x1b[A\r")?;
    terminal.hear("\"running\": true", 30)?;
    guest.destroy()?;
    prompt_ends_with_its_guest(terminal)
}

fn end_of_input_ends_it(mut terminal: Terminal) -> Result<()> {
    terminal.press(b"\x04")?;
    let status = terminal.end(30)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn start_prompt(home: &Path) -> Result<Terminal> {
    let mut command = Command::new("outrigger");
    command.args(["qmp", "typed"]).env("TERM", "xterm").env("XDG_STATE_HOME", home);
    let mut terminal = Terminal::run(&mut command)?;
    terminal.hear("qmp typed> ", 90)?;
    Ok(terminal)
}

fn prompt_completes(terminal: &mut Terminal) -> Result<()> {
    terminal.press(b"query-statu\t\r")?;
    terminal.hear("\"running\": true", 30)?;
    terminal.press(b"qom-list pa\t/machine/peripheral\r")?;
    terminal.hear("path=", 30)?;
    terminal.hear("\"type\"", 30)?;
    terminal.press(b"query-nothing\r")?;
    terminal.hear("query-nothing failed: GenericError: query-nothing is no command that Outrigger knows", 30)
}

fn prompt_hears_events(terminal: &mut Terminal) -> Result<()> {
    outrigger(&["qmp", "--unsafe", "typed", "stop"])?.good()?;
    terminal.hear("\"STOP\"", 30)?;
    outrigger(&["qmp", "--unsafe", "typed", "cont"])?.good()?;
    terminal.hear("\"RESUME\"", 30)
}

fn prompt_ends_with_its_guest(mut terminal: Terminal) -> Result<()> {
    terminal.hear("The connection was closed", 30)?;
    terminal.press(b"query-status\r")?;
    let status = terminal.end(30)?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    Ok(())
}

/// The daemon dies while a long answer is half way through the vchan, and the ring keeps the other half.
fn killed() -> Result<()> {
    let guest = GuestConfig::hello("cut").create()?;
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

/// Behind the two serial ports.
const MONITOR: u32 = 5;

/// Neither side of the console knows where the other one was cut, and there is nobody in between who would.
fn on_console() -> Result<()> {
    let config = GuestConfig::hello("plain").line("device_model_qmp='console'");
    let guest = config.create()?;
    must_have_no_vchan(&guest)?;
    let said = by_command("plain", "query-status")?;
    ensure!(said["running"] == true, "{said}");
    let clients = (0..4).map(|_| Qmp::connect("plain")).collect::<Result<Vec<_>>>()?;
    at_once(clients, |number, client| (0..5).try_for_each(|round| status(client, &json!([number, round]))))?;
    config.booted(&guest)?;
    request_cut(guest.stub()?)?;
    answer_cut(guest.stub()?)?;
    guest.destroy()
}

fn must_have_no_vchan(guest: &Made) -> Result<()> {
    let (target, stub) = guest.domids()?;
    let store = Xenstore::open()?;
    let features = store.read(&DmKey::Features.path(stub, target))?.unwrap_or_default();
    ensure!(!Features::decode(&features).has(Feature::QmpVchan), "a vchan is announced");
    ensure!(store.list(&DmKey::QmpVchan.path(stub, target))?.is_none(), "a vchan is served");
    Ok(())
}

/// The daemon dies with half of a request sent, which is longer than what can be on the way.
fn request_cut(stub: DomId) -> Result<()> {
    let mut client = Qmp::connect("plain")?;
    while_no_byte_moves(|| send_half_and_kill(&mut client))?;
    start_outriggerd()?;
    let start = Instant::now();
    status(&mut Qmp::connect("plain")?, &json!("after a cut request"))?;
    println!("     in step {:?} after half a request", start.elapsed());
    // What QEMU had of it was dropped, and answered as what cannot be.
    let mut seen = Console::attach(stub, MONITOR)?;
    seen.wait_for("JSON parse error, stray '\\\"aaaa", 10)?;
    ensure!(!seen.seen.contains("DeviceNotFound"), "it was executed: {}", seen.seen);
    Ok(())
}

/// Does something while the console daemon stands still.
fn while_no_byte_moves(what: impl FnOnce() -> Result<()>) -> Result<()> {
    let consoled = pid("outrigger-consoled")?;
    kill(consoled, Signal::SIGSTOP)?;
    let done = what();
    kill(consoled, Signal::SIGCONT)?;
    done
}

fn send_half_and_kill(client: &mut Qmp) -> Result<()> {
    let path = "a".repeat(30_000);
    client.send(&json!({"execute": "qom-list", "arguments": {"path": path}}))?;
    Qmp::connect("plain")?.wait_in_flight(1, 30)?;
    kill_hard("outriggerd")
}

/// The console daemon dies with half of an answer taken.
fn answer_cut(stub: DomId) -> Result<()> {
    let consoled = pid("outrigger-consoled")?;
    let mut client = Qmp::connect("plain")?;
    begin_a_long_answer(&mut client, stub)?;
    kill(consoled, Signal::SIGKILL)?;
    session_is_lost(&mut client)?;
    start("outrigger-consoled", || Console::attach(stub, MONITOR).is_ok())?;
    let start = Instant::now();
    client.event("OUTRIGGER_SESSION_RESTORED", 60)?;
    status(&mut client, &json!("after a cut answer"))?;
    println!("     in step {:?} after half an answer", start.elapsed());
    Ok(())
}

fn begin_a_long_answer(client: &mut Qmp, stub: DomId) -> Result<()> {
    let before = said_by(stub, MONITOR)?;
    client.send(&json!({"execute": "query-qmp-schema", "id": "long"}))?;
    let deadline = Instant::now() + seconds(30);
    while said_by(stub, MONITOR)? == before {
        ensure!(Instant::now() < deadline, "QEMU does not answer");
    }
    Ok(())
}

fn session_is_lost(client: &mut Qmp) -> Result<()> {
    let failed = client.answer(60)?;
    let why = failed["error"]["desc"].as_str().unwrap_or_default();
    ensure!(failed["id"] == "long" && why.contains("was lost"), "{failed}");
    client.event("OUTRIGGER_SESSION_LOST", 30).map(drop)
}

/// How many bytes a console has said.
fn said_by(domid: DomId, number: u32) -> Result<u64> {
    let mut report = String::new();
    console::attach::ask(SOCKET_DIR.as_ref(), &Request::List)?.read_to_string(&mut report)?;
    let id = format!("{domid}.{number} connected ");
    let line = report.lines().find_map(|line| line.strip_prefix(&id)).context("no such console")?;
    Ok(line.split(' ').next().context("no number")?.parse()?)
}
