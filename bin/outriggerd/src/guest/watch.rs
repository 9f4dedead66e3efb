//! Looks at a guest and its stubdomain in Xen, on a thread that may block.

use toolstack::{Cause, Guest, GuestEvent, Toolstack};
use xen::{DomainInfo, ShutdownReason};

/// What has ended, if anything.
///
/// QEMU's end shows as the stubdomain's: its agent powers the domain off then.
pub(super) fn guest(toolstack: &Toolstack, guest: &Guest) -> Result<Option<GuestEvent>, Cause> {
    // A domid that another domain has now belongs to neither the guest nor its stubdomain.
    let target = toolstack.domain_info(guest.domid, guest.uuid)?;
    let stub = toolstack.domain_info(guest.stub_domid, guest.stub_uuid)?;
    let ended = what_ended(target.as_ref(), stub.as_ref());
    let is_suspended = ended == Some(GuestEvent::Shutdown(ShutdownReason::Suspend));
    Ok(if is_suspended && toolstack.is_suspended_late(guest)? {
        Some(GuestEvent::SuspendedLate)
    } else {
        ended
    })
}

/// Waits until a stubdomain has ended too whose guest another program has destroyed: that program destroys both, and
/// should find the stubdomain as it was.
pub(super) fn until_stub_is_gone(toolstack: &Toolstack, guest: &Guest) {
    let patience = toolstack.deadlines().orphaned;
    // What follows looks again, and says what cannot be done.
    let _ = toolstack.wait_until_gone(guest.stub_domid, guest.stub_uuid, patience);
}

fn what_ended(target: Option<&DomainInfo>, stub: Option<&DomainInfo>) -> Option<GuestEvent> {
    match target {
        Some(info) if !info.state.dying => {
            if let Some(reason) = info.state.shutdown {
                return Some(GuestEvent::Shutdown(reason));
            }
        }
        _ => return Some(GuestEvent::Gone),
    }
    match stub.map(|info| (info.state.shutdown, info.state.dying)) {
        Some((Some(_), _)) => Some(GuestEvent::DeviceModelDied),
        // A domain that ends by itself stays until a toolstack destroys it: this one was not ended by itself.
        None | Some((None, true)) => Some(GuestEvent::StubdomainDestroyed),
        Some((None, false)) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use xen::DomainState;
    use xen_types::{DomId, KiB};

    fn domain(state: DomainState) -> DomainInfo {
        DomainInfo {
            domid: DomId::new(1).unwrap(),
            uuid: [7; 16],
            hvm: true,
            hap: true,
            state,
            memory: KiB(0),
            max_memory: KiB(0),
            online_vcpus: 1,
            max_vcpus: 1,
            cpu_time: Duration::ZERO,
            ssidref: 0,
            cpupool: 0,
        }
    }

    #[test]
    fn each_end_is_told_apart() {
        let runs = domain(DomainState { running: true, ..DomainState::default() });
        let dying = domain(DomainState { dying: true, ..DomainState::default() });
        let off = domain(DomainState { shutdown: Some(ShutdownReason::PowerOff), ..DomainState::default() });
        assert_eq!(what_ended(Some(&runs), Some(&runs)), None);
        assert_eq!(what_ended(None, Some(&runs)), Some(GuestEvent::Gone));
        assert_eq!(what_ended(Some(&dying), Some(&runs)), Some(GuestEvent::Gone));
        assert_eq!(what_ended(Some(&runs), Some(&off)), Some(GuestEvent::DeviceModelDied));
        for stub in [None, Some(&dying)] {
            assert_eq!(what_ended(Some(&runs), stub), Some(GuestEvent::StubdomainDestroyed));
        }
        // A guest that powers off while its stubdomain is gone has powered off.
        assert_eq!(what_ended(Some(&off), None), Some(GuestEvent::Shutdown(ShutdownReason::PowerOff)));
    }
}
