//! The boot sector guest: disks, serial ports, keyboard, two at once, pause, no QEMU in dom0.

use std::time::Instant;

use anyhow::{Result, ensure};
use api::types::State;
use vm_report::HostState;

use super::Case;
use crate::harness::clean::{self, Host};
use crate::harness::command::{outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::guest::{Made, must_run};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Daemons, "hello::example_talks_reads_disks_and_echoes", example).on_each_debian(),
    Case::on(HostState::Daemons, "hello::no_qemu_in_dom0", no_qemu).on_each_debian(),
    Case::on(HostState::Daemons, "hello::two_guests_and_destroy_of_one", two_guests),
    Case::on(HostState::Daemons, "hello::pause_and_unpause", pause),
    Case::on(HostState::Daemons, "hello::stubdomain_log", stub_log),
    Case::on(HostState::Daemons, "hello::rounds_leave_nothing", rounds).on_each_debian(),
    Case::on(HostState::Daemons, "hello::example_runs_with_the_xenstored_in_c", example).on_c_xenstored(),
];

/// What the guest says on its first serial port.
const SAID: &str = "Hello from an HVM guest on COM1";

fn example() -> Result<()> {
    let guest = Made::create("/examples/hello.cfg".as_ref(), &[])?;
    let mut first = Console::serial(&guest, 0)?;
    for text in [SAID, "this is hda", "this is hdb"] {
        first.wait_for(text, 60)?;
    }
    Console::serial(&guest, 1)?.wait_for("Hello from an HVM guest on COM2", 30)?;
    first.wait_for("echoing COM1", 30)?;
    first.echo("keyboard")?;
    first.echo("0123456789")?;
    // A second viewer gets what was said before it came.
    Console::serial(&guest, 0)?.wait_for(SAID, 10)?;
    console_command()?;
    guest.destroy()
}

fn console_command() -> Result<()> {
    console_command_chooses()?;
    console_command_forgets_what_is_older()?;
    console_command_refuses()
}

/// What `outrigger console` shows with these options.
fn shown(options: &[&str]) -> Result<String> {
    let arguments = [&["console", "--no-follow"], options, &["hello"]].concat();
    Ok(outrigger(&arguments)?.good()?.stdout)
}

fn console_command_chooses() -> Result<()> {
    for (options, said) in [
        (&[][..], SAID),
        (&["--since", "1h"], SAID),
        (&["--stub", "3"], SAID),
        (&["-t", "serial", "-n", "1"], "Hello from an HVM guest on COM2"),
        (&["--serial", "1"], "Hello from an HVM guest on COM2"),
        (&["--log"], "outrigger-agent"),
    ] {
        let text = shown(options)?;
        ensure!(text.contains(said), "outrigger console {options:?} does not show {said:?} but {text:?}");
    }
    shown(&["--pv"]).map(drop)
}

/// What was said becomes older than what is asked for.
fn console_command_forgets_what_is_older() -> Result<()> {
    let deadline = Instant::now() + seconds(30);
    while shown(&["--since", "1s"])?.contains(SAID) {
        ensure!(Instant::now() < deadline, "--since shows what is older");
        std::thread::yield_now();
    }
    Ok(())
}

fn console_command_refuses() -> Result<()> {
    outrigger(&["console", "--channel", "nowhere", "hello"])?.refused(1, &["no console", "nowhere"])?;
    outrigger(&["console", "--serial", "5", "hello"])?.refused(1, &["2 serial ports"])?;
    outrigger(&["console", "--since", "tomorrow", "hello"])?.refused(2, &["tomorrow"]).map(drop)
}

fn no_qemu() -> Result<()> {
    let guest = GuestConfig::hello("alone").create()?;
    let processes = run("ps", &["-o", "comm"])?.good()?.stdout;
    ensure!(!processes.contains("qemu"), "QEMU runs in dom0:\n{processes}");
    guest.destroy()
}

fn two_guests() -> Result<()> {
    let one = GuestConfig::hello("one");
    let first = one.create()?;
    let between = Host::look()?;
    let second = GuestConfig::hello("two").create()?;
    for name in ["one", "two"] {
        must_run(name)?;
    }
    Console::serial(&second, 0)?.wait_for(SAID, 60)?;
    second.destroy()?;
    clean::compare(&between)?;
    ensure!(must_run("one")?.state == State::Running, "the other guest does not run");
    one.booted(&first)?.echo("still here")?;
    first.destroy()
}

fn pause() -> Result<()> {
    let guest = GuestConfig::hello("nap").create_paused()?;
    ensure!(must_run("nap")?.state == State::Paused, "it is not paused after create --paused");
    outrigger(&["unpause", "nap"])?.good()?;
    Console::serial(&guest, 0)?.wait_for(SAID, 60)?;
    outrigger(&["pause", "nap"])?.good()?;
    ensure!(must_run("nap")?.state == State::Paused, "it is not paused after pause");
    outrigger(&["unpause", "nap"])?.good()?;
    ensure!(must_run("nap")?.state == State::Running, "it does not run after unpause");
    guest.destroy()
}

fn stub_log() -> Result<()> {
    let guest = GuestConfig::hello("talker").create()?;
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
    (0..count).try_for_each(|_| GuestConfig::hello("again").create()?.destroy())
}
