//! The commands of xl, with `outrigger` in its place.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Case;
use super::console::echo_through;
use crate::harness::command::{Output, XL, outrigger, run, run_within};
use crate::harness::config::{GuestConfig, cpus};
use crate::harness::events::Events;
use crate::harness::guest::{Made, must_be_gone, must_run};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("xl_words::every_command_of_xl_is_one_or_says_where_it_went", every_word),
    Case::new("xl_words::script_for_xl_runs_with_outrigger_in_its_place", script),
    Case::new("xl_words::options_of_xl_are_taken", options),
    Case::new("xl_words::guests_are_looked_at", looked_at),
    Case::new("xl_words::create_in_the_foreground_waits_for_the_end", foreground),
];

/// The words of the xl that is installed.
fn words() -> Result<Vec<String>> {
    let help = run(XL, &["help"])?.good()?.stdout;
    let lines = help.lines().filter_map(|line| line.strip_prefix(' '));
    let lines = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let words: Vec<String> =
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    ensure!(words.len() > 60, "xl help has other lines than it had: {help}");
    Ok(words)
}

fn every_word() -> Result<()> {
    for word in words()? {
        let output = outrigger(&[&word, "--help"])?;
        let is_missing = output.status == 2 && output.stderr.starts_with("error: there is no command \"");
        ensure!(output.status == 0 || is_missing, "{output}");
    }
    outrigger(&["dmesg", "-c"])?.refused(2, &["xl does it"])?;
    outrigger(&["no-such-word"])?.refused(2, &["no-such-word"]).map(drop)
}

fn shell(script: &str) -> Result<Output> {
    run_within(seconds(300), "sh", &["-ec", script])?.good()
}

/// What scripts do with xl's list.
const AWK: &str = r#"
test "$(outrigger list | awk '$1 == "stocky" { print $3 }')" -ge 76
test "$(outrigger list stocky | awk 'NR > 1 { print $4 }')" = 1
id=$(outrigger list | awk '$1 == "stocky" { print $2 }')
test "$(outrigger domid stocky)" = "$id"
outrigger list | awk '$1 == "stocky" { print $5 }' | grep -q '^[r-][b-][p-][s-][-rscwS][d-]$'"#;

fn script() -> Result<()> {
    let config = GuestConfig::power("stocky");
    let file = config.write()?;
    let create = format!("outrigger create {} -q memory=80 'on_reboot=\"destroy\"'", file.display());
    let said = shell(&format!("{create}{AWK}"))?;
    ensure!(said.stdout.is_empty(), "-q is not quiet: {said}");
    let guest = Made::named("stocky")?;
    config.booted(&guest)?;
    says(&["console", "-t", "serial", "-n", "0", "--no-follow", "stocky"], &["TESTGUEST ready"])?;
    shell("outrigger shutdown -a -F -w\ntest -z \"$(outrigger list | awk 'NR > 1')\"")?;
    must_be_gone("stocky")?;
    guest.leave();
    Ok(())
}

fn options() -> Result<()> {
    let config = GuestConfig::power("optional").line("on_reboot='restart'");
    let file = config.write()?.display().to_string();
    nothing_is_made(&file)?;
    outrigger(&["create", "-d", "-e", "-f", &file])?.good()?;
    let guest = Made::named("optional")?;
    config.booted(&guest)?;
    guest.leave();
    next_config(&config, &file)?;
    outrigger(&["vcpu-set", "-i", "optional", "1"])?.good()?;
    pressed()
}

fn pressed() -> Result<()> {
    outrigger(&["trigger", "optional", "s3resume"])?.good()?;
    outrigger(&["button-press", "optional", "sleep"])?.good()?;
    // An abbreviation.
    outrigger(&["des", "optional"])?.good()?;
    must_be_gone("optional")
}

fn nothing_is_made(file: &str) -> Result<()> {
    let dry = outrigger(&["create", "-n", file, "memory=96", "name='dry'"])?.good()?.stdout;
    let dry: Value = serde_json::from_str(&dry).with_context(|| format!("not JSON: {dry}"))?;
    ensure!(dry["name"] == "dry", "later lines do not override: {dry}");
    must_be_gone("dry")?;
    outrigger(&["create", "-A", file])?.refused(2, &["VNC"])?;
    outrigger(&["create", file, "memory=lots"])?.refused(3, &["memory"])?;
    outrigger(&["-N", "destroy", "optional"])?.refused(2, &["-N"]).map(drop)
}

