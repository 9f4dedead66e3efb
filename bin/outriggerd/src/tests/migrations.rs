//! Guests that are migrated between two hosts.

use std::thread;
use std::time::Duration;

use api::client::ClientError;
use api::types::{
    Guest, MigrateParameters, Migrations, Progress, ReceiveParameters, Refusal, ResolveKind,
    ResolveParameters, Resolved, Role, State, Via,
};
use serde_json::{Value, json};
use toolstack::Deadlines;
use xen_types::DomId;

use super::link::{Cut, Link};
use super::world::{Mode, Service, World, create, eventually, failure, named};

/// Two hosts, of which the first one has a guest.
struct Hosts {
    worlds: [World; 2],
    alpha: Service,
    beta: Service,
    guest: Guest,
}

/// The ends of a migration at both hosts.
type Ends = (Result<Vec<Progress>, ClientError>, Result<Option<Guest>, ClientError>);

impl Hosts {
    fn new() -> Self {
        Self::with(&Deadlines::default())
    }

    fn with(deadlines: &Deadlines) -> Self {
        let worlds = [World::new(), World::new()];
        let start =
            |world: &World| world.start_with_qemu(world.toolstack().with_deadlines(deadlines.clone()));
        let [mut alpha, beta] = worlds.each_ref().map(start);
        let guest = alpha.create("").unwrap();
        alpha.events.expect(&["created"]);
        Self { worlds, alpha, beta, guest }
    }

    /// With a guest that was handed over when the connection was lost.
    fn unresolved(cut: Cut) -> Self {
        // Both wait for another connection first.
        let (peer, peer_work) = (Duration::from_secs(2), Duration::from_secs(2));
        let mut hosts = Self::with(&Deadlines { peer, peer_work, ..Deadlines::default() });
        let (sent, received) = hosts.migrate(cut);
        let refused = failure(sent);
        let Refusal::Unresolved { guest, host, message } = refused else { panic!("{refused:?}") };
        assert_eq!((guest.as_str(), host.as_str()), ("hello", "beta"));
        assert!(message.contains("beta"), "{message}");
        assert_eq!(received.is_ok(), cut == Cut::AfterGo, "{received:?}");
        assert_eq!(hosts.alpha.events.expect(&["unresolved"]).detail, "beta");
        assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Unresolved);
        hosts
    }

    fn migrate(&self, cut: Cut) -> Ends {
        let link = Link::new(cut);
        thread::scope(|scope| {
            let received = scope.spawn(|| receive(&self.beta, &link));
            (send(&self.alpha, &migrating(&link)), received.join().unwrap())
        })
    }

    /// Asks the receiver through a new connection.
    fn ask(&self) -> Result<(Resolved, Option<Guest>), ClientError> {
        let link = Link::new(Cut::Never);
        thread::scope(|scope| {
            let answered = scope.spawn(|| receive(&self.beta, &link));
            let resolved = resolve(&self.alpha, &ResolveParameters { channel: link.sender(), ..asking() });
            assert_eq!(answered.join().unwrap().unwrap(), None, "it has only answered");
            resolved
        })
    }

    /// The sender's daemon is killed, and another one started.
    fn restart_alpha(self) -> Self {
        let Self { worlds, alpha, beta, guest } = self;
        alpha.kill().unwrap();
        let alpha = worlds[0].start_with_qemu(worlds[0].toolstack());
        Self { worlds, alpha, beta, guest }
    }

    fn check_at_beta(&mut self) {
        assert!(self.alpha.list().is_empty());
        self.worlds[0].check_clean();
        let guest = self.beta.get("hello").unwrap();
        assert_eq!((&guest.uuid, guest.state), (&self.guest.uuid, State::Running));
        self.beta.events.expect(&["created"]);
        self.beta.destroy("hello").unwrap();
        self.worlds[1].check_clean();
    }
}

fn migrating(link: &Link) -> MigrateParameters {
    MigrateParameters {
        guest: "hello".to_owned(),
        channel: link.sender(),
        host: "beta".to_owned(),
        live: true,
        max_downtime_ms: 0,
        bandwidth: 0,
        compress: false,
        dest_config: None,
        dest_path: None,
    }
}

fn send(alpha: &Service, parameters: &MigrateParameters) -> Result<Vec<Progress>, ClientError> {
    let mut all = Vec::new();
    alpha.client().call_more("Migrate", parameters, |progress: Progress| {
        all.push(progress);
        true
    })?;
    Ok(all)
}

fn receive(beta: &Service, link: &Link) -> Result<Option<Guest>, ClientError> {
    let mut guest = None;
    let parameters = ReceiveParameters { channel: link.receiver() };
    beta.client().call_more("MigrateReceive", &parameters, |progress: Progress| {
        guest = progress.guest;
        true
    })?;
    Ok(guest)
}

