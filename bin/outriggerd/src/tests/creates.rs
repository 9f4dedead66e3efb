//! Creating, looking, destroying; and what goes wrong with them.

use std::thread;

use api::types::{Guests, HostInfo, Info, Inspection, Outcome, Progress, Refusal, State, Via};
use serde_json::{Value, json};
use toolstack::Toolstack;
use toolstack::operation::{Faults, Side};
use xen::{Errno, ShutdownReason};

use super::world::{self, Mode, Service, World, create, failure, named, parameters, stub_log};

#[test]
fn created_guest_is_shown_until_it_is_destroyed() {
    let world = World::new();
    let mut service = world.start();
    let guest = service.create("serial = [\"pty\", \"pty\"]").unwrap();
    assert_eq!((guest.name.as_str(), guest.state, guest.serials), ("hello", State::Running, 2));
    assert_eq!(service.list(), std::slice::from_ref(&guest));
    for way in ["hello".to_owned(), guest.uuid.clone(), guest.domid.to_string()] {
        assert_eq!(service.get(&way).unwrap(), guest);
    }
    let inspection: Inspection = service.client().call("Inspect", &named("hello")).unwrap();
    assert_eq!(inspection.guest, guest);
    assert_eq!(inspection.config["name"], "hello");
    assert!(inspection.qemu_argv.iter().any(|argument| argument == "-xen-domid"), "{inspection:?}");
    assert_eq!(inspection.agent["state"], "running");
    let HostInfo { guests, .. } = service.client().call::<_, Info>("HostInfo", &json!({})).unwrap().info;
    assert_eq!(guests, 1);
    service.destroy("hello").unwrap();
    let none = Refusal::NoSuchGuest { guest: "hello".to_owned() };
    assert_eq!(failure(service.get("hello")), none);
    assert_eq!(failure(service.destroy("hello")), none);
    assert_eq!(service.list(), []);
    service.events.expect(&["created", "destroyed"]);
    world.check_clean();
}

#[test]
fn what_a_configuration_leaves_open_is_that_of_xl_conf() {
    let world = World::new();
    let text = "vif.default.bridge=\"br9\"\nmax_grant_frames=32\nvm.hvm.cpumask=\"0-3\"\n";
    let service = world.start_on(config::load_host_str("xl.conf", text).defaults);
    assert!(matches!(failure(service.create("cpus = \"4-7\"")), Refusal::BadConfig { .. }));
    service.create("cpus = \"0-5\"").unwrap();
    let inspection: Inspection = service.client().call("Inspect", &named("hello")).unwrap();
    assert_eq!(inspection.config["affinity"], json!({ "All": "0-3" }));
    assert_eq!(inspection.config["grants"]["max_grant_frames"], 32);
    // What a test's host lacks is asked for by its name.
    let told = format!("{:?}", failure(service.create("name = \"other\"\nvif = [ \"\" ]")));
    assert!(told.contains("br9"), "{told}");
}

#[test]
fn warnings_of_a_configuration_reach_the_client_once() {
    let world = World::new();
    let service = world.start();
    let told = |method: &str, call: &Value| {
        let mut replies = Vec::new();
        let mut client = service.client();
        client
            .call_more(method, call, |progress: Progress| {
                replies.push(progress);
                true
            })
            .unwrap();
        replies
    };
    let config = world::config("builder = \"hvm\"\non_crash = \"coredump-destroy\"");
    let create = json!({ "config": config, "path": "/etc/xen/hello.cfg", "paused": false });
    let update = json!({ "guest": "hello", "config": config, "path": "/etc/xen/hello.cfg" });
    for (method, call) in [("Create", &create), ("ConfigUpdate", &update)] {
        let replies = told(method, call);
        let warned: Vec<&String> = replies.iter().flat_map(|reply| &reply.config_warnings).collect();
        assert!(
            !warned.is_empty() && warned.len() == replies[0].config_warnings.len(),
            "{method}: {replies:?}"
        );
        assert!(warned.iter().all(|line| line.starts_with("/etc/xen/hello.cfg:")), "{warned:?}");
        assert!(warned.iter().any(|line| line.contains("coredump-destroy")), "{warned:?}");
    }
    service.destroy("hello").unwrap();
}

