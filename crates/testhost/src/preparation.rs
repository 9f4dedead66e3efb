//! Does what is to be done in dom0 before a job.

use std::fs;
use std::path::Path;

use crate::HostError;
use crate::error::AtPath as _;
use crate::job::{Work, whole_seconds};
use crate::request::{Job, Preparation};
use crate::share::Share;
use crate::vm::Vm;

/// Does it in a machine whose dom0 is ready; after it, dom0 is ready for the next thing. Its script, its output and
/// dom0's logs of it are kept in a folder of its name in `logs`.
pub(crate) fn prepare(
    vm: &mut Vm<'_>,
    preparation: &Preparation,
    share: &Share,
    logs: &Path,
) -> Result<(), HostError> {
    let logs = logs.join(preparation.name());
    fs::create_dir_all(&logs).at("make the folder", &logs)?;
    let script = logs.join("script");
    fs::write(&script, preparation.script()).at("write", &script)?;
    share.script(&script)?;
    share.put(preparation.puts())?;
    vm.observer().progress(&format!("Preparing the host: {}", preparation.name()));
    let job = Job::Script(script);
    let limit = whole_seconds(vm.scaled(preparation.timeout()));
    let work = Work { job: &job, prepares: true, limit: Some(limit), logs: &logs };
    work.begin(vm)?;
    let status = work.complete(vm)?.last_words(vm)?;
    share.keep_logs(&logs);
    if status == 0 { Ok(()) } else { Err(HostError::Preparation { name: preparation.name(), status, logs }) }
}
