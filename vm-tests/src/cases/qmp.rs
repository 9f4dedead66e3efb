//! QMP: many clients, none trusted, no session stuck.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Case;
use super::daemon::{kill_hard, start_outriggerd};
use crate::harness::command::outrigger;
use crate::harness::guest::{Made, hello};
use crate::harness::qmp::Qmp;

pub(super) const CASES: &[Case] = &[
    Case::new("qmp::command_line_asks_and_policy_refuses", command_line),
    Case::new("qmp::daemon_killed_within_an_answer_recovers", killed),
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
