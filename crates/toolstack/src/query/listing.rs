//! What `xl list` shows of a domain beside the usual.

use xen::{DomainInfo, DomainState, ShutdownReason};
use xenstore::{Store, XsPath};

use crate::Toolstack;
use crate::error::{Cause, ToolstackError as Error};
use crate::nodes::{below, vm_dir};

/// The longest name of a CPU pool that is shown, in characters.
const POOL_LIMIT: usize = 64;

/// What `xl list` shows of a domain beside the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its state in the letters of `xl list`.
    pub flags: String,
    /// Why it has shut down, if it has.
    pub reason: Option<ShutdownReason>,
    /// The name of its CPU pool.
    pub pool: String,
    /// Its XSM label, where Xen runs with XSM.
    pub label: Option<String>,
    /// The NUMA nodes that its memory comes from first.
    pub nodes: Vec<u32>,
    /// When it was started, in seconds since 1970.
    pub started: Option<u64>,
}

impl Toolstack {
    /// What `xl list` shows of a domain beside the usual. What cannot be had is left out.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer.
    pub fn listing(&self, info: &DomainInfo) -> Result<Listing, Error> {
        let label = match info.ssidref {
            0 => None,
            // Without XSM there is none.
            sid => self.hypervisor.security_label(sid).ok(),
        };
        Ok(Listing {
            flags: flags(info.state),
            reason: info.state.shutdown,
            pool: self.pool(info.cpupool)?,
            label,
            // A domain that is being destroyed has none any more.
            nodes: self.hypervisor.node_affinity(info.domid).unwrap_or_default(),
            started: self.started_at(info)?,
        })
    }

    fn pool(&self, number: u32) -> Result<String, Cause> {
        let name = match XsPath::new(format!("/local/pool/{number}/name")) {
            Ok(path) => self.xenstore.read(&path)?,
            Err(_) => None,
        };
        let name = name.map(|name| {
            let name = String::from_utf8_lossy(&name).into_owned();
            name.chars().filter(|c| !c.is_control()).take(POOL_LIMIT).collect()
        });
        Ok(name.unwrap_or_else(|| format!("Pool-{number}")))
    }

    /// From dom0's own node, which no guest may write.
    fn started_at(&self, info: &DomainInfo) -> Result<Option<u64>, Cause> {
        let path = below(&vm_dir(config::Uuid::from_bytes(info.uuid)), "start_time");
        let value = self.xenstore.read(&path)?;
        Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.split('.').next()?.parse().ok()))
    }
}

/// The letters of `xl list`: the fifth is the reason of a shutdown.
fn flags(state: DomainState) -> String {
    let reason = match state.shutdown {
        None | Some(ShutdownReason::PowerOff) => '-',
        Some(ShutdownReason::Reboot) => 'r',
        Some(ShutdownReason::Suspend) => 's',
        Some(ShutdownReason::Crash) => 'c',
        Some(ShutdownReason::Watchdog) => 'w',
        Some(ShutdownReason::SoftReset) => 'S',
        Some(ShutdownReason::Other(_)) => '?',
    };
    let letter = |is_set, letter| if is_set { letter } else { '-' };
    String::from_iter([
        letter(state.running, 'r'),
        letter(state.blocked, 'b'),
        letter(state.paused, 'p'),
        letter(state.shutdown.is_some(), 's'),
        reason,
        letter(state.dying, 'd'),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_those_of_xl_list() {
        let shown = |running, blocked, paused, shutdown| {
            flags(DomainState { running, blocked, paused, dying: false, shutdown })
        };
        assert_eq!(shown(true, false, false, None), "r-----");
        assert_eq!(shown(false, true, false, None), "-b----");
        assert_eq!(shown(false, false, true, None), "--p---");
        assert_eq!(shown(false, false, false, Some(ShutdownReason::PowerOff)), "---s--");
        assert_eq!(shown(false, false, true, Some(ShutdownReason::Crash)), "--psc-");
        assert_eq!(shown(false, false, false, Some(ShutdownReason::Suspend)), "---ss-");
    }
}
