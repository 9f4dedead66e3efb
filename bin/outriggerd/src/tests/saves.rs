//! Guests that are saved, restored, suspended and resumed.

use std::path::Path;
use std::time::Duration;

use api::client::{Client, ClientError};
use api::types::{Guest, Progress, Refusal, RestoreParameters, SaveParameters, State};
use config::Uuid;
use serde::Serialize;
use serde_json::Value;
use toolstack::operation::{Faults, Side};
use toolstack::{AfterSave, Deadlines, GuestId, Monitors as _, Toolstack};
use xen::{HvmParam, Hypervisor as _, ShutdownReason};
use xen_types::DomId;
use xenstore::{Store as _, XsPath};

use super::world::{Service, World, eventually, failure, named};

const FILE: &str = "/srv/hello.save";

fn saving() -> SaveParameters {
    SaveParameters { guest: "hello".to_owned(), path: FILE.to_owned(), checkpoint: false, paused: false }
}

fn restoring(name: &str) -> RestoreParameters {
    RestoreParameters { path: FILE.to_owned(), name: name.to_owned(), force: false, paused: false }
}

/// Calls a method with steps; gives their ids, and the guest if there is one in the end.
fn call(
    service: &Service,
    method: &str,
    parameters: &impl Serialize,
) -> Result<(Vec<String>, Option<Guest>), ClientError> {
    let (mut steps, mut guest) = (Vec::new(), None);
    service.client().call_more(method, parameters, |progress: Progress| {
        let ended = progress.step.filter(|step| step.millis.is_some());
        steps.extend(ended.map(|step| step.id));
        guest = progress.guest;
        true
    })?;
    Ok((steps, guest))
}

fn restore(service: &Service, parameters: &RestoreParameters) -> Result<Guest, ClientError> {
    call(service, "Restore", parameters).map(|(_, guest)| guest.expect("the last reply has the guest"))
}

fn cancel(service: &Service) -> bool {
    let answer: Value = service.client().call("Cancel", &named("hello")).unwrap();
    answer["cancelled"].as_bool().unwrap()
}

/// Whether there is a session with the device model.
fn has_session(service: &Service, guest: &Guest) -> bool {
    let id = GuestId(guest.uuid.parse::<Uuid>().unwrap());
    service.shared.qmp.monitor(id).is_ok()
}

/// The save's file, or what was to become one.
fn has_file(world: &World) -> bool {
    world.host.state().files.keys().any(|path| path.to_string_lossy().starts_with(FILE))
}

/// A daemon that has just made a guest.
fn with_guest(world: &World) -> (Service, Guest) {
    let mut service = world.start_with_qemu(world.toolstack());
    let guest = service.create("").unwrap();
    service.events.expect(&["created"]);
    (service, guest)
}

/// A daemon that has just saved its only guest, which is gone.
fn with_file(world: &World) -> (Service, Guest) {
    let (mut service, guest) = with_guest(world);
    call(&service, "Save", &saving()).unwrap();
    service.events.expect(&["changed", "destroyed"]);
    (service, guest)
}

/// The guest has PV drivers, which take notice of nothing.
fn give_drivers(world: &World, guest: DomId) {
    world.hypervisor.set_hvm_param(guest, HvmParam::CallbackIrq, 1).unwrap();
}

/// What the guest's PV drivers are asked for.
fn asked_for(guest: DomId) -> XsPath {
    XsPath::domain(guest).join("control/shutdown").unwrap()
}

/// A client whose save waits for the guest's PV drivers.
fn waiting_save(world: &World, service: &Service, guest: &Guest) -> Client {
    give_drivers(world, guest.domid);
    let mut client = service.client();
    client.begin("Save", &saving()).unwrap();
    let store = world.server.connect(DomId::DOM0);
    let path = asked_for(guest.domid);
    eventually("it is asked", || store.read(&path).unwrap().as_deref() == Some(b"suspend"));
    client
}

/// Why the save has failed.
fn end(client: &mut Client) -> Refusal {
    loop {
        match client.next_reply::<Progress>("Save") {
            Ok((_, continues)) => assert!(continues, "the save has succeeded"),
            Err(error) => break failure::<()>(Err(error)),
        }
    }
}

