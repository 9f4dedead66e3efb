//! What becomes of a guest that moves, beyond that it runs: what is known of it, its configuration, its QEMU.

use std::os::unix::net::UnixStream;
use std::thread;

use toolstack::{Event, MigrateOptions, MigrationRole, Resolve};

use super::{Pair, options, serve, states, successor, unanswered};
use crate::world::Drivers;

#[test]
fn receiver_tells_the_sender_what_became_of_the_guest() {
    let pair = unanswered();
    let (from, to) = (&successor(&pair.b), &successor(&pair.a));
    let (here, there) = UnixStream::pair().unwrap();
    let (told, heard) = thread::scope(|scope| {
        let sender = scope.spawn(move || serve(to, there));
        let channel = from.connect_peer_over(here).unwrap();
        let told = from.resolve("hello", &Resolve::Ask, Some(channel), &mut |_| ());
        (told, sender.join().unwrap())
    });
    let told = told.unwrap();
    assert!(told.state.starts_with("taken over from") && told.state.ends_with("runs"), "{}", told.state);
    assert_eq!(heard.unwrap(), None);
    assert_eq!(states(&pair.a), [(MigrationRole::Sender, "moved to b".to_owned())]);
    pair.check_only_on(true, "told");
}

#[test]
fn guest_that_came_back_is_created_again_where_it_is() {
    let pair = Pair::new(Drivers::None);
    let (sent, received) = pair.migrate();
    sent.unwrap();
    received.unwrap();
    let back = Pair { a: pair.b, b: pair.a, guest: pair.guest };
    let (sent, received) = back.migrate();
    sent.unwrap();
    received.unwrap();
    successor(&back.b).destroy(back.guest.id(), &mut |_| ()).unwrap();
    // The simulated clock stands still.
    for (world, last) in [(&back.a, "sender"), (&back.b, "receiver")] {
        let files: Vec<_> = world.host.state().files.keys().cloned().collect();
        for path in files.iter().filter(|path| path.extension().is_some_and(|ending| ending == last)) {
            world.host.change_file(path, 1);
        }
    }
    back.b.create_small().unwrap();
    let error = back.a.create_small().unwrap_err().report();
    assert!(error.contains("--force"), "{error}");
}

#[test]
fn time_that_the_guest_stood_still_is_told_and_recorded() {
    let pair = Pair::new(Drivers::Polite);
    let mut told = None;
    let (sent, _) = pair.migrate_with(&pair.a.toolstack, &pair.b.toolstack, &mut |event| {
        if let Event::StoodStill { took } = event {
            told = Some(took);
        }
    });
    sent.unwrap();
    let known = successor(&pair.a).migrations().unwrap();
    assert!(told.is_some());
    assert_eq!(known.iter().map(|info| info.stood_still).collect::<Vec<_>>(), [told]);
    let there = successor(&pair.b).migrations().unwrap();
    assert!(there.iter().all(|info| info.stood_still.is_none()), "only the sender knows");
}

#[test]
fn guest_gets_the_configuration_that_is_meant_for_the_other_host() {
    let pair = Pair::new(Drivers::None);
    let mut theirs = pair.guest.config.clone();
    theirs.nics.iter_mut().for_each(|nic| nic.rate = None);
    theirs.lifecycle.on_reboot = config::Action::Destroy;
    let options = MigrateOptions { dest_config: Some(Box::new(theirs.clone())), ..options() };
    let (sent, received) = pair.migrate_so(&options);
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap().config.lifecycle, theirs.lifecycle);
    pair.check_only_on(true, "another configuration");

    let pair = Pair::new(Drivers::None);
    theirs.max_memory = xen_types::KiB(theirs.max_memory.0 * 2);
    theirs.vcpus += 1;
    let options = MigrateOptions { dest_config: Some(Box::new(theirs)), ..options };
    let (sent, received) = pair.migrate_so(&options);
    let error = sent.unwrap_err().report();
    assert!(error.contains("max_memory") && error.contains("vcpus"), "{error}");
    received.unwrap_err();
    pair.check_only_on(false, "another machine");
}

/// Where the guest has its display's memory, and whether QEMU starts early there.
#[test]
fn qemu_starts_early_unless_the_display_has_no_memory() {
    for (address, starts_early) in [(None, true), (Some(0xf000_0000_i64), true), (Some(-1), false)] {
        let pair = Pair::new(Drivers::None);
        if let Some(address) = address {
            pair.a.qemu.put_display(address);
        }
        let (sent, received) = pair.migrate();
        sent.unwrap();
        received.unwrap();
        assert_eq!(pair.b.qemu.started_early(), starts_early, "{address:?}");
        pair.check_only_on(true, "started early");
    }
}
