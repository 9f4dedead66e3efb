//! Migrating guests between two hosts.

mod results;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use toolstack::operation::{Faults, Side};
use toolstack::{
    Cause, CreateOptions, Deadlines, Error, Event, Guest, HandoverError, Incoming, MigrateOptions,
    MigrationRole, Resolve, Toolstack,
};
use xen::Hypervisor as _;

use crate::killed::{at_places, is_killed, recover};
use crate::qemu::STATE;
use crate::world::{Drivers, Stubs, World};

/// Two hosts that have the same disks; the first one has a guest.
struct Pair {
    a: World,
    b: World,
    guest: Guest,
}

/// What became of a guest on both hosts.
type Outcome = (Result<Option<Guest>, Error>, Result<Option<Guest>, Error>);

fn options() -> MigrateOptions {
    MigrateOptions { host: "b".to_owned(), live: true, ..MigrateOptions::default() }
}

/// Short ones: several tests wait for a host that is gone.
fn deadlines() -> Deadlines {
    let (peer, peer_work) = (Duration::from_millis(300), Duration::from_secs(1));
    Deadlines { peer, peer_work, ..Deadlines::default() }
}

/// As the daemon after a killed one.
fn successor(world: &World) -> Toolstack {
    world.successor().with_deadlines(deadlines())
}

impl Pair {
    fn new(drivers: Drivers) -> Self {
        let (mut a, mut b) = (World::new(Stubs::Work), World::new(Stubs::Work));
        for world in [&mut a, &mut b] {
            world.toolstack = world.toolstack.clone().with_deadlines(deadlines());
        }
        b.host.seed(77);
        let guest = a.create_small().unwrap();
        a.give_drivers(guest.domid, drivers);
        Self { a, b, guest }
    }

    /// Migrates the guest from the first host to the second.
    fn migrate(&self) -> Outcome {
        self.migrate_with(&self.a.toolstack, &self.b.toolstack, &mut |_| ())
    }

    fn migrate_with(&self, from: &Toolstack, to: &Toolstack, events: &mut dyn FnMut(Event)) -> Outcome {
        self.migrate_as(from, to, &options(), events)
    }

    /// The same as [`Self::migrate`], in this way.
    fn migrate_so(&self, options: &MigrateOptions) -> Outcome {
        self.migrate_as(&self.a.toolstack, &self.b.toolstack, options, &mut |_| ())
    }

    fn migrate_as(
        &self,
        from: &Toolstack,
        to: &Toolstack,
        options: &MigrateOptions,
        events: &mut dyn FnMut(Event),
    ) -> Outcome {
        let (here, there) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let receiver = scope.spawn(move || serve(to, there));
            let sent = from
                .connect_peer_over(here)
                .and_then(|channel| from.migrate(self.guest.id(), channel, options, events));
            (sent, receiver.join().unwrap())
        })
    }

    /// Asks the second host what became of the guest.
    fn resolve(&self, how: &Resolve) -> Result<toolstack::ResolveOutcome, Error> {
        let (from, to) = (&successor(&self.a), &successor(&self.b));
        let (here, there) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let receiver = scope.spawn(move || serve(to, there));
            let outcome = from
                .connect_peer_over(here)
                .and_then(|channel| from.resolve("hello", how, Some(channel), &mut |_| ()));
            let _ = receiver.join().unwrap();
            outcome
        })
    }

    /// Asks the second host as long as it is not known where the guest is, then fails unless it is on one host.
    fn check_one(&self, case: &str) {
        for _ in 0..3 {
            let migrations = successor(&self.a).migrations().unwrap();
            if !migrations.iter().any(|info| info.unresolved) {
                break;
            }
            let resolved = self.resolve(&Resolve::Ask);
            assert!(resolved.is_ok(), "{case}: {resolved:?}");
        }
        let (here, there) = (self.runs_on(&self.a), self.runs_on(&self.b));
        assert!(here != there, "{case}: runs here: {here}, there: {there}");
        self.check_only_on(there, case);
    }

    fn runs_on(&self, world: &World) -> bool {
        let Ok(info) = successor(world).info(self.guest.id()) else { return false };
        let state = world.hypervisor.domain_info(info.guest.domid).unwrap().map(|info| info.state);
        state.is_some_and(|state| !state.paused && state.shutdown.is_none()) && world.qemu.runs()
    }

    /// Fails unless the guest runs on this host, and the other has nothing of it.
    fn check_only_on(&self, is_there: bool, case: &str) {
        let (with, without) = if is_there { (&self.b, &self.a) } else { (&self.a, &self.b) };
        assert!(self.runs_on(with), "{case}: it does not run");
        successor(with).destroy(self.guest.id(), &mut |_| ()).unwrap();
        for world in [with, without] {
            forget_journals(world);
            world.check_clean(case);
        }
    }
}

