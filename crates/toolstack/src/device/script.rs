//! Hotplug scripts of devices: running them, and running them again to undo their work.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use xen_types::DomId;
use xenbus::DeviceId;
use xenstore::{Store, XsPath};

use super::backend;
use crate::Toolstack;
use crate::dom0::{HostError, ScriptCall, ScriptProcess};
use crate::operation::StepResult;
use crate::record::{GuestRecord, ScriptRecord};

/// Runs a script, with the first arguments, and notes before that it is taken back with the second.
pub(crate) fn run(
    ts: &Toolstack,
    record: &mut GuestRecord,
    script: &str,
    [args, undo_args]: [Vec<String>; 2],
    env: BTreeMap<String, String>,
) -> StepResult {
    let backend = env.get("XENBUS_PATH").cloned().unwrap_or_default();
    let (script, process) = (PathBuf::from(script), None);
    let undo = ScriptRecord {
        script: script.clone(),
        backend: backend.clone(),
        args: undo_args,
        env: env.clone(),
        process,
    };
    record.scripts.push(undo);
    // Before it runs: nothing else records that it has to be undone.
    record.save(&*ts.host, &ts.paths)?;
    let deadline = ts.deadlines.script;
    let outcome = call(ts, &backend, &ScriptCall { script, args, env, deadline });
    if let Err(HostError::Script { source, .. }) = &outcome
        && matches!(source.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied)
    {
        // It never began: there is nothing to take back, and nothing to do it with.
        record.scripts.pop();
        record.save(&*ts.host, &ts.paths)?;
    }
    if let (Err(HostError::ScriptStuck { process, .. }), Some(undo)) = (&outcome, record.scripts.last_mut()) {
        undo.process = Some(*process);
        record.save(&*ts.host, &ts.paths)?;
    }
    Ok(outcome?)
}

/// Calls a script of the device with this backend. What Xen's scripts print goes to their own log; why they fail is in
/// xenstore.
fn call(ts: &Toolstack, backend: &str, call: &ScriptCall) -> Result<(), HostError> {
    let node = XsPath::domain(DomId::DOM0).join(format!("{backend}/hotplug-error")).ok();
    if let Some(node) = &node {
        // An earlier call's is not this one's. Without xenstore, the script fails by itself.
        let _ = ts.xenstore.rm(node);
    }
    match ts.host.run_script(call) {
        Err(HostError::ScriptFailed { script, what, output, .. }) => {
            let reported = node.and_then(|node| backend::text(ts, &node)).filter(|text| !text.is_empty());
            Err(HostError::ScriptFailed { script, what, output, reported })
        }
        outcome => outcome,
    }
}

/// The process of a script that could not be killed.
const fn process_of(error: &HostError) -> Option<ScriptProcess> {
    match error {
        HostError::ScriptStuck { process, .. } => Some(*process),
        _ => None,
    }
}

/// The variables of a hotplug script (`get_hotplug_env` in `libxl_linux.c`).
pub(crate) fn variables(script: &str, id: DeviceId) -> BTreeMap<String, String> {
    [
        ("script", script.to_owned()),
        ("XENBUS_TYPE", id.kind.name().to_owned()),
        ("XENBUS_PATH", id.backend_name()),
        ("XENBUS_BASE_PATH", "backend".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Undoes every script that has run, last first, by running it again with the arguments for that; not while an earlier
/// run of it still goes on. Those that would find
/// another domain's device under the domid, or whose device is unknown, are forgotten without being run.
pub(crate) fn undo_all(ts: &Toolstack, record: &mut GuestRecord) -> StepResult {
    let deadline = ts.deadlines.script;
    let mut outcome = Ok(());
    while let Some(script) = record.scripts.last().cloned() {
        let ours = record.own_numbers(ts)?;
        record.scripts.pop();
        if !frontend_of(&script.backend).is_some_and(|domid| ours.contains(&domid)) {
            continue;
        }
        let call = ScriptCall {
            script: script.script.clone(),
            args: script.args.clone(),
            env: script.env.clone(),
            deadline,
        };
        let result = match script.process.filter(|process| ts.host.script_runs(*process)) {
            Some(process) => {
                Err(HostError::ScriptStuck { script: call.script, process, after: call.deadline })
            }
            None => self::call(ts, &script.backend, &call),
        };
        if let Err(error) = result {
            record.scripts.push(ScriptRecord { process: process_of(&error), ..script });
            outcome = Err(error.into());
            break;
        }
    }
    outcome
}

/// Runs the scripts of these devices again with the arguments that take them back, last first.
pub(crate) fn undo_of(ts: &Toolstack, record: &mut GuestRecord, devices: &[DeviceId]) -> StepResult {
    let names: Vec<String> = devices.iter().map(|id| id.backend_name()).collect();
    let (theirs, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut record.scripts).into_iter().partition(|script| names.contains(&script.backend));
    record.scripts = theirs;
    let outcome = undo_all(ts, record);
    // The others were there first.
    let left = std::mem::replace(&mut record.scripts, others);
    record.scripts.extend(left);
    outcome
}

/// The frontend's domid in `backend/<kind>/<domid>/<devid>`.
pub(crate) fn frontend_of(backend: &str) -> Option<DomId> {
    let mut words = backend.strip_prefix("backend/")?.split('/');
    let (_kind, domid, _devid) = (words.next()?, words.next()?, words.next()?.parse::<u64>().ok()?);
    if words.next().is_some() { None } else { domid.parse().ok() }
}
