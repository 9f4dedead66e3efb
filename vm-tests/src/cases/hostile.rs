//! A device model that an attacker has taken over (`crates/hostile-stub`): what it costs, and whom.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Case;
use crate::harness::command::{outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::{Made, scratch};
use crate::harness::qmp::{Qmp, at_once};
use crate::harness::{initramfs, seconds};

pub(super) const CASES: &[Case] = &[
    Case::new("hostile::device_model_harms_nobody_else", hostile),
    Case::new("hostile::ten_clients_at_once", ten_clients),
];

/// Where the test command puts the program.
const PROGRAM: &str = vm_report::places::HOSTILE_STUB;
/// How much more memory the daemon may have afterwards: what `docs/qmp.md` says that a device model can cost.
const MORE_KIB: u64 = 17 << 10;
/// The share of one processor that a flood may cost the daemon: a quarter to read it, and what its clients and the
/// system's calls take.
const SHARE: f64 = 0.4;

/// What the daemon has cost until now.
struct Cost {
    memory_kib: u64,
    /// The processor's time, in seconds.
    time: f64,
}

impl Cost {
    fn now() -> Result<Self> {
        let pids = run("pidof", &["outriggerd"])?.good()?.stdout;
        // One that an earlier case has killed may still be listed: it has no memory.
        let (pid, memory_kib) = pids
            .split_whitespace()
            .find_map(|pid| Some((pid, resident(pid)?)))
            .context("no outriggerd, or no VmRSS")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let ticks = after.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
        let ticks = ticks.sum::<Result<u32, _>>()?;
        Ok(Self { memory_kib, time: f64::from(ticks) / 100.0 })
    }
}

fn resident(pid: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn ask(client: &mut Qmp, command: &str) -> Result<Value> {
    client.ask(&json!({"execute": command, "id": command}))
}

/// The guest that must notice nothing.
struct Bystander {
    guest: Made,
    console: Console,
    client: Qmp,
}

impl Bystander {
    fn boot() -> Result<Self> {
        let (guest, console) = GuestConfig::hello("honest").boot()?;
        Ok(Self { guest, console, client: Qmp::connect("honest")? })
    }

    /// It is as it was.
    fn must_be_unharmed(&mut self) -> Result<()> {
        let start = Instant::now();
        let answer = ask(&mut self.client, "query-status")?;
        ensure!(answer["return"]["running"] == true, "{answer}");
        ensure!(start.elapsed() < seconds(5), "the other guest's QEMU answers after {:?}", start.elapsed());
        self.console.echo("?")
    }
}

fn hostile() -> Result<()> {
    let mut other = Bystander::boot()?;
    let events = Events::subscribe()?;
    let rogue = create_rogue()?;
    let client = Qmp::connect_unsafe("rogue")?;
    let had = Cost::now()?.memory_kib;
    odd_sessions(client, &mut other)?;
    flood(&mut other)?;
    let after = Cost::now()?.memory_kib;
    ensure!(after < had + MORE_KIB, "the daemon has {after} KiB, and had {had}");
    crash_ends_it(rogue, events)?;
    other.must_be_unharmed()?;
    other.guest.destroy()
}

fn odd_sessions(mut client: Qmp, other: &mut Bystander) -> Result<()> {
    plays_along_but_answers_nonsense(&mut client)?;
    broken_sessions_are_replaced(&mut client, other)?;
    odd_answers_are_passed_over(&mut client)?;
    silence_holds_up_nobody_else(&mut client)
}

/// A guest whose stubdomain is the attacker's.
fn create_rogue() -> Result<Made> {
    let ramdisk = scratch("hostile.img", &initramfs::of_one(&fs::read(PROGRAM)?)?)?;
    GuestConfig::hello("rogue")
        .line(&format!("stubdomain_ramdisk='{}'", ramdisk.display()))
        .line("on_device_model_crash='destroy'")
        .create()
}

/// Until it is told otherwise.
fn plays_along_but_answers_nonsense(client: &mut Qmp) -> Result<()> {
    ensure!(ask(client, "query-version")?["return"] == json!({}), "it does not play along");
    outrigger(&["screenshot", "rogue", "/tmp/vm-tests/rogue.png"])?.refused(1, &[]).map(drop)
}

fn still_answers(client: &mut Qmp, complaint: &str) -> Result<()> {
    ensure!(ask(client, "query-version")?["id"] == "query-version", "{complaint}");
    Ok(())
}

/// The answer is an error, and then there is another session.
fn broken_sessions_are_replaced(client: &mut Qmp, other: &mut Bystander) -> Result<()> {
    for mode in ["garbage", "endless", "cut"] {
        let after = format!("after {mode}");
        let answer = ask(client, &format!("query-hostile-{mode}"))?;
        ensure!(answer["error"]["class"].is_string(), "{mode}: {answer}");
        client.event("OUTRIGGER_SESSION_RESTORED", 60).context(after.clone())?;
        still_answers(client, &after)?;
        other.must_be_unharmed().context(after)?;
    }
    Ok(())
}

fn odd_answers_are_passed_over(client: &mut Qmp) -> Result<()> {
    for mode in ["twice", "strange"] {
        let answer = ask(client, &format!("query-hostile-{mode}"))?;
        ensure!(answer["id"] == format!("query-hostile-{mode}"), "{answer}");
        still_answers(client, &format!("after {mode}"))?;
    }
    Ok(())
}

fn silence_holds_up_nobody_else(client: &mut Qmp) -> Result<()> {
    client.send(&json!({"execute": "query-hostile-silent"}))?;
    still_answers(&mut Qmp::connect("rogue")?, "one holds up all")
}

/// Its end is noticed as any other's.
fn crash_ends_it(rogue: Made, mut events: Events) -> Result<()> {
    Qmp::connect_unsafe("rogue")?.send(&json!({"execute": "query-hostile-crash"}))?;
    events.wait_for("rogue", "dm-died", 30)?;
    events.wait_for("rogue", "destroyed", 60)?;
    rogue.leave();
    Ok(())
}

/// Events, as fast as they are taken.
fn flood(other: &mut Bystander) -> Result<()> {
    let mut client = Qmp::connect_unsafe("rogue")?;
    ask(&mut client, "query-hostile-flood")?;
    let had = Cost::now()?.memory_kib;
    // What may be spent at once goes first.
    let (_, first) = in_the_flood(other, 3)?;
    let (share, then) = in_the_flood(other, 5)?;
    let most = had.max(first).max(then);
    println!("     a flood takes {share:.2} of a processor, and {} KiB", most - had);
    ensure!(share < SHARE, "a flood takes {share:.2} of a processor");
    ensure!(most < had + MORE_KIB, "the daemon has {most} KiB in a flood, and had {had}");
    Ok(())
}

/// The share of a processor that the daemon takes for so many seconds, and the most memory that it has meanwhile.
fn in_the_flood(other: &mut Bystander, length: u64) -> Result<(f64, u64)> {
    let (start, used, mut most) = (Instant::now(), Cost::now()?.time, 0);
    while start.elapsed() < seconds(length) {
        other.must_be_unharmed().context("in a flood")?;
        most = most.max(Cost::now()?.memory_kib);
    }
    Ok(((Cost::now()?.time - used) / start.elapsed().as_secs_f64(), most))
}

fn ten_clients() -> Result<()> {
    let guest = GuestConfig::hello("busy").create()?;
    let clients = (0..10).map(|_| Qmp::connect("busy")).collect::<Result<Vec<_>>>()?;
    at_once(clients, |_, client| {
        for number in 0..20 {
            let id = json!(number);
            let answer = client.ask(&json!({"execute": "query-status", "id": id}))?;
            ensure!(answer["return"]["status"] == "running" && answer["id"] == id, "{answer}");
        }
        Ok(())
    })?;
    guest.destroy()
}
