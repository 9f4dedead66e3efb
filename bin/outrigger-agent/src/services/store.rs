//! What the agent reads from xenstore before QEMU starts, and writes about itself.

use std::path::Path;

use stubdom_abi::{Argv, ArgvError, DmKey, DmState, Feature, Features, paths};
use xen_types::DomId;
use xenstore::{Connection, RelPath, Store, StoreError, XsPath};

use super::bridge::Service;
use crate::error::AgentError;
use crate::machines::pci::Address;

/// The longest path that is accepted, in bytes.
const VM_PATH_MAX: usize = 256;
/// The kernel's device for xenstore.
pub(crate) const DEVICE: &str = "/dev/xen/xenbus";
/// How many arguments are asked for at once: xenstored lets a domain have 20 requests on their way.
const AT_ONCE: usize = 16;
/// Where the kernel shows the PCI devices that it has found.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// Marks the events of the older PCI protocol's command.
pub(crate) const COMMAND_TOKEN: &str = DmKey::Command.name();
/// Marks the events of the key that ends a state.
pub(crate) const STATE_END_TOKEN: &str = DmKey::StateEnd.name();
/// Marks the events of the key that starts a QEMU that is held.
pub(crate) const START_TOKEN: &str = DmKey::Start.name();

/// The guest that this stubdomain serves.
pub(crate) fn target(store: &Connection) -> Result<DomId, AgentError> {
    let text = store.read_string(&paths::own_target(), 8)?.ok_or(AgentError::Absent("target"))?;
    Ok(text.parse()?)
}

/// QEMU's arguments, from either place.
pub(crate) fn argv(store: &Connection, target: DomId) -> Result<Argv, AgentError> {
    let vm = store
        .read_string(&paths::vm_link(target), VM_PATH_MAX)?
        .ok_or(AgentError::Absent("vm of the target"))?;
    argv_below(store, &XsPath::new(vm)?)
}

/// QEMU's arguments below the guest's `/vm/<uuid>`.
pub(crate) fn argv_below(store: &Connection, vm: &XsPath) -> Result<Argv, AgentError> {
    // One round trip to dom0 instead of one for each argument; where both exist, they are the same.
    if let Some(value) = store.read(&paths::dmargs(vm)?)?.filter(|value| !value.is_empty()) {
        return Ok(Argv::from_dmargs(&value)?);
    }
    let folder = paths::dm_argv_dir(vm)?;
    let keys = store.list(&folder)?.unwrap_or_default();
    if keys.is_empty() {
        return Err(ArgvError::Absent.into());
    }
    if keys.len() > Argv::MAX_ARGS {
        return Err(ArgvError::TooMany(keys.len()).into());
    }
    let paths = keys.iter().map(|key| folder.join(key)).collect::<Result<Vec<_>, _>>()?;
    let others = (1..AT_ONCE.min(paths.len())).map(|_| Connection::open_path(Path::new(DEVICE)));
    let values = store.read_each(&others.collect::<Result<Vec<_>, _>>()?, &paths)?;
    let found = keys.into_iter().zip(values).map(|(key, value)| Some((key, value?)));
    let found = found.collect::<Option<Vec<_>>>().ok_or(AgentError::Absent("argument that dm-argv lists"))?;
    Ok(Argv::from_keys(found)?)
}

/// Reports the agent's version and features to the toolstack.
pub(crate) fn announce(
    store: &Connection,
    target: DomId,
    services: &'static [Service],
) -> Result<(), StoreError> {
    let always = [Feature::Exit, Feature::Heartbeat, Feature::Shutdown, Feature::StateFrames, Feature::Hold];
    let services = services.iter().map(|service| service.feature);
    let features: Features = always.into_iter().chain(services).collect();
    let version = concat!("outrigger-agent ", env!("CARGO_PKG_VERSION"));
    write(store, target, DmKey::Features, &features.encode())?;
    write(store, target, DmKey::AgentVersion, version)
}

/// Writes a key of the stubdomain's directory.
pub(crate) fn write(store: &Connection, target: DomId, key: DmKey, value: &str) -> Result<(), StoreError> {
    store.write(&key.own_path(target), value.as_bytes())
}

/// Watches keys of the stubdomain's directory. Each one's name marks its events.
pub(crate) fn watch(store: &Connection, target: DomId, keys: &[DmKey]) -> Result<(), StoreError> {
    keys.iter().try_for_each(|key| store.watch(&key.own_path(target), key.name()))
}

/// The older PCI protocol's command and its parameter; both may be absent.
pub(crate) fn command(store: &Connection, target: DomId) -> Result<(Vec<u8>, Vec<u8>), StoreError> {
    let read = |key: DmKey| store.read(&key.own_path(target)).map(Option::unwrap_or_default);
    Ok((read(DmKey::Command)?, read(DmKey::Parameter)?))
}

/// Whether the toolstack has written a key with which it says something once; removes the key.
pub(crate) fn take(store: &Connection, target: DomId, key: DmKey) -> Result<bool, StoreError> {
    let key = key.own_path(target);
    let is_set = store.read(&key)?.is_some_and(|value| !value.is_empty());
    if is_set {
        store.rm(&key)?;
    }
    Ok(is_set)
}

/// The address inside the stubdomain of a device of the host: pciback assigns its devices other slots, and writes
/// which. Where it does not, the address is the same. Nothing while the kernel has not found the device.
pub(crate) fn pci_inside(store: &Connection, host: Address) -> Option<Address> {
    const DEVICES_MAX: u64 = 64;
    let find = || -> Option<Address> {
        let backend = store.read_string(&RelPath::new("device/pci/0/backend").ok()?, VM_PATH_MAX).ok()??;
        let backend = XsPath::new(backend).ok()?;
        let count = store.read_number(&backend.join("num_devs").ok()?).ok()??;
        (0..count.min(DEVICES_MAX)).find_map(|index| {
            let read = |name: String| -> Option<Address> {
                Address::parse(&store.read_string(&backend.join(&name).ok()?, 16).ok()??)
            };
            (read(format!("dev-{index}"))? == host).then(|| read(format!("vdev-{index}")))?
        })
    };
    let inside = find().unwrap_or(host);
    Path::new(PCI_DEVICES).join(inside.to_string()).exists().then_some(inside)
}

/// Whether QEMU has reported that it is ready.
pub(crate) fn is_running(store: &Connection, target: DomId) -> Result<bool, StoreError> {
    let value = store.read(&DmKey::State.own_path(target))?;
    Ok(value.is_some_and(|value| DmState::decode(&value) == DmState::Running))
}
