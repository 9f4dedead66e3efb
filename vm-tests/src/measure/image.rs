//! Stubdomains of three images, all started by our toolstack: from their unpausing until QEMU runs; the memory that they
//! have touched; and the least with which a guest starts that has a screen and two disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use api::types::{Outcome, Step};

use super::example::Example;
use super::sources::precise;
use super::{Failures, LOGS, figure, has_words, wait_until};
use crate::harness::command::{XL, run_within};
use crate::harness::core_file::touched;
use crate::harness::guest::Made;
use crate::harness::seconds;

/// The guest's name.
const NAME: &str = "measured";
const CORE: &str = "/tmp/core";

/// An image, and what it is tried with.
#[derive(Debug, Clone, Copy)]
struct Image {
    kind: &'static str,
    /// The memory in MiB that it usually has, and works with.
    usual: u64,
    /// What it does not work with.
    fails: u64,
    /// How exactly the least memory is looked for.
    step: u64,
}

const OURS: Image = Image { kind: "ours", usual: 64, fails: 24, step: 8 };
const DEBIAN: Image = Image { kind: "debian", usual: 160, fails: 48, step: 16 };
const REFERENCE: Image = Image { kind: "reference", ..DEBIAN };

/// Measures all three, their start `runs` times.
pub(super) fn measure(runs: u32) -> Result<()> {
    let mut failures = Failures::default();
    for run in 1..=runs {
        println!("-- run {run} of {runs}");
        for image in [REFERENCE, DEBIAN, OURS] {
            let outcome = start(image, run == 1);
            failures.tried(image.kind, outcome);
        }
    }
    for image in [OURS, DEBIAN, REFERENCE] {
        let outcome = smallest_memory(image);
        failures.tried(image.kind, outcome);
    }
    failures.end()
}

/// The configuration of a guest whose stubdomain is of this image.
fn config(image: Image, memory: u64) -> Result<PathBuf> {
    let mut config = Example::read()?
        .set("name", &format!("'{NAME}'"))
        .set("vga", "'stdvga'")
        .set("videoram", "16")
        .set("stubdomain_memory", &memory.to_string());
    if image.kind != OURS.kind {
        config = config
            .set("stubdomain_kernel", &format!("'/images/{}/vmlinuz'", image.kind))
            .set("stubdomain_ramdisk", &format!("'/images/{}/initramfs.img'", image.kind));
    }
    config.write("measured.cfg")
}

fn create(image: Image, memory: u64) -> Result<(Made, Vec<Step>)> {
    let config = config(image, memory)?;
    for console in 0..8 {
        // Not all of them are there.
        let _ = fs::remove_file(log(console));
    }
    Made::create_in_steps(&config, &[])
}

/// The log of one of the stubdomain's consoles: 0 is its own, 3 the guest's first serial port.
fn log(console: u32) -> PathBuf {
    Path::new(LOGS).join(format!("{NAME}-dm.{console}.log"))
}

fn wait_for_second_disk() -> Result<()> {
    wait_until("the guest reads its second disk", 60, || Ok(has_words(&log(3), "this is hdb")))
}

fn start(image: Image, also_memory: bool) -> Result<()> {
    let (guest, steps) = create(image, image.usual)?;
    let start = started(&steps).context("no step starts the stubdomain")?;
    figure(&format!("start.{}", image.kind), start, "s");
    wait_for_second_disk()?;
    let said = fs::read(log(0)).unwrap_or_default();
    if let Some(millis) = agent_ready(&String::from_utf8_lossy(&said)) {
        figure(&format!("agent_ready.{}", image.kind), f64::from(millis) / 1000.0, "s");
    }
    if also_memory {
        touched_memory(image, &guest)?;
    }
    guest.destroy()
}

/// Seconds from the stubdomain's unpausing until QEMU runs.
fn started(steps: &[Step]) -> Option<f64> {
    let mut done = steps.iter().filter(|step| step.outcome == Outcome::Done);
    let mut millis = done.find(|step| step.id == "start-stubdomain")?.millis?;
    for step in done {
        millis += step.millis.unwrap_or_default();
        if step.id == "await-device-model" {
            return Some(millis / 1000.0);
        }
    }
    None
}

/// Milliseconds from the agent's first instruction until it can start QEMU, as it says itself.
fn agent_ready(log: &str) -> Option<u32> {
    let (_, after) = log.rsplit_once("ready to start QEMU ")?;
    after.split_once(" ms")?.0.parse().ok()
}

/// At rest, when the guest waits for a key.
fn touched_memory(image: Image, guest: &Made) -> Result<()> {
    std::thread::sleep(Duration::from_secs(3));
    let stub = guest.stub()?.to_string();
    let dumped = run_within(seconds(120), XL, &["dump-core", &stub, CORE]).and_then(|output| output.good());
    let kib = dumped.and_then(|_| touched(Path::new(CORE)));
    // It is as large as the stubdomain.
    let _ = fs::remove_file(CORE);
    figure(&format!("touched.{}", image.kind), precise(kib?) / 1024.0, "MiB");
    Ok(())
}

/// Whether a guest starts when its stubdomain has so many MiB, and reads its second disk.
fn works(image: Image, memory: u64) -> Result<bool> {
    let Ok((guest, _)) = create(image, memory) else { return Ok(false) };
    let works = wait_for_second_disk().is_ok();
    guest.destroy()?;
    Ok(works)
}

fn smallest_memory(image: Image) -> Result<()> {
    let Image { kind, usual: mut works, mut fails, step } = image;
    while works - fails > step {
        let middle = (works + fails) / 2 / step * step;
        if self::works(image, middle)? {
            works = middle;
        } else {
            fails = middle;
        }
        println!("-- {kind}: works with {works} MiB, not with {fails} MiB");
    }
    figure(&format!("smallest_memory.{kind}"), precise(works), "MiB");
    // What works once by luck is not what works.
    ensure!(self::works(image, works)?, "{works} MiB work and then do not");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str, outcome: Outcome, millis: Option<f64>) -> Step {
        Step {
            lifecycle: "create".into(),
            index: 0,
            count: 4,
            id: id.into(),
            name: String::new(),
            outcome,
            millis,
        }
    }

    #[test]
    fn start_of_the_stubdomain_ends_when_qemu_runs() {
        let steps = [
            step("check", Outcome::Done, Some(1.0)),
            step("start-stubdomain", Outcome::Started, None),
            step("start-stubdomain", Outcome::Done, Some(100.0)),
            step("connect-nics", Outcome::Done, Some(20.0)),
            step("await-device-model", Outcome::Done, Some(3000.0)),
            step("start-guest", Outcome::Done, Some(5.0)),
        ];
        assert_eq!(started(&steps), Some(3.12));
        assert_eq!(started(&steps[..4]), None);
        assert_eq!(started(&steps[4..]), None);
    }

    #[test]
    fn agents_time_is_read_from_its_log() {
        assert_eq!(agent_ready("x\nagent: ready to start QEMU 43 ms after its start\n"), Some(43));
        assert_eq!(agent_ready("agent: not yet\n"), None);
    }
}
