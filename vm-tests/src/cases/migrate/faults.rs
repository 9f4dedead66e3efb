//! Connections that are cut, daemons that are killed, and disks that are others.

use std::fs;

use anyhow::{Result, ensure};

use super::{NAME, create_hello, destroy, migrate, must_echo};
use crate::harness::config::{GuestConfig, path_of};
use crate::harness::guest::HELLO_DISK;
use crate::harness::pair::{Pair, Task, ended, place};
use crate::harness::peer::Side;
use crate::harness::relay::{Counted, Hold, Relay};

/// Creates the guest, migrates it to host-b and back, and returns how many bytes went which way. Since then, whatever its
/// serial port says was not said at its start.
fn measured(pair: &mut Pair) -> Result<Counted> {
    create_hello(pair)?;
    let count = place("count")?;
    pair.migrate(Side::A, NAME, &Relay::to(Side::B).count(count.clone()))?.good()?;
    pair.runs_only(Side::B, NAME)?;
    migrate(pair, Side::B)?;
    let counted = Counted::read(&count)?;
    ensure!(counted.received.len() > 1, "host-b has said all at once: {counted:?}");
    Ok(fs::remove_file(count).map(|()| counted)?)
}

/// The guest runs on one host alone, and goes on there; it returns to host-a if it is not there. The other has nothing of
/// it.
fn must_be_one(pair: &mut Pair) -> Result<()> {
    // A host that waits for a sender that has given up is told so.
    pair.resolve(NAME)?;
    let side = pair.settled(NAME)?;
    must_echo(pair, side)?;
    pair.ask::<()>(side.other(), Task::Compare)?;
    if side == Side::B {
        migrate(pair, Side::B)?;
    }
    Ok(())
}

pub(super) fn cuts(pair: &mut Pair) -> Result<()> {
    for relay in places(&measured(pair)?) {
        println!("     {}", relay.command());
        // Whether it has succeeded is not the question.
        pair.migrate(Side::A, NAME, &relay)?;
        must_be_one(pair)?;
    }
    destroy(pair, Side::A)
}

/// Where the connection is cut: in the memory, and around and in what each host says to the other.
fn places(whole: &Counted) -> Vec<Relay> {
    let to = || Relay::to(Side::B);
    let mut places: Vec<Relay> =
        [0, 1, 60, whole.sent / 2].into_iter().map(|bytes| to().sent(bytes)).collect();
    let mut before = 0;
    for &end in &whole.received {
        // Before it, in it, and then before and in what is sent next.
        places.extend([to().received(before), to().received(before.midpoint(end))]);
        places.extend([to().sent_since(end, 0), to().sent_since(end, 30)]);
        before = end;
    }
    places
}

/// The daemon of one host is killed while memory is sent, before the guest is handed over, and before that is answered.
pub(super) fn kills(pair: &mut Pair, killed: Side) -> Result<()> {
    let whole = measured(pair)?;
    let ready = whole.received[whole.received.len() - 2];
    let to = || Relay::to(Side::B);
    for relay in [to().sent(whole.sent / 3), to().sent_since(ready, 0), to().received(ready)] {
        println!("     {}", relay.command());
        killed_when_held(pair, killed, relay)?;
        must_be_one(pair)?;
    }
    destroy(pair, Side::A)
}

/// The daemon is killed where the relay holds the migration, and started again.
fn killed_when_held(pair: &mut Pair, killed: Side, relay: Relay) -> Result<()> {
    let hold = Hold(place("hold")?);
    let mut client = pair.begin(NAME, &relay.hold(hold.0.clone()))?;
    hold.wait()?;
    pair.ask::<()>(killed, Task::Kill)?;
    hold.release();
    pair.ask::<()>(killed, Task::Start)?;
    ended(&mut client.0).map(drop)
}

/// Writes a file at host-b that has the name of the guest's disk, and something else in it.
fn write_another(pair: &mut Pair, name: String) -> Result<()> {
    let mut content = fs::read(HELLO_DISK)?;
    content.reverse();
    // A disk of one sector: no more goes through the connection of the two hosts at once.
    content.truncate(512);
    pair.ask::<String>(Side::B, Task::Write(name, content)).map(drop)
}

pub(super) fn other_disk(pair: &mut Pair) -> Result<()> {
    let config = GuestConfig::hello(NAME);
    let (guest, mut console) = config.boot()?;
    let file = format!("{NAME}.img");
    write_another(pair, file.clone())?;
    let said = pair.migrate(Side::A, NAME, &Relay::to(Side::B))?;
    ensure!(!said.stdout.contains("\"round\""), "memory was sent: {said}");
    said.refused(1, &[&path_of(&file).to_string_lossy()])?;
    // It was neither suspended nor made anew.
    guest.must_be_the_same()?;
    console.echo("not moved")?;
    pair.runs_only(Side::A, NAME)?;
    guest.destroy()?;
    Ok(fs::remove_file(path_of(&file))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_cut_around_and_in_each_message() {
        let places = places(&Counted { sent: 1000, received: vec![40, 100] });
        let options =
            |relay: &Relay| relay.command().split_whitespace().skip(3).collect::<Vec<_>>().join(" ");
        let options: Vec<String> = places.iter().map(options).collect();
        let expected = "--sent=500, \
            --received=0, --received=20, --sent=0 --since=40, --sent=30 --since=40, \
            --received=40, --received=70, --sent=0 --since=100, --sent=30 --since=100";
        assert_eq!(options[3..].join(", "), expected);
    }
}
