//! Changes of guests that run.

use api::client::ClientError;
use api::types::{
    BlockAttach, Disks, MemSet, NetworkAttach, NetworkDetach, Nics, Progress, Refusal, Rename, State, Sysrq,
    TriggerKind, TriggerParameters, VcpuSet,
};
use serde::Serialize;
use serde_json::Value;
use xen::{ShutdownReason, Trigger};
use xen_types::KiB;

use super::world::{Service, World, failure, named};

/// Calls a method that changes a guest; gives the names of its steps.
fn change(service: &Service, method: &str, parameters: &impl Serialize) -> Result<Vec<String>, ClientError> {
    let mut steps = Vec::new();
    service.client().call_more(method, parameters, |progress: Progress| {
        steps.extend(progress.step.map(|step| format!("{} {}", step.lifecycle, step.id)));
        true
    })?;
    Ok(steps)
}

fn guest() -> String {
    "hello".to_owned()
}

#[test]
fn changes_tell_their_steps_and_what_is_in_force_afterwards() {
    let world = World::new();
    let mut service = world.start();
    let made = service.create("maxvcpus = 2\nvcpus = 1\nvideoram = 8").unwrap();
    service.events.expect(&["created"]);
    let memory = MemSet { guest: guest(), memory_kib: KiB::from_mib(48) };
    let steps = change(&service, "MemSet", &memory).unwrap();
    assert_eq!(steps.first().unwrap(), "mem-set check");
    assert_eq!(service.events.expect(&["changed"]).detail, "mem-set");
    // Processors are added by QEMU, with which there is no session here.
    let Refusal::StepFailed { id, .. } =
        failure(change(&service, "VcpuSet", &VcpuSet { guest: guest(), vcpus: 2 }))
    else {
        panic!("no step failed");
    };
    assert_eq!(id, "add-to-qemu");
    let inspected: Value = service.client().call("Inspect", &named("hello")).unwrap();
    assert_eq!(inspected["config"]["vcpus"], 1);
    assert_eq!(inspected["config"]["memory"], 48 * 1024);
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    let trigger = TriggerParameters { guest: guest(), trigger: TriggerKind::Sleep, vcpu: 0 };
    let _: Value = service.client().call("Trigger", &trigger).unwrap();
    assert_eq!(world.hypervisor.triggers(made.domid), [Trigger::Sleep]);
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn a_refused_change_leaves_the_guest_running_as_before() {
    let world = World::new();
    let mut service = world.start();
    service.create("").unwrap();
    service.events.expect(&["created"]);
    let disk = BlockAttach { guest: guest(), disk: "/nowhere.img,raw,xvdb,rw".to_owned() };
    let Refusal::StepFailed { lifecycle, step, .. } = failure(change(&service, "BlockAttach", &disk)) else {
        panic!("no step failed");
    };
    assert_eq!((lifecycle.as_str(), step.as_str()), ("block-attach", "check the disk"));
    let disk = BlockAttach { guest: guest(), disk: "/a.img,raw,nodisk,rw".to_owned() };
    assert!(matches!(failure(change(&service, "BlockAttach", &disk)), Refusal::BadConfig { .. }));
    let nic = NetworkAttach { guest: guest(), vif: "bridge=none".to_owned() };
    assert!(matches!(failure(change(&service, "NetworkAttach", &nic)), Refusal::StepFailed { .. }));
    for nic in ["00:16:3e:00:00:01", "5"] {
        let detach = NetworkDetach { guest: guest(), nic: nic.to_owned(), force: true };
        change(&service, "NetworkDetach", &detach).unwrap_err();
    }
    let key = Sysrq { guest: guest(), key: "hh".to_owned() };
    assert!(service.client().call::<_, Value>("Sysrq", &key).is_err());
    assert_eq!(service.get("hello").unwrap().state, State::Running);
    assert_eq!(service.client().call::<_, Disks>("BlockList", &named("hello")).unwrap().disks, []);
    assert_eq!(service.client().call::<_, Nics>("NetworkList", &named("hello")).unwrap().nics, []);
    service.events.expect_nothing();
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn a_renamed_guest_has_its_name_everywhere_and_its_old_one_is_free() {
    let world = World::new();
    let mut service = world.start();
    let first = service.create("").unwrap();
    let rename = |to: &str, from: &str| {
        change(&service, "Rename", &Rename { guest: from.to_owned(), name: to.to_owned() })
    };
    rename("other", "hello").unwrap();
    let second = service.create("").unwrap();
    assert!(
        matches!(failure(rename("other", "hello")), Refusal::NameTaken { domid, .. } if domid == first.domid)
    );
    assert!(matches!(failure(rename("", "hello")), Refusal::StepFailed { .. }));
    assert_eq!(service.get("hello").unwrap().domid, second.domid);
    // It keeps the name when it reboots.
    world.end(first.domid, ShutdownReason::Reboot);
    service.events.expect(&["created", "changed", "created", "rebooted", "created"]);
    assert_ne!(service.get("other").unwrap().domid, first.domid);
    for name in ["other", "hello"] {
        service.destroy(name).unwrap();
    }
    world.check_clean();
}