/// Takes what comes, as a daemon does.
fn serve(toolstack: &Toolstack, stream: UnixStream) -> Result<Option<Guest>, Error> {
    match toolstack.accept_peer(toolstack.connect_peer_over(stream)?)? {
        Incoming::Guest(guest) => toolstack.receive(*guest, &mut |_| ()).map(Some),
        Incoming::Answered => Ok(None),
        Incoming::Told { migration, channel, .. } => toolstack
            .resolve(&migration, &Resolve::Ask, Some(channel), &mut |_| ())
            .map(|outcome| outcome.guest),
    }
}

fn forget_journals(world: &World) {
    for path in world.host.state().files.keys() {
        if path.starts_with(world.toolstack.paths().migrations()) {
            world.forget_file(path);
        }
    }
}

fn states(world: &World) -> Vec<(MigrationRole, String)> {
    successor(world).migrations().unwrap().into_iter().map(|info| (info.role, info.state)).collect()
}

#[test]
fn guest_runs_on_at_the_other_host() {
    for drivers in [Drivers::None, Drivers::Polite] {
        let pair = Pair::new(drivers);
        let (mut finished, mut rounds) = (Vec::new(), 0);
        let (sent, received) =
            pair.migrate_with(&pair.a.toolstack, &pair.b.toolstack, &mut |event| match event {
                Event::StepFinished { id, .. } => finished.push(id),
                Event::Round { .. } => rounds += 1,
                _ => {}
            });
        assert_eq!(sent.unwrap(), None);
        let there = received.unwrap().unwrap();
        assert_eq!((there.uuid, &there.name), (pair.guest.uuid, &pair.guest.name), "{drivers:?}");
        assert_eq!(there.config, pair.guest.config);
        assert_eq!(pair.b.qemu.loaded().as_deref(), Some(STATE));
        assert!(rounds > 0);
        let steps = Toolstack::migrate_steps();
        assert_eq!(finished[..steps.len()], steps);
        assert_eq!(states(&pair.a), [(MigrationRole::Sender, "moved to b".to_owned())]);
        let [(MigrationRole::Receiver, state)] = &states(&pair.b)[..] else { panic!("one journal") };
        assert!(state.starts_with("taken over from") && state.ends_with("runs"), "{state}");
        pair.check_only_on(true, "migrated");
    }
}

#[test]
fn guest_runs_on_here_after_a_failure_at_any_step_of_the_sender() {
    for step in Toolstack::migrate_steps() {
        for side in [Side::Before, Side::After] {
            let case = format!("{step}, {side:?}");
            let pair = Pair::new(Drivers::Polite);
            let from = pair.a.toolstack.clone().with_faults(Faults::none().at(step, side));
            let (sent, received) = pair.migrate_with(&from, &pair.b.toolstack, &mut |_| ());
            if received.is_ok() {
                // The answer was there, or only it was missing.
                assert!(["hand-over", "give-up-guest"].contains(&step), "{case}: {received:?}");
                if sent.is_err() {
                    let _ = pair.resolve(&Resolve::Ask).unwrap();
                }
                pair.check_only_on(true, &case);
            } else {
                assert!(sent.is_err(), "{case}");
                pair.check_only_on(false, &case);
            }
        }
    }
}

