//! CPUs, limits and what xl shows of guests, through the interface.

use api::client::ClientError;
use api::types::{
    Channels, ConfigUpdate, Guests, MemSet, Progress, RebootParameters, Refusal, Topology, TriggerKind,
    TriggerParameters, VcpuPin, Vcpus, Via,
};
use serde::Serialize;
use serde_json::{Value, json};
use xen::ShutdownReason;
use xen_types::KiB;

use super::world::{Service, World, failure, named};

fn change(service: &Service, method: &str, parameters: &impl Serialize) -> Result<(), ClientError> {
    service.client().call_more(method, parameters, |_: Progress| true)
}

fn pin(vcpu: Option<u32>, hard: Option<&str>, soft: Option<&str>) -> VcpuPin {
    let text = |text: Option<&str>| text.map(str::to_owned);
    VcpuPin { guest: "hello".to_owned(), vcpu, hard: text(hard), soft: text(soft), ignore_masks: false }
}

#[test]
fn vcpus_are_listed_with_the_cpus_that_were_chosen() {
    let world = World::new();
    let mut service = world.start();
    service.create("maxvcpus = 2\nvcpus = 2").unwrap();
    service.events.expect(&["created"]);
    change(&service, "VcpuPin", &pin(Some(1), Some("1"), None)).unwrap();
    assert_eq!(service.events.expect(&["changed"]).detail, "vcpu-pin");
    change(&service, "VcpuPin", &pin(None, None, Some("0-1,^1"))).unwrap();
    let shown: Vcpus = service.client().call("VcpuList", &named("hello")).unwrap();
    let names: Vec<_> = shown.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(names, ["hello", "hello-dm"]);
    let sets: Vec<_> =
        shown.domains[0].vcpus.iter().map(|cpu| (cpu.hard.as_str(), cpu.soft.as_str())).collect();
    assert_eq!(sets, [("all", "0"), ("1", "0")]);
    for (wrong, is_description) in [
        (pin(None, Some("x"), None), true),
        (pin(None, Some("7"), None), false),
        (pin(Some(2), Some("0"), None), false),
    ] {
        let refusal = failure(change(&service, "VcpuPin", &wrong));
        assert_eq!(matches!(refusal, Refusal::BadConfig { .. }), is_description, "{refusal:?}");
    }
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn vcpus_are_pinned_to_cpus_that_xl_conf_allows() {
    let world = World::new();
    let service = world.start_on(config::load_host_str("xl.conf", "vm.hvm.cpumask=\"1\"\n").defaults);
    service.create("").unwrap();
    let hard = || {
        let shown: Vcpus = service.client().call("VcpuList", &named("hello")).unwrap();
        shown.domains[0].vcpus[0].hard.clone()
    };
    change(&service, "VcpuPin", &pin(None, Some("all"), None)).unwrap();
    assert_eq!(hard(), "1");
    let refusal = failure(change(&service, "VcpuPin", &pin(None, Some("0"), None)));
    assert!(matches!(refusal, Refusal::BadConfig { .. }), "{refusal:?}");
    change(&service, "VcpuPin", &VcpuPin { ignore_masks: true, ..pin(None, Some("0"), None) }).unwrap();
    assert_eq!(hard(), "0");
    service.destroy("hello").unwrap();
}

#[test]
fn guest_is_listed_as_by_xl_and_the_host_has_its_cpus() {
    let world = World::new();
    let service = world.start();
    service.create("channel = ['name=org.a,connection=pty']").unwrap();
    let Guests { guests, .. } = service.client().call("List", &json!({})).unwrap();
    let listing = guests[0].listing.as_ref().unwrap();
    assert_eq!((listing.flags.len(), listing.pool.as_str()), (6, "Pool-0"));
    assert!(listing.started.is_some());
    let Channels { channels } = service.client().call("ChannelList", &named("hello")).unwrap();
    assert_eq!((channels[0].number, channels[0].name.as_str()), (1, "org.a"));
    let topology: Topology = service.client().call("HostTopology", &json!({})).unwrap();
    assert_eq!((topology.cpus.len(), topology.nodes.len()), (2, 1));
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn limit_keeps_mem_set_below_it() {
    let world = World::new();
    let service = world.start();
    service.create("maxmem = 128\nvideoram = 8").unwrap();
    let set = |method: &str, mib| {
        let memory_kib = KiB::from_mib(mib);
        change(&service, method, &MemSet { guest: "hello".to_owned(), memory_kib })
    };
    set("MemMax", 96).unwrap();
    assert!(matches!(failure(set("MemSet", 97)), Refusal::StepFailed { id, .. } if id == "check"));
    set("MemSet", 96).unwrap();
    assert!(matches!(failure(set("MemMax", 129)), Refusal::StepFailed { id, .. } if id == "check"));
    service.destroy("hello").unwrap();
    world.check_clean();
}

#[test]
fn guest_without_drivers_is_reset_only_when_that_is_asked_for() {
    let world = World::new();
    let mut service = world.start();
    let first = service.create("").unwrap();
    let reboot = |reset| {
        let parameters = RebootParameters { guest: "hello".to_owned(), reset };
        service.client().call::<_, Via>("Reboot", &parameters)
    };
    assert!(matches!(failure(reboot(false)), Refusal::NoPvDrivers { .. }));
    let wake = TriggerParameters { guest: "hello".to_owned(), trigger: TriggerKind::S3resume, vcpu: 0 };
    let _: Value = service.client().call("Trigger", &wake).unwrap();
    let next = |config: &str| {
        let (guest, path) = ("hello".to_owned(), "/x.cfg".to_owned());
        change(&service, "ConfigUpdate", &ConfigUpdate { guest, config: config.to_owned(), path })
    };
    assert!(matches!(failure(next("name='hello'")), Refusal::BadConfig { .. }));
    assert!(matches!(failure(next("type='hvm'\nname='other'\nmemory=64")), Refusal::Failed { .. }));
    next("type='hvm'\nname='hello'\nmemory=80").unwrap();
    assert_eq!(reboot(true).unwrap().via, "reset");
    // As Xen does, when a domain shuts down.
    world.end(first.domid, ShutdownReason::Reboot);
    service.events.expect(&["created", "changed", "rebooted", "created"]);
    let inspected: Value = service.client().call("Inspect", &named("hello")).unwrap();
    assert_eq!(inspected["config"]["memory"], 80 * 1024);
    assert_ne!(service.get("hello").unwrap().domid, first.domid);
    service.destroy("hello").unwrap();
    world.check_clean();
}
