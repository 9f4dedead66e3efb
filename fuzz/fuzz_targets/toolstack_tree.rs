//! A guest and a stubdomain that write anything into their parts of xenstore, and a toolstack that lists, changes and
//! destroys them: on the simulated host of the crate's tests.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use toolstack::{Deadlines, Detach, Guest, Toolstack};
use xen_types::KiB;
use xenstore::{Connection, Store as _, XsPath};

#[path = "../../crates/toolstack/tests/lifecycles/fault.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod fault;
#[path = "../../crates/toolstack/tests/lifecycles/qemu.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod qemu;
#[path = "../../crates/toolstack/tests/lifecycles/world.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod world;

use world::{Drivers, Stubs, World};

/// Below the guest's directory.
const GUEST: [&str; 18] = [
    "device/vbd/768/state",
    "device/vbd/768/ring-ref",
    "device/vbd/768/event-channel",
    "device/vbd/768",
    "device/vbd/51760/state",
    "device/vif/0/state",
    "device/vif/0/mac",
    "device/vif/0",
    "device/vif/0/handle",
    "device/vbd",
    "device",
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-balloon",
    "control/sysrq",
    "data/x",
    "memory/target",
    "cpu/1/availability",
];
/// Below the stubdomain's.
const STUB: [&str; 8] = [
    "device-model/1/state",
    "device-model/1/features",
    "device-model/1/agent/exit",
    "device-model/1/agent/heartbeat",
    "device-model/1/agent/step",
    "device-model/1",
    "device/vbd/51712/state",
    "device/vbd/51712",
];

struct Scene {
    world: World,
    toolstack: Toolstack,
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

fn scene() -> Scene {
    let world = World::new(Stubs::Work);
    // The hostile ones do not answer in time anyway.
    let toolstack = world.successor().with_deadlines(Deadlines::default().scaled(0.001));
    Scene { world, toolstack }
}

fn value(bytes: &[u8]) -> Vec<u8> {
    const WORDS: [&str; 8] = ["1", "2", "4", "5", "6", "", "0", "poweroff"];
    match bytes {
        [choice, ..] if usize::from(*choice) < WORDS.len() => WORDS[usize::from(*choice)].into(),
        _ => bytes.to_vec(),
    }
}

fn hostile(store: &Connection, path: String, kind: u8, bytes: &[u8]) {
    let Ok(path) = XsPath::new(path) else { return };
    // What it may not, xenstored refuses.
    let _ = match kind % 4 {
        0 => store.rm(&path).map(|_| ()),
        1 => store.mkdir(&path),
        _ => store.write(&path, &value(bytes)),
    };
}

fn change(toolstack: &Toolstack, guest: &Guest, kind: u8) {
    let (id, events) = (guest.id(), &mut |_| ());
    let vdev = |name: &str| config::device_name(name).expect("a disk's name");
    // They may fail; what matters is what they leave.
    match kind % 8 {
        0 => drop(toolstack.detach_disk(id, vdev("hda"), Detach::Ask, events)),
        1 => drop(toolstack.detach_disk(id, vdev("hda"), Detach::Force, events)),
        2 => drop(toolstack.detach_nic(id, 0, Detach::Ask, events)),
        3 => drop(toolstack.set_memory(id, KiB::from_mib(48), events)),
        4 => drop(toolstack.set_vcpus(id, 1, events)),
        5 => drop(toolstack.shutdown(id)),
        6 => drop(toolstack.rename(id, "other", events)),
        _ => drop(toolstack.pause(id).and_then(|()| toolstack.unpause(id))),
    }
}

fn play(scene: &Scene, data: &[u8]) {
    let Scene { world, toolstack } = scene;
    let guest = world.create_small().expect("a guest");
    world.give_drivers(guest.domid, if data.len() % 2 == 0 { Drivers::None } else { Drivers::Stubborn });
    let stores = [world.server.connection(guest.domid), world.server.connection(guest.stub_domid)];
    let mut changes = 0;
    // Eight bytes an operation.
    for operation in data.chunks_exact(8).take(40) {
        let choice = usize::from(operation[2]);
        match operation[0] % 4 {
            0 => {
                let path = format!("/local/domain/{}/{}", guest.domid, GUEST[choice % GUEST.len()]);
                hostile(&stores[0], path, operation[1], &operation[3..]);
            }
            1 => {
                let name = STUB[choice % STUB.len()].replace("/1", &format!("/{}", guest.domid));
                let path = format!("/local/domain/{}/{name}", guest.stub_domid);
                hostile(&stores[1], path, operation[1], &operation[3..]);
            }
            2 if changes < 3 => {
                changes += 1;
                change(toolstack, &guest, operation[1]);
            }
            _ => look(toolstack, &guest),
        }
    }
    look(toolstack, &guest);
    drop(stores);
    // Whatever they did, they can be destroyed, and nothing of them is left.
    if toolstack.destroy(guest.id(), &mut |_| ()).is_err() {
        world.toolstack.destroy(guest.id(), &mut |_| ()).expect("they can be destroyed");
    }
    world.check_clean("a hostile guest");
}

fn look(toolstack: &Toolstack, guest: &Guest) {
    for domain in toolstack.list().expect("a list") {
        assert!(!domain.name.chars().any(char::is_control), "{:?}", domain.name);
    }
    let guests = toolstack.guests().expect("guests");
    assert!(guests.iter().any(|info| info.guest.uuid == guest.uuid));
    let info = toolstack.info(guest.id()).expect("a guest");
    assert_eq!(info.guest.domid, guest.domid);
    let _ = (toolstack.disks(guest.id()), toolstack.nics(guest.id()));
    let _ = toolstack.find_domain("hello");
}

fuzz_target!(|data: &[u8]| {
    SCENE.with_borrow_mut(|scene| play(scene.get_or_insert_with(self::scene), data));
});