#[test]
fn guest_runs_on_here_after_a_failure_at_any_step_of_the_receiver() {
    for step in Toolstack::receive_steps() {
        for side in [Side::Before, Side::After] {
            let case = format!("{step}, {side:?}");
            let pair = Pair::new(Drivers::Polite);
            let to = pair.b.toolstack.clone().with_faults(Faults::none().at(step, side));
            let (sent, received) = pair.migrate_with(&pair.a.toolstack, &to, &mut |_| ());
            // Beyond the point of no return, what failed is tried again.
            let is_taken = ["run-device-model", "start-guest"].contains(&step);
            assert_eq!(
                (sent.is_ok(), received.is_ok()),
                (is_taken, is_taken),
                "{case}: {sent:?} {received:?}"
            );
            pair.check_only_on(is_taken, &case);
        }
    }
}

#[test]
fn guest_with_other_disks_is_refused_before_it_is_suspended() {
    let pair = Pair::new(Drivers::Polite);
    pair.b.host.put_storage("/srv/a.img", Some("another"));
    let before = pair.a.picture();
    let (sent, received) = pair.migrate();
    let Err(Error::Step(failure)) = sent else { panic!("not refused") };
    let differs = matches!(
        failure.cause,
        Cause::Handover(HandoverError::NotMigrated { reason: migration::Reason::DisksDiffer, .. })
    );
    assert!(differs, "{:?}", failure.cause);
    assert!(failure.cause.chain().contains("/srv/a.img"), "{}", failure.cause);
    assert!(received.unwrap_err().report().contains("another"));
    pair.a.picture().guests().iter().zip(before.guests()).for_each(|(now, then)| assert_eq!(now, then));
    pair.check_only_on(false, "other disks");
}

#[test]
fn guest_is_not_migrated_to_its_own_host() {
    let pair = Pair::new(Drivers::Polite);
    let (sent, _) = pair.migrate_with(&pair.a.toolstack, &pair.a.toolstack, &mut |_| ());
    assert!(sent.unwrap_err().report().contains("name another one"));
    pair.check_only_on(false, "itself");
}

#[test]
fn sender_that_is_killed_leaves_one_guest() {
    at_places(&Toolstack::migrate_steps(), 3, |place| {
        let case = format!("sender killed at {place:?}");
        let pair = Pair::new(Drivers::Polite);
        let (here, there) = UnixStream::pair().unwrap();
        let to = &pair.b.toolstack;
        let killed = thread::scope(|scope| {
            let receiver = scope.spawn(move || serve(to, there));
            let killed = is_killed(&pair.a, place, |from, events| {
                let channel = from.connect_peer_over(here);
                let _ =
                    channel.and_then(|channel| from.migrate(pair.guest.id(), channel, &options(), events));
            });
            let _ = receiver.join().unwrap();
            killed
        });
        recover(&pair.a, &case);
        pair.check_one(&case);
        killed
    });
}

#[test]
fn receiver_that_is_killed_leaves_one_guest() {
    at_places(&Toolstack::receive_steps(), 3, |place| {
        let case = format!("receiver killed at {place:?}");
        let pair = Pair::new(Drivers::Polite);
        let (here, there) = UnixStream::pair().unwrap();
        let (from, b) = (&pair.a.toolstack, &pair.b);
        let killed = thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                is_killed(b, place, |to, events| {
                    let accepted = to.connect_peer_over(there).and_then(|channel| to.accept_peer(channel));
                    if let Ok(Incoming::Guest(guest)) = accepted {
                        let _ = to.receive(*guest, events);
                    }
                })
            });
            let channel = from.connect_peer_over(here);
            let _ =
                channel.and_then(|channel| from.migrate(pair.guest.id(), channel, &options(), &mut |_| ()));
            receiver.join().unwrap()
        });
        recover(&pair.b, &case);
        pair.check_one(&case);
        killed
    });
}

