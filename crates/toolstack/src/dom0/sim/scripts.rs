//! What hotplug scripts do on a simulated host.

use crate::dom0::{HostError, ScriptCall, ScriptProcess};

/// The process of each script that cannot be killed.
pub(super) const STUCK: ScriptProcess = ScriptProcess { pid: 4711, started: 17 };

/// What scripts do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scripts {
    /// They end well.
    #[default]
    Run,
    /// They run until they do something else.
    Hang,
    /// They cannot be killed at their deadline, which has come at once.
    Stick,
    /// They end with status 1 and print nothing, as Xen's do.
    Fail,
}

impl Scripts {
    /// What becomes of a script that does not hang any more.
    pub(super) fn outcome(self, call: &ScriptCall) -> Result<(), HostError> {
        let script = call.script.clone();
        match self {
            Self::Run | Self::Hang => Ok(()),
            Self::Stick => Err(HostError::ScriptStuck { script, process: STUCK, after: call.deadline }),
            Self::Fail => {
                let what = "ended with status 1".to_owned();
                Err(HostError::ScriptFailed { script, what, output: String::new(), reported: None })
            }
        }
    }
}