fn asking() -> ResolveParameters {
    ResolveParameters {
        guest: "hello".to_owned(),
        channel: String::new(),
        how: ResolveKind::Ask,
        answer: String::new(),
        operator: String::new(),
    }
}

fn resolve(host: &Service, parameters: &ResolveParameters) -> Result<(Resolved, Option<Guest>), ClientError> {
    let mut last = Progress::default();
    host.client().call_more("MigrateResolve", parameters, |progress: Progress| {
        last = progress;
        true
    })?;
    Ok((last.resolved.expect("the last reply says what became of it"), last.guest))
}

/// The guest runs on, whatever the reason.
fn is_not_sent(refusal: &Refusal) -> bool {
    use Refusal::{Failed, NotMigrated, StepFailed};
    matches!(refusal, NotMigrated { .. } | StepFailed { .. } | Failed { .. })
}

fn migrations(host: &Service) -> Vec<(Role, bool)> {
    let found: Migrations = host.client().call("Migrations", &json!({})).unwrap();
    assert!(found.migrations.iter().all(|migration| migration.name == "hello"), "{found:?}");
    found.migrations.iter().map(|migration| (migration.role, migration.unresolved)).collect()
}

#[test]
fn migrated_guest_is_gone_here_and_runs_there() {
    let mut hosts = Hosts::new();
    let (sent, received) = hosts.migrate(Cut::Never);
    let rounds = sent.unwrap().into_iter().filter_map(|progress| progress.round);
    assert!(rounds.count() > 0, "rounds are reported");
    let received = received.unwrap().expect("the last reply has the guest");
    assert_eq!((received.name.as_str(), &received.uuid), ("hello", &hosts.guest.uuid));
    assert_eq!(hosts.alpha.events.expect(&["changed"]).detail, "migrate");
    hosts.alpha.events.expect(&["destroyed"]);
    assert!(matches!(failure(hosts.alpha.get("hello")), Refusal::NoSuchGuest { .. }));
    assert_eq!(migrations(&hosts.alpha), [(Role::Sender, false)]);
    assert_eq!(migrations(&hosts.beta), [(Role::Receiver, false)]);
    hosts.check_at_beta();
}

#[test]
fn name_and_uuid_that_the_receiver_has_are_refused_and_the_guest_runs_on() {
    let mut hosts = Hosts::new();
    // The simulated hosts choose the same UUIDs.
    let other = hosts.beta.create("uuid = \"11111111-2222-4333-8444-555555555555\"").unwrap();
    let (sent, received) = hosts.migrate(Cut::Never);
    assert!(is_not_sent(&failure(sent)));
    assert_eq!(failure(received), Refusal::NameTaken { name: "hello".to_owned(), domid: other.domid });
    hosts.beta.destroy("hello").unwrap();
    let config = format!("type = \"hvm\"\nname = \"other\"\nmemory = 64\nuuid = \"{}\"\n", hosts.guest.uuid);
    create(&mut hosts.beta.client(), &config, &mut Vec::new()).unwrap();
    let (sent, received) = hosts.migrate(Cut::Never);
    assert!(is_not_sent(&failure(sent)));
    let refused = failure(received);
    assert!(matches!(&refused, Refusal::UuidTaken { uuid, .. } if *uuid == hosts.guest.uuid), "{refused:?}");
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Running);
    assert_eq!(hosts.beta.get("other").unwrap().state, State::Running);
    hosts.alpha.events.expect_nothing();
    hosts.alpha.destroy("hello").unwrap();
    hosts.worlds[0].check_clean();
}

#[test]
fn client_that_hangs_up_does_not_end_its_migration() {
    let mut hosts = Hosts::new();
    let link = Link::new(Cut::Never);
    let mut client = hosts.alpha.client();
    client.begin("Migrate", &migrating(&link)).unwrap();
    eventually("it is migrated", || hosts.alpha.get("hello").unwrap().state == State::Migrating);
    let busy = Refusal::Busy { guest: "hello".to_owned(), lifecycle: "migrate".to_owned() };
    assert_eq!(failure(hosts.alpha.destroy("hello")), busy);
    drop(client);
    receive(&hosts.beta, &link).unwrap();
    hosts.alpha.events.expect(&["changed", "destroyed"]);
    hosts.check_at_beta();
}