/// Passes so many frames on, and ends both connections instead of the next one.
fn relay(from: &UnixStream, to: &UnixStream, frames: usize) {
    let pass_on = || -> std::io::Result<()> {
        let (mut from, mut to) = (from, to);
        for number in 0.. {
            let mut head = [0; 6];
            from.read_exact(&mut head)?;
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let mut rest = vec![0; usize::try_from(length).unwrap() + 4];
            from.read_exact(&mut rest)?;
            if number == frames {
                break;
            }
            to.write_all(&head)?;
            to.write_all(&rest)?;
        }
        Ok(())
    };
    let _ = pass_on();
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// Migrates over a connection that is cut after so many frames from the sender, and so many from the receiver; returns
/// whether all of them were needed.
fn migrate_over(pair: &Pair, sent: usize, received: usize) -> Outcome {
    let ((here, near), (far, there)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let (from, to) = (&pair.a.toolstack, &pair.b.toolstack);
    thread::scope(|scope| {
        let (near, far) = (&near, &far);
        scope.spawn(move || relay(near, far, sent));
        scope.spawn(move || relay(far, near, received));
        let receiver = scope.spawn(move || serve(to, there));
        let sent = from
            .connect_peer_over(here)
            .and_then(|channel| from.migrate(pair.guest.id(), channel, &options(), &mut |_| ()));
        let received = receiver.join().unwrap();
        for end in [near, far] {
            let _ = end.shutdown(Shutdown::Both);
        }
        (sent, received)
    })
}

#[test]
fn connection_that_is_cut_after_any_message_leaves_one_guest() {
    const MANY: usize = 1_000_000;
    for (is_sender, case) in [(true, "sent"), (false, "received")] {
        let mut cuts = 0;
        loop {
            let pair = Pair::new(Drivers::Polite);
            let (sent, received) = if is_sender { (cuts, MANY) } else { (MANY, cuts) };
            let outcome = migrate_over(&pair, sent, received);
            let is_whole = states(&pair.b).iter().any(|(_, state)| state.ends_with(": runs"))
                && states(&pair.a).iter().any(|(_, state)| state.starts_with("moved"));
            pair.check_one(&format!("cut after {cuts} messages {case}: {outcome:?}"));
            if is_whole {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 3, "{cuts} messages {case}");
    }
}

/// The descriptors of this process: each test has one of its own.
fn descriptors() -> Vec<String> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let mut links: Vec<String> = links
        .filter_map(|path| Some(std::fs::read_link(path).ok()?.display().to_string()))
        .map(|link| link.split(':').next().unwrap_or_default().to_owned())
        .collect();
    links.sort();
    links
}

#[test]
fn migration_leaves_no_descriptor_open() {
    let pair = Pair::new(Drivers::Polite);
    let before = descriptors();
    let (sent, received) = pair.migrate();
    sent.unwrap();
    received.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // The threads that read the channels end a little later.
    while descriptors() != before {
        assert!(std::time::Instant::now() < deadline, "{before:?} became {:?}", descriptors());
        thread::yield_now();
    }
    pair.check_only_on(true, "migrated");
}

/// A guest that was handed over and taken over, which its sender does not know.
fn unanswered() -> Pair {
    let pair = Pair::new(Drivers::Polite);
    // HELLO, ACCEPT, READY.
    let (sent, received) = migrate_over(&pair, 1_000_000, 3);
    let Err(Error::Step(failure)) = sent else { panic!("{sent:?}") };
    assert!(matches!(failure.cause, Cause::Handover(HandoverError::Unresolved { .. })), "{failure:?}");
    assert!(received.unwrap().is_some());
    pair
}

#[test]
fn guest_that_was_handed_over_is_locked_until_the_other_host_answers() {
    let pair = unanswered();
    let locked = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(error.report().contains("locked"), "{}", error.report());
    };
    let id = pair.guest.id();
    locked(pair.a.toolstack.resume(id, &mut |_| ()).map(drop));
    locked(pair.a.toolstack.suspend(id, &mut |_| ()).map(drop));
    locked(pair.a.toolstack.destroy(id, &mut |_| ()));
    recover(&pair.a, "a daemon that is restarted");
    locked(pair.a.toolstack.destroy(id, &mut |_| ()));
    let outcome = pair.resolve(&Resolve::Ask).unwrap();
    assert_eq!((outcome.state.as_str(), outcome.guest), ("moved to b", None));
    pair.check_only_on(true, "resolved");
}

#[test]
fn answer_that_an_operator_carries_resolves_a_migration() {
    let pair = unanswered();
    let there = successor(&pair.b).resolve("hello", &Resolve::Ask, None, &mut |_| ()).unwrap();
    let how = Resolve::Answer(there.answer.unwrap());
    let outcome = successor(&pair.a).resolve("hello", &how, None, &mut |_| ()).unwrap();
    assert_eq!(outcome.guest, None);
    pair.check_only_on(true, "carried");
}

#[test]
fn guest_whose_receiver_is_declared_dead_boots_anew() {
    let mut pair = unanswered();
    pair.b = pair.b.reboot();
    let how = Resolve::AssumeReceiverDead { operator: "ann".to_owned() };
    let refused = pair.resolve(&how).unwrap_err();
    assert!(refused.report().contains("answers"), "{}", refused.report());
    let outcome = successor(&pair.a).resolve("hello", &how, None, &mut |_| ()).unwrap();
    let guest = outcome.guest.unwrap();
    assert_eq!(guest.uuid, pair.guest.uuid);
    assert_ne!(guest.domid, pair.guest.domid, "it was not resumed");
    assert_eq!(outcome.state, "started anew by ann; b has not confirmed");
    // The receiver is switched on, starts nothing, and confirms.
    recover(&pair.b, "rebooted");
    let outcome = pair.resolve(&Resolve::Ask).unwrap();
    assert_eq!((outcome.state.as_str(), outcome.guest), ("started anew by ann", Some(guest)));
    let domain = successor(&pair.a).info(pair.guest.id()).unwrap().domain.unwrap();
    assert!(!domain.state.paused && domain.state.shutdown.is_none());
}

#[test]
fn guest_that_stays_here_is_not_lost_by_asking_again() {
    let pair = Pair::new(Drivers::Polite);
    let (sent, _) = migrate_over(&pair, 1, 1);
    sent.unwrap_err();
    let outcome = pair.resolve(&Resolve::Ask).unwrap();
    assert_eq!(outcome.guest.unwrap(), pair.guest, "{}", outcome.state);
    pair.check_only_on(false, "asked again");
}

#[test]
fn guest_is_not_created_while_another_host_may_have_it() {
    let mut pair = unanswered();
    pair.a = pair.a.reboot();
    recover(&pair.a, "rebooted");
    let error = pair.a.create_small().unwrap_err().report();
    assert!(error.contains("--resolve hello"), "{error}");
    let outcome = pair.resolve(&Resolve::Ask).unwrap();
    assert_eq!(outcome.guest, None);
    assert!(pair.runs_on(&pair.b) && pair.a.toolstack.guests().unwrap().is_empty());
    // It may come back by its owner's will.
    successor(&pair.b).destroy(pair.guest.id(), &mut |_| ()).unwrap();
    let error = pair.a.create_small().unwrap_err().report();
    assert!(error.contains("was migrated to b") && error.contains("--force"), "{error}");
    let options = CreateOptions { force: true, ..CreateOptions::default() };
    pair.a.toolstack.create(&pair.guest.config, options, &mut |_| ()).unwrap();
}