/// A guest that restarts has what config-update has said, and is the same guest.
fn next_config(config: &GuestConfig, file: &str) -> Result<()> {
    let first = must_run("optional")?;
    outrigger(&["reboot", "optional"])?.refused(1, &["no PV drivers"])?;
    outrigger(&["config-update", "optional", file, "name='other'"])?.refused(1, &["rename"])?;
    outrigger(&["config-update", "optional", file, "memory=80"])?.good()?;
    outrigger(&["reboot", "-a", "-F", "-w"])?.good()?;
    let guest = Made::named("optional")?;
    let (memory, before) = (guest.guest.memory_kib.mib(), first.memory_kib.mib());
    ensure!(memory > before + 8, "it has {memory} MiB, as before config-update");
    ensure!(guest.guest.uuid == first.uuid && guest.guest.domid != first.domid, "{:?}", guest.guest);
    config.booted(&guest)?;
    guest.leave();
    Ok(())
}

fn looked_at() -> Result<()> {
    let channel = "channel=['name=org.example,connection=pty']";
    let (guest, console) = GuestConfig::hello("looked").line(channel).boot()?;
    drop(console);
    echo_through("outrigger", &["console", "-t", "serial", "looked"], "typed through -t serial")?;
    outrigger(&["console", "-t", "pv", "--no-follow", "looked"])?.good()?;
    processors()?;
    tables(&guest)?;
    documents()?;
    outrigger(&["mem-max", "looked", "63"])?.refused(1, &["mem-set"])?;
    outrigger(&["mem-max", "looked", "65"])?.refused(1, &["maxmem"])?;
    outrigger(&["mem-max", "looked", "64m"])?.good()?;
    guest.destroy()
}

fn tables(guest: &Made) -> Result<()> {
    let (domid, uuid) = (guest.guest.domid.to_string(), &*guest.guest.uuid);
    says(&["list", "-v", "-Z", "-c", "-n"], &["UUID", "Security-Label", "Pool-0", "Node-Affinity", uuid])?;
    says(&["vm-list"], &["UUID", uuid, &domid, "looked"])?;
    says(&["uptime"], &["Domain-0", "looked"])?;
    says(&["uptime", "-s", "looked"], &[" up ", "looked"])?;
    says(&["channel-list", "looked"], &["org.example", "pty"])?;
    says(&["info", "-n"], &["Node", "Distances"])?;
    says(&["top", "-b", "-i", "2", "-d", "1"], &["looked", "looked-dm", "running"])
}

const DOCUMENTS: [&[&str]; 6] = [
    &["vm-list", "--json"],
    &["uptime", "--json"],
    &["channel-list", "--json", "looked"],
    &["vcpu-list", "--json"],
    &["info", "-n", "--json"],
    &["top", "--json", "-i", "1"],
];

fn documents() -> Result<()> {
    for words in DOCUMENTS {
        let text = outrigger(words)?.good()?.stdout;
        serde_json::from_str::<Value>(&text).with_context(|| format!("{words:?}: {text}"))?;
    }
    Ok(())
}

fn says(words: &[&str], expected: &[&str]) -> Result<()> {
    let said = outrigger(words)?.good()?;
    for word in expected {
        ensure!(said.stdout.contains(word), "no {word:?}: {said}");
    }
    Ok(())
}

/// Only the CPUs on which the emulator does not break guests are chosen.
fn processors() -> Result<()> {
    says(&["vcpu-list"], &["looked ", "looked-dm", "Affinity (Hard / Soft)"])?;
    let good = cpus().unwrap_or_else(|| "all".to_owned());
    outrigger(&["vcpu-pin", "looked", "0", "-", "0"])?.good()?;
    says(&["vcpu-list", "looked"], &[" / 0"])?;
    outrigger(&["vcpu-pin", "looked", "all", &good, "all"])?.good()?;
    says(&["vcpu-list", "looked"], &[&format!("{good} / all")])?;
    outrigger(&["vcpu-pin", "looked", "5", "all"])?.refused(1, &["vCPU 5"])?;
    outrigger(&["vcpu-pin", "looked", "0", "500"])?.refused(1, &["None of the CPUs"]).map(drop)
}

fn foreground() -> Result<()> {
    let file = GuestConfig::hello("watched").write()?.display().to_string();
    let mut events = Events::subscribe()?;
    let waiting = thread::spawn(move || run_within(seconds(300), "outrigger", &["create", "-F", &file]));
    events.wait_for("watched", "created", 180)?;
    outrigger(&["destroy", "watched"])?.good()?;
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the wait has panicked"))??.good()?;
    ensure!(output.stderr.contains("destroyed"), "{output}");
    must_be_gone("watched")
}
