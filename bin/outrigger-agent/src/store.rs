//! What the agent reads from xenstore before QEMU starts, and writes about itself.

use contract::{Argv, ArgvError, DmKey, DmState, Feature, Features, StubConsole, paths};
use xen_types::DomId;
use xenstore::{Connection, Store, StoreError, XsPath};

use crate::error::AgentError;

/// The longest path of a `/vm/<uuid>` that is believed.
const VM_PATH_MAX: usize = 256;
/// The last step: QEMU was started.
pub(crate) const SERVING: &str = "serving";
/// Marks the events of [`watch_state`].
const STATE_TOKEN: &str = "state";

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
    let vm = XsPath::new(vm)?;
    let folder = paths::dm_argv_dir(&vm)?;
    let keys = store.list(&folder)?.unwrap_or_default();
    if keys.is_empty() {
        let value = store.read(&paths::dmargs(&vm)?)?.ok_or(ArgvError::Absent)?;
        return Ok(Argv::from_dmargs(&value)?);
    }
    if keys.len() > Argv::MAX_ARGS {
        return Err(ArgvError::TooMany(keys.len()).into());
    }
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let value =
            store.read(&folder.join(&key)?)?.ok_or(AgentError::Absent("argument that dm-argv lists"))?;
        found.push((key, value));
    }
    Ok(Argv::from_keys(found)?)
}

/// Whether the stubdomain has this console.
pub(crate) fn has_console(store: &Connection, console: StubConsole) -> Result<bool, StoreError> {
    Ok(store.list(&paths::own_console(console))?.is_some())
}

/// Tells the toolstack who is here and what it can do: what every agent can, and `more`.
pub(crate) fn announce(
    store: &Connection,
    target: DomId,
    more: impl IntoIterator<Item = Feature>,
) -> Result<(), StoreError> {
    let always = [Feature::Exit, Feature::Heartbeat, Feature::Shutdown];
    let features: Features = always.into_iter().chain(more).collect();
    let version = concat!("outrigger-agent ", env!("CARGO_PKG_VERSION"));
    store.write(&DmKey::AgentVersion.own_path(target), version.as_bytes())?;
    store.write(&DmKey::Features.own_path(target), features.encode().as_bytes())
}

/// Tells which step of its start the agent is at.
pub(crate) fn tell_step(store: &Connection, target: DomId, step: &str) -> Result<(), StoreError> {
    store.write(&DmKey::AgentStep.own_path(target), step.as_bytes())
}

/// Wants to know when QEMU's state changes.
pub(crate) fn watch_state(store: &Connection, target: DomId) -> Result<(), StoreError> {
    store.watch(&DmKey::State.own_path(target), STATE_TOKEN)
}

/// Whether QEMU said that it is ready.
pub(crate) fn is_running(store: &Connection, target: DomId) -> Result<bool, StoreError> {
    let value = store.read(&DmKey::State.own_path(target))?;
    Ok(value.is_some_and(|value| DmState::decode(&value) == DmState::Running))
}
