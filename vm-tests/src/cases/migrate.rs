//! Guests that move between two hosts.

mod faults;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use api::types::Progress;
use serde_json::Value;
use vm_report::places::{DISC_DISK, LINUX_DISK};
use vm_report::{HostState, MIGRATIONS};

use super::Case;
use crate::harness::command::Output;
use crate::harness::config::GuestConfig;
use crate::harness::counter::{self, Count};
use crate::harness::guest::HELLO_DISK;
use crate::harness::pair::{Pair, Task, Weight, conducted, no_leaks, write_disk};
use crate::harness::peer::{SHARED_DISK, SMALL_SHARED_DISK, Side};
use crate::harness::relay::Relay;
use crate::harness::seconds;

const BOTH: HostState = HostState::Pair;

pub(super) const CASES: &[Case] = &[
    Case::on(BOTH, "migrate::boot_sector_guest_runs_on_at_the_other_host", || conducted(boot_sector)),
    Case::on(BOTH, "migrate::screen_of_a_guest_goes_on_at_the_other_host", || conducted(with_a_screen)),
    Case::on(BOTH, "migrate::linux_guest_moves_live_under_memory_writes", || conducted(linux)),
    Case::on(BOTH, "migrate::back_and_forth", || conducted(back_and_forth)),
    Case::on(BOTH, "migrate::connection_that_is_cut_leaves_one_running_guest", || conducted(faults::cuts))
        .long(),
    Case::on(BOTH, "migrate::daemon_killed_at_the_sender_leaves_one_running_guest", || {
        conducted(|pair| faults::kills(pair, Side::A))
    })
    .long(),
    Case::on(BOTH, "migrate::daemon_killed_at_the_receiver_leaves_one_running_guest", || {
        conducted(|pair| faults::kills(pair, Side::B))
    })
    .long(),
    Case::on(BOTH, "migrate::other_disk_is_refused", || conducted(faults::other_disk)),
];

/// The guest.
const NAME: &str = "mover";
/// What the boot sector guest says once, at its start.
const BANNER: &str = "Hello from an HVM guest on COM1";

/// Creates the boot sector guest on host-a, with the shared disk.
fn create_hello(pair: &mut Pair) -> Result<()> {
    write_disk(SHARED_DISK, &fs::read(HELLO_DISK)?)?;
    let (guest, _) = GuestConfig::hello(NAME).boot_disk(SHARED_DISK.as_ref()).boot()?;
    // Wherever it is at the end of the case.
    guest.leave();
    pair.echo(Side::A, NAME).map(drop)
}

/// Migrates the guest from a host to the other one, where it must run, and nothing of it be left.
fn migrate(pair: &mut Pair, from: Side) -> Result<Output> {
    let said = pair.migrate(from, NAME, &Relay::to(from.other()))?.good()?;
    pair.runs_only(from.other(), NAME)?;
    Ok(said)
}

/// It echoes where it has moved to, and has not started anew.
fn must_echo(pair: &mut Pair, side: Side) -> Result<()> {
    let said = pair.echo(side, NAME)?;
    ensure!(!said.contains(BANNER), "it has started anew: {said}");
    Ok(())
}

/// Destroys the guest where it is.
fn destroy(pair: &mut Pair, side: Side) -> Result<()> {
    pair.outrigger(side, &["destroy", NAME])?.good().map(drop)
}

fn boot_sector(pair: &mut Pair) -> Result<()> {
    create_hello(pair)?;
    for from in Side::BOTH {
        migrate(pair, from)?;
        must_echo(pair, from.other())?;
        pair.ask::<()>(from, Task::Compare)?;
    }
    destroy(pair, Side::A)
}

/// Its QEMU is started before its memory is there, and has to find that of the display later.
fn with_a_screen(pair: &mut Pair) -> Result<()> {
    write_disk(SHARED_DISK, &fs::read(DISC_DISK)?)?;
    let (guest, _) = GuestConfig::disc(NAME).boot_disk(SHARED_DISK.as_ref()).boot()?;
    // Wherever it is at the end of the case.
    guest.leave();
    let screen = || Task::Screen(NAME.to_owned());
    pair.ask::<()>(Side::A, screen())?;
    for from in Side::BOTH {
        migrate(pair, from)?;
        pair.ask::<()>(from.other(), screen())?;
    }
    destroy(pair, Side::A)
}

