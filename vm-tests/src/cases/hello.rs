//! The boot sector guest: disks, serial ports, keyboard, two at once, pause, no QEMU in dom0.

use std::time::Instant;

use anyhow::{Result, ensure};
use api::types::State;
use vm_report::HostState;

use super::Case;
use crate::harness::clean::Host;
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::guest::{Made, hello, list, must_run};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Daemons, "hello::example_talks_reads_disks_and_echoes", example),
    Case::on(HostState::Daemons, "hello::no_qemu_in_dom0", no_qemu),
    Case::on(HostState::Daemons, "hello::two_guests_and_destroy_of_one", two_guests),
    Case::on(HostState::Daemons, "hello::pause_and_unpause", pause),
    Case::on(HostState::Daemons, "hello::stubdomain_log", stub_log),
    Case::on(HostState::Daemons, "hello::rounds_leave_nothing", rounds),
    Case::on(HostState::Daemons, "hello::example_runs_with_the_xenstored_in_c", example).on_c_xenstored(),
];

fn example() -> Result<()> {
    let guest = Made::create("/examples/hello.cfg".as_ref(), &[])?;
    let mut first = Console::serial(&guest, 0)?;
    first.wait_for("Hello from an HVM guest on COM1", 60)?;
    first.wait_for("this is hda", 60)?;
    first.wait_for("this is hdb", 60)?;
    let mut second = Console::serial(&guest, 1)?;
    second.wait_for("Hello from an HVM guest on COM2", 30)?;
    first.wait_for("echoing COM1", 30)?;
    for word in ["keyboard", "0123456789"] {
        first.type_text(word)?;
        first.wait_for(word, 30)?;
    }
    // A second viewer gets what was said before it came.
    Console::serial(&guest, 0)?.wait_for("Hello from an HVM guest on COM1", 10)?;
    console_command()?;
    guest.destroy()
}

/// `outrigger console` with all that chooses a console and how much of it is shown.
fn console_command() -> Result<()> {
    const SAID: &str = "Hello from an HVM guest on COM1";
    let shown = |options: &[&str]| -> Result<String> {
        let arguments = [&["console", "--no-follow"], options, &["hello"]].concat();
        Ok(outrigger(&arguments)?.good()?.stdout)
    };
    for (options, said) in [
        (&[][..], SAID),
        (&["--since", "1h"], SAID),
        (&["-n", "3"], SAID),
        (&["--serial", "1"], "Hello from an HVM guest on COM2"),
        (&["--log"], "outrigger-agent"),
    ] {
        let text = shown(options)?;
        ensure!(text.contains(said), "outrigger console {options:?} does not show {said:?} but {text:?}");
    }
    // What was said becomes older than what is asked for.
    let deadline = Instant::now() + seconds(30);
    while shown(&["--since", "1s"])?.contains(SAID) {
        ensure!(Instant::now() < deadline, "--since shows what is older");
        std::thread::yield_now();
    }
    shown(&["--pv"])?;
    outrigger(&["console", "--channel", "nowhere", "hello"])?.refused(1, &["no console", "nowhere"])?;
    outrigger(&["console", "--serial", "5", "hello"])?.refused(1, &["2 serial ports"])?;
    outrigger(&["console", "--since", "tomorrow", "hello"])?.refused(2, &["tomorrow"])?;
    Ok(())
}

fn no_qemu() -> Result<()> {
    let guest = Made::create(&hello("alone", "")?, &[])?;
    let processes = run("ps", &["-o", "comm"])?.good()?.stdout;
    ensure!(!processes.contains("qemu"), "QEMU runs in dom0:\n{processes}");
    guest.destroy()
}

fn two_guests() -> Result<()> {
    let one = Made::create(&hello("one", "")?, &[])?;
    let between = Host::look()?;
    let two = Made::create(&hello("two", "")?, &[])?;
    let names: Vec<String> = list()?.into_iter().map(|guest| guest.name).collect();
    ensure!(names.contains(&"one".to_owned()) && names.contains(&"two".to_owned()), "listed are {names:?}");
    Console::serial(&two, 0)?.wait_for("Hello from an HVM guest on COM1", 60)?;
    two.destroy()?;
    crate::harness::clean::compare(&between)?;
    ensure!(must_run("one")?.state == State::Running, "the other guest does not run");
    let mut console = Console::serial(&one, 0)?;
    console.wait_for("echoing COM1", 60)?;
    console.type_text("still here")?;
    console.wait_for("still here", 30)?;
    one.destroy()
}

fn pause() -> Result<()> {
    let guest = Made::create(&hello("nap", "")?, &["--paused"])?;
    ensure!(must_run("nap")?.state == State::Paused, "it is not paused after create --paused");
    outrigger(&["unpause", "nap"])?.good()?;
    Console::serial(&guest, 0)?.wait_for("Hello from an HVM guest on COM1", 60)?;
    outrigger(&["pause", "nap"])?.good()?;
    ensure!(must_run("nap")?.state == State::Paused, "it is not paused after pause");
    outrigger(&["unpause", "nap"])?.good()?;
    ensure!(must_run("nap")?.state == State::Running, "it does not run after unpause");
    guest.destroy()
}

fn stub_log() -> Result<()> {
    let guest = Made::create(&hello("talker", "")?, &[])?;
    let log = outrigger(&["dm-log", "talker"])?.good()?.stdout;
    ensure!(log.contains("outrigger-agent"), "the agent says nothing in the log: {log}");
    guest.destroy()?;
    // The log is there for whoever asks why it ended.
    ensure!(outrigger(&["dm-log", "talker"])?.good()?.stdout.contains("outrigger-agent"), "the log is gone");
    Ok(())
}

fn rounds() -> Result<()> {
    // A few here; a longer run asks for more.
    let count = std::env::var("OUTRIGGER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    for _ in 0..count {
        Made::create(&hello("again", "")?, &[])?.destroy()?;
    }
    Ok(())
}
