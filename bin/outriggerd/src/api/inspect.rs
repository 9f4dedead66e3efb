//! What a guest's stubdomain was given and what it says of itself.

use serde_json::{Map, Value};
use stubdom_abi::{Argv, StubReport};
use toolstack::{Cause, Guest, Toolstack};
use xenstore::Store;

/// The longest argument that is read back, in bytes: what xenstore's protocol carries.
const ARGUMENT_LIMIT: usize = 4096;

/// The stubdomain's facts.
#[derive(Debug)]
pub(super) struct Found {
    /// QEMU's arguments.
    pub(super) qemu_argv: Vec<String>,
    /// What the agent has written, hostile text made harmless.
    pub(super) agent: Value,
}

/// Reads them back from xenstore.
pub(super) fn inspect(toolstack: &Toolstack, guest: &Guest) -> Result<Found, Cause> {
    Ok(Found { qemu_argv: argv(toolstack, guest)?, agent: agent(toolstack, guest)? })
}

fn argv(toolstack: &Toolstack, guest: &Guest) -> Result<Vec<String>, Cause> {
    let store = toolstack.xenstore();
    let dir = stubdom_abi::paths::dm_argv_dir(&stubdom_abi::paths::vm_dir(&guest.uuid.to_string())?)?;
    let mut keys = Vec::new();
    for key in store.list(&dir)?.unwrap_or_default() {
        let value = store.read(&dir.join(&key)?)?.unwrap_or_default();
        keys.push((key, value.get(..ARGUMENT_LIMIT).unwrap_or(&value).to_vec()));
    }
    let argv = Argv::from_keys(keys)?;
    Ok(argv.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect())
}

fn agent(toolstack: &Toolstack, guest: &Guest) -> Result<Value, Cause> {
    let report = StubReport::read(toolstack.xenstore(), guest.stub_domid, guest.domid)?;
    let mut found = Map::new();
    for (key, text) in report.texts() {
        // The interface names them without their folder.
        let name = key.name().trim_start_matches("agent/");
        found.insert(name.to_owned(), Value::String(text.to_owned()));
    }
    Ok(Value::Object(found))
}