#[test]
fn guest_that_suspends_itself_after_its_save_was_given_up_goes_on() {
    let world = World::new();
    let deadlines = Deadlines { suspend: Duration::from_millis(100), ..Deadlines::default() };
    let mut service = world.start_with_qemu(world.toolstack().with_deadlines(deadlines));
    let guest = service.create("").unwrap();
    service.events.expect(&["created"]);
    let mut client = waiting_save(&world, &service, &guest);
    world.server.connect(DomId::DOM0).write(&asked_for(guest.domid), b"").unwrap();
    let refused = end(&mut client);
    assert!(matches!(refused, Refusal::StepFailed { .. }), "{refused:?}");
    world.end(guest.domid, ShutdownReason::Suspend);
    service.events.expect(&["suspended"]);
    let state = || world.hypervisor.domain_info(guest.domid).unwrap().unwrap().state;
    eventually("the guest goes on", || state().shutdown.is_none());
    assert!(!has_file(&world));
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn saved_guest_is_gone_and_comes_back_under_another_name() {
    let world = World::new();
    let (mut service, guest) = with_guest(&world);
    assert!(has_session(&service, &guest));
    let (steps, left) = call(&service, "Save", &saving()).unwrap();
    let expected = Toolstack::save_steps(AfterSave::Destroy);
    assert_eq!(steps[..expected.len()], expected);
    assert_eq!(left, None);
    let changed = service.events.next();
    assert_eq!((changed.kind.as_str(), changed.detail.as_str()), ("changed", "save"));
    service.events.expect(&["destroyed"]);
    assert!(service.list().is_empty() && !has_session(&service, &guest));
    assert!(matches!(failure(service.get("hello")), Refusal::NoSuchGuest { .. }));
    world.check_clean();

    let paused = RestoreParameters { paused: true, ..restoring("other") };
    let (steps, restored) = call(&service, "Restore", &paused).unwrap();
    assert_eq!(steps, Toolstack::restore_steps());
    let restored = restored.unwrap();
    assert_eq!((&restored.uuid, restored.name.as_str()), (&guest.uuid, "other"));
    assert_eq!(restored.state, State::Paused);
    service.events.expect(&["created"]);
    assert!(has_session(&service, &restored) && world.qemus.has_loaded(restored.stub_domid.unwrap()));
    let _: Value = service.client().call("Unpause", &named("other")).unwrap();
    assert_eq!(service.get("other").unwrap().state, State::Running);
    assert!(has_file(&world), "it is only read");
    service.destroy("other").unwrap();
    world.check_clean();
}

#[test]
fn guest_that_is_saved_and_kept_goes_on_or_is_paused() {
    let world = World::new();
    let (mut service, guest) = with_guest(&world);
    for (kept, shown) in [
        (SaveParameters { checkpoint: true, ..saving() }, State::Running),
        // The earlier file is replaced.
        (SaveParameters { paused: true, checkpoint: true, ..saving() }, State::Paused),
    ] {
        call(&service, "Save", &kept).unwrap();
        assert_eq!(service.events.expect(&["changed"]).detail, "save");
        let found = service.get("hello").unwrap();
        assert_eq!((found.domid, found.state), (guest.domid, shown));
        assert!(world.qemus.runs(guest.stub_domid.unwrap()) && has_session(&service, &guest));
    }
    service.destroy("hello").unwrap();
    service.events.expect(&["destroyed"]);
    assert_eq!(restore(&service, &restoring("")).unwrap().uuid, guest.uuid);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn suspended_guest_is_shown_as_such_until_it_is_resumed() {
    let world = World::new();
    let (mut service, guest) = with_guest(&world);
    call(&service, "Suspend", &named("hello")).unwrap();
    assert_eq!(service.get("hello").unwrap().state, State::Suspended);
    assert!(!world.qemus.runs(guest.stub_domid.unwrap()));
    assert_eq!(service.events.next().detail, "suspend");
    service.events.expect(&["suspended"]);
    for method in ["Suspend", "Resume"] {
        let first = call(&service, method, &named("hello"));
        assert_eq!(first.is_ok(), method == "Resume", "{method}: {first:?}");
    }
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    assert!(world.qemus.runs(guest.stub_domid.unwrap()));
    assert_eq!(service.events.next().detail, "resume");
    assert!(call(&service, "Resume", &named("hello")).is_err(), "it runs");
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn paths_of_saved_guests_are_absolute() {
    let world = World::new();
    let (mut service, _) = with_guest(&world);
    let relative = || "hello.save".to_owned();
    for refused in [
        failure(call(&service, "Save", &SaveParameters { path: relative(), ..saving() })),
        failure(call(&service, "Restore", &RestoreParameters { path: relative(), ..restoring("other") })),
    ] {
        let Refusal::BadConfig { diagnostics } = refused else { panic!("{refused:?}") };
        assert!(diagnostics.contains("hello.save is not absolute"), "{diagnostics}");
    }
    service.events.expect_nothing();
}

#[test]
fn file_that_is_missing_or_none_is_refused_and_nothing_is_left() {
    let world = World::new();
    let mut service = world.start_with_qemu(world.toolstack());
    let refused = |service: &Service| {
        let refused = failure(restore(service, &restoring("")));
        let Refusal::Failed { message, causes, .. } = refused else { panic!("{refused:?}") };
        format!("{message}: {}", causes.join(": "))
    };
    let text = refused(&service);
    assert!(text.contains(FILE), "{text}");
    for content in [&b""[..], b"somebody's letters", b"Xen saved domain, xl format\n \0 \r"] {
        world.host.put_file(FILE, content);
        let text = refused(&service);
        assert!(text.contains(FILE), "{text}");
    }
    assert!(service.shared.registry.all().is_empty());
    service.events.expect_nothing();
    world.check_clean();
}

#[test]
fn names_and_uuids_that_are_taken_are_refused_and_nothing_is_left() {
    let world = World::new();
    let (service, guest) = with_file(&world);
    let other = restore(&service, &restoring("other")).unwrap();
    let refused = failure(restore(&service, &restoring("other")));
    assert_eq!(refused, Refusal::NameTaken { name: "other".to_owned(), domid: other.domid });
    let refused = failure(restore(&service, &restoring("third")));
    assert!(matches!(&refused, Refusal::UuidTaken { uuid, .. } if *uuid == guest.uuid), "{refused:?}");
    let refused = failure(restore(&service, &restoring("no/name")));
    assert!(matches!(refused, Refusal::Failed { .. }), "{refused:?}");
    // The one that has them is served on.
    let [left] = &service.list()[..] else { panic!("{:?}", service.list()) };
    assert_eq!((left.name.as_str(), left.state), ("other", State::Running));
    assert!(has_session(&service, &other) && service.shared.registry.all().len() == 1);
    call(&service, "Suspend", &named("other")).unwrap();
    service.destroy("other").unwrap();
    world.check_clean();
}

#[test]
fn restore_that_fails_leaves_no_guest_and_no_session() {
    let world = World::new();
    let (service, guest) = with_file(&world);
    service.kill().unwrap();
    for step in ["start-stubdomain", "restore-memory", "load-devices", "start-guest"] {
        let toolstack = world.toolstack().with_faults(Faults::none().at(step, Side::After));
        let mut service = world.start_with_qemu(toolstack);
        let refused = failure(restore(&service, &restoring("")));
        assert!(matches!(&refused, Refusal::StepFailed { id, .. } if id == step), "{step}: {refused:?}");
        assert!(service.shared.registry.all().is_empty() && !has_session(&service, &guest), "{step}");
        service.events.expect_nothing();
        world.check_clean();
        service.kill().unwrap();
    }
    let service = world.start_with_qemu(world.toolstack());
    restore(&service, &restoring("")).unwrap();
}

#[test]
fn save_that_waits_for_the_guest_can_be_given_up() {
    let world = World::new();
    let (mut service, guest) = with_guest(&world);
    assert!(!cancel(&service), "there is no save");
    let mut client = waiting_save(&world, &service, &guest);
    let busy = Refusal::Busy { guest: "hello".to_owned(), lifecycle: "save".to_owned() };
    assert_eq!(failure(service.destroy("hello")), busy);
    assert!(cancel(&service));
    let refused = end(&mut client);
    let Refusal::StepFailed { id, message, undo_failures, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((id.as_str(), message.as_str()), ("save-memory", "Cancelled; guest hello runs on"));
    assert!(undo_failures.is_empty(), "{undo_failures:?}");
    // The request was taken back.
    let asked = world.server.connect(DomId::DOM0).read(&asked_for(guest.domid)).unwrap();
    assert_eq!(asked.as_deref(), Some(&b""[..]));
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    assert!(world.hypervisor.runs(guest.domid) && !has_file(&world) && !cancel(&service));
    service.events.expect_nothing();
    service.destroy("hello").unwrap();
    world.check_clean();
    assert!(matches!(
        failure(service.client().call::<_, Value>("Cancel", &named("hello"))),
        Refusal::NoSuchGuest { .. }
    ));
}

#[test]
fn client_that_hangs_up_does_not_end_its_save() {
    let world = World::new();
    let (mut service, guest) = with_guest(&world);
    drop(waiting_save(&world, &service, &guest));
    world.server.connect(DomId::DOM0).write(&asked_for(guest.domid), b"").unwrap();
    world.end(guest.domid, ShutdownReason::Suspend);
    service.events.expect(&["changed", "destroyed"]);
    assert!(world.host.state().files.contains_key(Path::new(FILE)));
    assert_eq!(service.list(), []);
    world.check_clean();
    assert_eq!(restore(&service, &restoring("")).unwrap().uuid, guest.uuid);
}