#[test]
fn migration_is_cancelled_while_the_receiver_builds_the_guest() {
    let mut hosts = Hosts::new();
    hosts.worlds[1].stubs.set(Mode::Hold);
    let link = Link::new(Cut::Never);
    thread::scope(|scope| {
        let received = scope.spawn(|| receive(&hosts.beta, &link));
        let sent = scope.spawn(|| send(&hosts.alpha, &migrating(&link)));
        hosts.worlds[1].stubs.wait_started(1);
        let answer: Value = hosts.alpha.client().call("Cancel", &named("hello")).unwrap();
        assert_eq!(answer["cancelled"], true);
        let refused = failure(sent.join().unwrap());
        let Refusal::StepFailed { message, undo_failures, .. } = &refused else { panic!("{refused:?}") };
        assert!(message.contains("Cancelled") && undo_failures.is_empty(), "{refused:?}");
        hosts.worlds[1].stubs.set(Mode::Work);
        received.join().unwrap().unwrap_err();
    });
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Running);
    assert!(hosts.worlds[0].qemus.runs(hosts.guest.stub_domid.unwrap()));
    hosts.alpha.events.expect_nothing();
    hosts.worlds[1].check_clean();
}

#[test]
fn migration_without_another_host_leaves_the_guest_as_it_is() {
    let mut hosts = Hosts::new();
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody").to_str().unwrap().to_owned();
    let parameters = MigrateParameters { channel: nobody.clone(), ..migrating(&Link::new(Cut::Never)) };
    assert!(matches!(failure(send(&hosts.alpha, &parameters)), Refusal::Failed { .. }));
    let unheard: Result<Value, _> =
        hosts.beta.client().call("MigrateReceive", &ReceiveParameters { channel: nobody });
    assert!(matches!(failure(unheard), Refusal::Failed { .. }));
    for wrong in [
        MigrateParameters { channel: "relative".to_owned(), ..parameters.clone() },
        MigrateParameters { host: String::new(), ..parameters.clone() },
    ] {
        assert!(matches!(failure(send(&hosts.alpha, &wrong)), Refusal::BadConfig { .. }));
    }
    for wrong in [
        ResolveParameters { channel: "relative".to_owned(), ..asking() },
        ResolveParameters { how: ResolveKind::Answer, ..asking() },
        ResolveParameters { how: ResolveKind::AssumeReceiverDead, ..asking() },
    ] {
        assert!(matches!(failure(resolve(&hosts.alpha, &wrong)), Refusal::BadConfig { .. }));
    }
    let none = ResolveParameters { guest: "none".to_owned(), ..asking() };
    assert_eq!(failure(resolve(&hosts.alpha, &none)), Refusal::NoSuchGuest { guest: "none".to_owned() });
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Running);
    hosts.alpha.events.expect_nothing();
}

#[test]
fn unresolved_guest_is_locked_and_runs_on_when_the_receiver_has_aborted() {
    let mut hosts = Hosts::unresolved(Cut::BeforeGo);
    let is_locked = |refusal: Refusal| matches!(refusal, Refusal::Unresolved { .. });
    assert!(is_locked(failure(hosts.alpha.destroy("hello"))));
    assert!(is_locked(failure(hosts.alpha.client().call::<_, Via>("Shutdown", &named("hello")))));
    assert!(is_locked(failure(send(&hosts.alpha, &migrating(&Link::new(Cut::Never))))));
    assert!(is_locked(failure(resolve(&hosts.alpha, &asking()))), "there is nobody to ask");
    assert_eq!(migrations(&hosts.alpha), [(Role::Sender, true)]);
    hosts.alpha.events.expect_nothing();
    let (resolved, guest) = hosts.ask().unwrap();
    assert!(!resolved.boots && resolved.answer.is_none(), "{resolved:?}");
    let guest = guest.expect("it is here");
    assert_eq!((guest.domid, guest.state), (hosts.guest.domid, State::Running));
    assert_eq!(hosts.alpha.events.expect(&["changed"]).detail, "resolve");
    hosts.alpha.destroy("hello").unwrap();
    for world in &hosts.worlds {
        world.check_clean();
    }
}

#[test]
fn receiver_that_still_waits_is_asked_through_another_connection() {
    let mut hosts = Hosts::new();
    let link = Link::new(Cut::BeforeGo);
    thread::scope(|scope| {
        let received = scope.spawn(|| receive(&hosts.beta, &link));
        assert!(matches!(failure(send(&hosts.alpha, &migrating(&link))), Refusal::Unresolved { .. }));
        assert!(hosts.ask().unwrap().1.is_some(), "it runs on at the sender");
        received.join().unwrap().unwrap_err();
    });
    hosts.alpha.events.expect(&["unresolved", "changed"]);
    hosts.beta.events.expect_nothing();
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Running);
    hosts.worlds[1].check_clean();
}