/// The pages that the Linux guest writes in each turn.
const PAGES: u64 = 256;

/// Creates on host-a the Linux guest that counts and writes memory.
fn create_linux() -> Result<()> {
    write_disk(SHARED_DISK, &fs::read(LINUX_DISK)?)?;
    // Zeros follow.
    write_disk(SMALL_SHARED_DISK, counter::program(PAGES).as_bytes())?;
    let config = GuestConfig::linux(NAME, "").boot_disk(SHARED_DISK.as_ref());
    let (guest, _) = config.second_disk(SMALL_SHARED_DISK.as_ref()).boot()?;
    // Wherever it is at the end of the case.
    guest.leave();
    Ok(())
}

fn linux(pair: &mut Pair) -> Result<()> {
    create_linux()?;
    let count = |pair: &mut Pair, side| pair.ask::<Count>(side, Task::Count(NAME.to_owned()));
    let before = count(pair, Side::A)?;
    let said = migrate(pair, Side::A)?;
    let rounds = rounds(&said)?;
    ensure!(rounds.len() > 1, "it did not move live: {rounds:?}");
    let after = count(pair, Side::B)?;
    let later = count(pair, Side::B)?;
    ensure!(before.number < after.number && after.number < later.number, "{before:?} {after:?} {later:?}");
    rounds.iter().for_each(|round| println!("     {round}"));
    println!("     the sender says: it stood still for {} ms", stood_still(&said)?);
    stood_still_briefly(&before, &after)?;
    destroy(pair, Side::B)
}

/// The longest gap between two numbers is short, also where the guest has moved between them.
fn stood_still_briefly(before: &Count, after: &Count) -> Result<()> {
    println!("     it stood still for {} ms; before, for {} ms at most", after.gap * 10, before.gap * 10);
    let longest = seconds(20).as_millis();
    ensure!(u128::from(after.gap) * 10 < longest, "it stood still for {} ms", after.gap * 10);
    Ok(())
}

/// The rounds that a migration has reported.
fn rounds(said: &Output) -> Result<Vec<Value>> {
    let mut rounds = Vec::new();
    for line in said.stdout.lines() {
        let mut value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        rounds.extend(value.get_mut("round").map(Value::take));
    }
    Ok(rounds)
}

/// For how many milliseconds the guest stood still, as the sender reports.
fn stood_still(said: &Output) -> Result<u64> {
    let reported = said.stdout.lines().filter_map(|line| serde_json::from_str::<Progress>(line).ok());
    reported.filter_map(|progress| progress.stood_still_ms).next_back().context("not reported")
}

fn back_and_forth(pair: &mut Pair) -> Result<()> {
    let times = times()?;
    create_hello(pair)?;
    // What the first time leaves, such as the memory of a library, is no leak.
    there_and_back(pair)?;
    let before: [Weight; 2] = [pair.ask(Side::A, Task::Weigh)?, pair.ask(Side::B, Task::Weigh)?];
    (0..times).try_for_each(|_| there_and_back(pair))?;
    for (side, before) in Side::BOTH.into_iter().zip(&before) {
        no_leaks(pair, side, before)?;
    }
    destroy(pair, Side::A)
}

/// How often the guest moves there and back: a few times here; a longer run asks for more.
fn times() -> Result<u32> {
    match std::env::var(MIGRATIONS) {
        Ok(times) => times.parse().with_context(|| format!("{MIGRATIONS}={times}")),
        Err(_) => Ok(3),
    }
}

fn there_and_back(pair: &mut Pair) -> Result<()> {
    for from in Side::BOTH {
        migrate(pair, from)?;
        must_echo(pair, from.other())?;
    }
    Ok(())
}