#[test]
fn nothing_creates_a_guest_or_interface_while_xl_conf_has_errors() {
    let world = World::new();
    let service = world.start_on(config::load_host_str("xl.conf", "\nvm.hvm.cpumask=2-3\n").defaults);
    let nic = json!({ "guest": "hello", "vif": "" });
    let attach = service.client().call::<_, Value>("NetworkAttach", &nic).map(|_| ());
    for refused in [failure(service.create("")), failure(attach)] {
        let Refusal::Failed { causes, hint, .. } = refused else { panic!("{refused:?}") };
        assert!(matches!(causes.as_slice(), [one] if one.starts_with("xl.conf:2:")), "{causes:?}");
        assert!(hint.unwrap().contains("restart outriggerd"));
    }
    assert_eq!(service.list(), []);
    world.check_clean();
}

#[test]
fn steps_are_told_in_their_order() {
    let world = World::new();
    let service = world.start();
    let mut client = service.client();
    let mut steps = Vec::new();
    create(&mut client, &world::config(""), &mut steps).unwrap();
    let told = |names: Vec<&str>| -> Vec<(String, Outcome)> {
        let both = |name: &str| [Outcome::Started, Outcome::Done].map(|outcome| (name.to_owned(), outcome));
        names.into_iter().flat_map(both).collect()
    };
    assert_eq!(steps, told(Toolstack::create_steps()));
    let mut steps = Vec::new();
    client
        .call_more("Destroy", &named("hello"), |progress: Progress| {
            steps.extend(progress.step.map(|step| (step.id, step.outcome)));
            true
        })
        .unwrap();
    assert_eq!(steps, told(Toolstack::destroy_steps()));
}

#[test]
fn name_belongs_to_the_first_who_asks() {
    let world = World::new();
    let service = world.start();
    world.stubs.set(Mode::Hold);
    let mut first = service.client();
    first.begin("Create", &parameters(&world::config(""))).unwrap();
    world.stubs.wait_started(1);
    let busy = Refusal::Busy { guest: "hello".to_owned(), lifecycle: "create".to_owned() };
    assert_eq!(failure(service.create("")), busy);
    assert_eq!(failure(service.get("hello")), busy);
    assert_eq!(failure(service.destroy("hello")), busy);
    assert_eq!(failure(service.client().call::<_, Via>("Shutdown", &named("hello"))), busy);
    assert_eq!(service.list(), []);
    world.stubs.set(Mode::Work);
    let guest = loop {
        if let Some(guest) = first.next_reply::<Progress>("Create").unwrap().0.guest {
            break guest;
        }
    };
    let taken = Refusal::NameTaken { name: "hello".to_owned(), domid: guest.domid };
    assert_eq!(failure(service.create("")), taken);
}

#[test]
fn of_two_creates_at_once_one_gets_the_name() {
    let world = World::new();
    let service = world.start();
    let results: Vec<_> = thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| service.create("")));
        both.map(|thread| thread.join().unwrap()).into()
    });
    let (made, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 1);
    for result in refused {
        let failure = failure(result);
        assert!(matches!(failure, Refusal::Busy { .. } | Refusal::NameTaken { .. }), "{failure:?}");
    }
    assert_eq!(service.list().len(), 1);
}

#[test]
fn wrong_configuration_is_answered_with_file_and_line() {
    let world = World::new();
    let mut service = world.start();
    let Refusal::BadConfig { diagnostics } = failure(service.create("memroy = 64")) else { panic!() };
    assert!(
        diagnostics.contains("/etc/xen/hello.cfg:4:1") && diagnostics.contains("memory"),
        "{diagnostics}"
    );
    service.events.expect_nothing();
    world.check_clean();
}

#[test]
fn failed_step_is_named_and_everything_is_undone() {
    let world = World::new();
    let faults = Faults::none().at("build-guest", Side::After);
    let service = world.start_with(world.toolstack().with_faults(faults));
    let mut steps = Vec::new();
    let Refusal::StepFailed { lifecycle, step, message, undo_failures, .. } =
        failure(create(&mut service.client(), &world::config(""), &mut steps))
    else {
        panic!()
    };
    assert_eq!((lifecycle.as_str(), step.as_str()), ("create", "build the guest"));
    assert!(message.contains("Injected failure") && undo_failures.is_empty(), "{message} {undo_failures:?}");
    let undone: Vec<_> = steps.iter().filter(|(_, outcome)| *outcome == Outcome::Undone).collect();
    // The state file goes last, when nothing else is left.
    assert_eq!(undone.last().unwrap().0, "write-record");
    assert!(steps.contains(&("build-guest".to_owned(), Outcome::Failed)));
    assert_eq!(service.list(), []);
    world.check_clean();
    // The name is free again.
    assert!(matches!(failure(service.create("")), Refusal::StepFailed { .. }));
}