#[test]
fn receiver_that_still_waits_can_be_told_to_give_up() {
    let hosts = Hosts::new();
    let link = Link::new(Cut::BeforeGo);
    let answer = thread::scope(|scope| {
        let received = scope.spawn(|| receive(&hosts.beta, &link));
        assert!(matches!(failure(send(&hosts.alpha, &migrating(&link))), Refusal::Unresolved { .. }));
        resolve(&hosts.beta, &asking()).unwrap_err();
        received.join().unwrap().unwrap_err();
        resolve(&hosts.beta, &asking()).unwrap().0.answer.expect("a line for the sender")
    });
    let answered = ResolveParameters { how: ResolveKind::Answer, answer, ..asking() };
    assert!(resolve(&hosts.alpha, &answered).unwrap().1.is_some());
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Running);
}

#[test]
fn unresolved_guest_is_gone_when_the_receiver_has_it() {
    let mut hosts = Hosts::unresolved(Cut::AfterGo);
    let (_, guest) = hosts.ask().unwrap();
    assert_eq!(guest, None);
    hosts.alpha.events.expect(&["destroyed"]);
    hosts.check_at_beta();
}

#[test]
fn answer_of_the_receiver_can_be_carried_over_by_hand() {
    let mut hosts = Hosts::unresolved(Cut::AfterGo);
    let (resolved, guest) = resolve(&hosts.beta, &asking()).unwrap();
    assert_eq!(guest.expect("it runs there").state, State::Running);
    let answer = resolved.answer.expect("a line for the sender");
    let telling = |answer: String| ResolveParameters { how: ResolveKind::Answer, answer, ..asking() };
    assert!(resolve(&hosts.alpha, &telling(format!("x{answer}"))).is_err());
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Unresolved);
    assert_eq!(resolve(&hosts.alpha, &telling(answer)).unwrap().1, None);
    hosts.beta.events.expect(&["created"]);
    assert_eq!(hosts.beta.events.expect(&["changed"]).detail, "resolve");
    assert!(hosts.alpha.list().is_empty());
    hosts.worlds[0].check_clean();
}

#[test]
fn next_daemon_knows_which_host_has_to_decide() {
    let mut hosts = Hosts::unresolved(Cut::AfterGo);
    hosts = hosts.restart_alpha();
    let Refusal::Unresolved { host, .. } = failure(hosts.alpha.destroy("hello")) else { panic!() };
    assert_eq!(host, "beta");
    assert_eq!(hosts.alpha.get("hello").unwrap().state, State::Unresolved);
    assert_eq!(hosts.ask().unwrap().1, None);
    hosts.alpha.events.expect(&["destroyed"]);
    hosts.check_at_beta();
}

#[test]
fn guest_of_a_dead_receiver_is_started_anew() {
    let mut hosts = Hosts::unresolved(Cut::BeforeGo);
    let operator = "root".to_owned();
    let dead = ResolveParameters { how: ResolveKind::AssumeReceiverDead, operator, ..asking() };
    let (resolved, guest) = resolve(&hosts.alpha, &dead).unwrap();
    assert!(resolved.boots && resolved.state.contains("root"), "{resolved:?}");
    let guest = guest.expect("it is here");
    assert_eq!((&guest.uuid, guest.state), (&hosts.guest.uuid, State::Running));
    assert!(guest.domid > hosts.guest.domid);
    hosts.alpha.events.expect(&["created"]);
    hosts.alpha.destroy("hello").unwrap();
    hosts.worlds[0].check_clean();
}

#[test]
fn earlier_daemons_guest_about_which_another_host_decides_is_locked() {
    let world = World::new();
    let service = world.start_with_qemu(world.toolstack());
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    lock(&world, guest.domid);
    let mut service = world.start_with_qemu(world.toolstack());
    let [found] = &service.list()[..] else { panic!("it is not listed") };
    assert_eq!((&found.uuid, found.state), (&guest.uuid, State::Unresolved));
    let refused = failure(service.destroy("hello"));
    let Refusal::Unresolved { guest, host, message } = refused else { panic!("{refused:?}") };
    assert_eq!((guest.as_str(), host.as_str()), ("hello", ""));
    assert!(message.contains("locked"), "{message}");
    assert!(matches!(failure(resolve(&service, &asking())), Refusal::Failed { .. }), "no journal has it");
    assert_eq!(service.get("hello").unwrap().state, State::Unresolved);
    service.events.expect_nothing();
}

/// The guest's state file says that another host decides.
fn lock(world: &World, domid: DomId) {
    let files = world.host.state().files.into_iter();
    let mut read =
        files.filter_map(|(path, bytes)| Some((path, serde_json::from_slice::<Value>(&bytes).ok()?)));
    let (path, mut file) = read.find(|(_, file)| file["domid"] == json!(domid)).expect("it has a state file");
    file["operation"] = json!({ "kind": "suspend", "cursor": { "step": "suspend", "way": "peer" } });
    world.host.put_file(path, &serde_json::to_vec(&file).unwrap());
}
