//! A device model that an attacker has taken over (`crates/hostile-stub`): what it costs, and whom.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Case;
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::{Made, hello, scratch};
use crate::harness::qmp::Qmp;
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

/// The daemon's memory in KiB and the processor's time that it has used, in seconds.
fn cost() -> Result<(u64, f64)> {
    let pids = run("pidof", &["outriggerd"])?.good()?.stdout;
    // One that an earlier case has killed may still be listed: it has no memory.
    let memory = |pid: &&str| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::to_owned)
    };
    let pid = pids.split_whitespace().find(|pid| memory(pid).is_some()).context("no outriggerd")?;
    let rss = memory(&pid).context("no VmRSS")?;
    let rss = rss.split_whitespace().next().context("no VmRSS")?.parse()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let ticks = ticks.sum::<Result<u32, _>>()?;
    Ok((rss, f64::from(ticks) / 100.0))
}

fn ask(client: &mut Qmp, command: &str) -> Result<Value> {
    client.ask(&json!({"execute": command, "id": command}))
}

/// The other guest is as it was.
fn unharmed(console: &mut Console, client: &mut Qmp) -> Result<()> {
    let start = Instant::now();
    let answer = ask(client, "query-status")?;
    ensure!(answer["return"]["running"] == true, "{answer}");
    ensure!(start.elapsed() < seconds(5), "the other guest's QEMU answers after {:?}", start.elapsed());
    console.type_text("?")?;
    console.wait_for("?", 30)
}

fn hostile() -> Result<()> {
    let other = Made::create(&hello("honest", "")?, &[])?;
    let mut console = Console::serial(&other, 0)?;
    console.wait_for("echoing COM1", 60)?;
    let mut honest = Qmp::connect("honest")?;
    let ramdisk = scratch("hostile.img", &initramfs::of_one(&fs::read(PROGRAM)?)?)?;
    let more = format!("stubdomain_ramdisk='{}'\non_device_model_crash='destroy'", ramdisk.display());
    let mut events = Events::subscribe()?;
    let rogue = Made::create(&hello("rogue", &more)?, &[])?;
    let mut client = Qmp::connect("rogue")?;
    let before = cost()?;
    // It plays along until it is told otherwise, and answers what makes no sense.
    ensure!(ask(&mut client, "query-version")?["return"] == json!({}), "it does not play along");
    outrigger(&["screenshot", "rogue", "/tmp/vm-tests/rogue.png"])?.refused(1, &[])?;
    // What breaks the session: the answer is an error, and then there is another session.
    for mode in ["garbage", "endless", "cut"] {
        let answer = ask(&mut client, &format!("query-hostile-{mode}"))?;
        ensure!(answer["error"]["class"].is_string(), "{mode}: {answer}");
        client.event("OUTRIGGER_SESSION_RESTORED", 60).with_context(|| format!("after {mode}"))?;
        ensure!(ask(&mut client, "query-version")?["id"] == "query-version", "after {mode}");
        unharmed(&mut console, &mut honest).with_context(|| format!("after {mode}"))?;
    }
    // What is passed over.
    for mode in ["twice", "strange"] {
        let answer = ask(&mut client, &format!("query-hostile-{mode}"))?;
        ensure!(answer["id"] == format!("query-hostile-{mode}"), "{answer}");
        ensure!(ask(&mut client, "query-version")?["id"] == "query-version", "after {mode}");
    }
    // What is never answered holds up nobody who does not wait for it.
    client.send(&json!({"execute": "query-hostile-silent"}))?;
    ensure!(ask(&mut Qmp::connect("rogue")?, "query-version")?["id"] == "query-version", "one holds up all");
    flood(&mut console, &mut honest)?;
    let after = cost()?;
    ensure!(after.0 < before.0 + MORE_KIB, "the daemon has {} KiB, and had {}", after.0, before.0);
    // Its end is noticed as any other's.
    Qmp::connect("rogue")?.send(&json!({"execute": "query-hostile-crash"}))?;
    events.wait_for("rogue", "dm-died", 30)?;
    events.wait_for("rogue", "destroyed", 60)?;
    rogue.leave();
    unharmed(&mut console, &mut honest)?;
    other.destroy()
}

/// Ten seconds of events, as fast as they are taken.
fn flood(console: &mut Console, honest: &mut Qmp) -> Result<()> {
    let mut client = Qmp::connect("rogue")?;
    ask(&mut client, "query-hostile-flood")?;
    let memory = cost()?.0;
    let mut most = memory;
    let mut lasts = |length| -> Result<f64> {
        let (start, used) = (Instant::now(), cost()?.1);
        while start.elapsed() < seconds(length) {
            unharmed(console, honest).context("in a flood")?;
            most = most.max(cost()?.0);
        }
        Ok((cost()?.1 - used) / start.elapsed().as_secs_f64())
    };
    // What may be spent at once goes first.
    lasts(3)?;
    let share = lasts(5)?;
    println!("     a flood takes {share:.2} of a processor, and {} KiB", most - memory);
    ensure!(share < SHARE, "a flood takes {share:.2} of a processor");
    ensure!(most < memory + MORE_KIB, "the daemon has {most} KiB in a flood, and had {memory}");
    Ok(())
}

fn ten_clients() -> Result<()> {
    let guest = Made::create(&hello("busy", "")?, &[])?;
    let clients = (0..10).map(|_| Qmp::connect("busy")).collect::<Result<Vec<_>>>()?;
    let ask_on = |mut client: Qmp| -> Result<Qmp> {
        for number in 0..20 {
            let id = json!(number);
            let answer = client.ask(&json!({"execute": "query-status", "id": id}))?;
            ensure!(answer["return"]["status"] == "running" && answer["id"] == id, "{answer}");
        }
        Ok(client)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || ask_on(client))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?.map(drop))
    })?;
    guest.destroy()
}