#[test]
fn create_that_is_not_undone_completely_can_be_destroyed() {
    let world = World::new();
    let faults = Faults::none().at("build-guest", Side::After);
    let service = world.start_with(world.toolstack().with_faults(faults));
    world.hypervisor.fail_operation("destroy_domain", Errno::EIO);
    let failed = failure(service.create(""));
    assert!(
        matches!(&failed, Refusal::StepFailed { undo_failures, .. } if !undo_failures.is_empty()),
        "{failed:?}"
    );
    let left = |service: &Service| {
        let Guests { guests, incomplete, .. } = service.client().call("List", &json!({})).unwrap();
        assert!(guests.is_empty(), "{guests:?}");
        incomplete
    };
    let [incomplete] = &left(&service)[..] else { panic!("it is not listed") };
    assert_eq!(incomplete.name, "hello");
    for refused in [failure(service.get("hello")), failure(service.create(""))] {
        let Refusal::NotRunning { message, .. } = refused else { panic!("{refused:?}") };
        assert!(message.contains("outrigger destroy hello"), "{message}");
    }
    assert!(matches!(failure(service.destroy("hello")), Refusal::Failed { .. }));
    world.hypervisor.heal();
    service.destroy(&incomplete.uuid).unwrap();
    assert_eq!(left(&service), []);
    world.check_clean();
}

#[test]
fn missing_disk_and_too_little_memory_are_told_by_the_first_step() {
    let world = World::new();
    let service = world.start();
    for (more, told) in
        [("disk = [\"/srv/none.img,raw,hda,rw\"]", "/srv/none.img"), ("maxmem = 90000", "Too little memory")]
    {
        let Refusal::StepFailed { step, message, causes, .. } = failure(service.create(more)) else {
            panic!()
        };
        assert_eq!(step, "check the configuration");
        let text = format!("{message}: {}", causes.join(": "));
        assert!(text.contains(told), "{text}");
        world.check_clean();
    }
}

#[test]
fn stubdomain_that_dies_at_its_start_is_told_with_its_log_and_a_hint() {
    let world = World::new();
    world.host.put_file(stub_log(), b"qemu: no such option\n");
    world.stubs.set(Mode::Die);
    let service = world.start();
    let Refusal::StepFailed { step, hint, log, .. } = failure(service.create("")) else { panic!() };
    assert_eq!(step, "wait for the device model");
    assert!(hint.unwrap().contains("log"));
    assert_eq!(log, ["qemu: no such option"]);
    world.check_clean();
}

#[test]
fn refusals_of_xen_come_with_a_hint() {
    let world = World::new();
    let service = world.start();
    for (errno, told) in [(Errno::ENOMEM, "memory="), (Errno::EINVAL, "xl dmesg")] {
        world.hypervisor.fail_operation("build_hvm", errno);
        let Refusal::StepFailed { step, message, hint, .. } = failure(service.create("")) else { panic!() };
        assert_eq!(step, "build the guest");
        assert!(message.starts_with("build_hvm for domain"), "{message}");
        assert!(hint.unwrap().contains(told));
        world.check_clean();
    }
}

#[test]
fn bug_in_a_lifecycle_is_an_answer_and_stops_nothing_else() {
    let world = World::new();
    let service = world.start();
    world.stubs.set(Mode::Panic);
    let Refusal::Failed { message, .. } = failure(service.create("")) else { panic!() };
    assert!(message.contains("a bug in outriggerd"), "{message}");
    assert_eq!(service.list(), []);
    service.kill().unwrap();
    world.stubs.set(Mode::Work);
    let service = world.start();
    service.settle();
    world.check_clean();
    service.create("").unwrap();
}

#[test]
fn requests_reach_the_guest() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    let mut client = service.client();
    client.call::<_, serde_json::Value>("Pause", &named("hello")).unwrap();
    assert_eq!(service.get("hello").unwrap().state, State::Paused);
    let refusal = failure(client.call::<_, Via>("Shutdown", &named("hello")));
    assert!(matches!(&refusal, Refusal::Paused { guest, .. } if guest == "hello"), "{refusal:?}");
    assert_eq!(refusal.hint(), Some("unpause it first"));
    client.call::<_, serde_json::Value>("Unpause", &named("hello")).unwrap();
    assert_eq!(client.call::<_, Via>("Shutdown", &named("hello")).unwrap().via, "acpi");
    assert_eq!(world.hypervisor.triggers(guest.domid), [xen::Trigger::Power]);
    world.end(guest.domid, ShutdownReason::PowerOff);
}
