//! A guest as the interface shows it.

use api::types::{Guest, Listing, State};
use toolstack::{Decision, Guest as Managed, GuestEvent, Toolstack, decide};
use xen::DomainInfo;
use xen_types::KiB;

use super::events;
use super::view::View;

/// The guest of a view; none while it has no domain. Asks Xen.
pub(crate) fn guest(toolstack: &Toolstack, view: &View) -> Option<Guest> {
    let guest = view.guest.as_ref()?;
    let look = |domid, uuid| toolstack.domain_info(domid, uuid).ok().flatten();
    let (target, stub) = (look(guest.domid, guest.uuid), look(guest.stub_domid, guest.stub_uuid));
    let memory = |info: &Option<DomainInfo>| info.as_ref().map_or(KiB(0), |info| info.memory);
    let time = |info: &Option<DomainInfo>| {
        info.as_ref().map_or(0, |info| u64::try_from(info.cpu_time.as_nanos()).unwrap_or(u64::MAX))
    };
    Some(Guest {
        name: guest.name.clone(),
        uuid: guest.uuid.to_string(),
        domid: guest.domid,
        stub_domid: stub.as_ref().map(|_| guest.stub_domid),
        stub_uuid: stub.as_ref().map(|_| guest.stub_uuid.to_string()),
        state: state(guest, view.state, target.as_ref()),
        memory_kib: memory(&target),
        stub_memory_kib: memory(&stub),
        vcpus: target.as_ref().map_or(0, |info| info.online_vcpus),
        cpu_time_ns: time(&target),
        stub_cpu_time_ns: time(&stub),
        serials: u8::try_from(guest.config.serials.len()).unwrap_or(u8::MAX),
        listing: target.as_ref().and_then(|info| listing(toolstack, info)),
    })
}

/// What `xl list` shows of a domain; none when it cannot be had.
fn listing(toolstack: &Toolstack, info: &DomainInfo) -> Option<Listing> {
    let found = toolstack.listing(info).ok()?;
    Some(Listing {
        flags: found.flags,
        reason: found.reason.map(|reason| reason.to_string()),
        pool: found.pool,
        label: found.label,
        nodes: found.nodes,
        started: found.started,
    })
}

/// The state that is shown: that of the view, as far as Xen does not say it.
fn state(guest: &Managed, known: State, target: Option<&DomainInfo>) -> State {
    let (State::Running, Some(domain)) = (known, target.map(|info| info.state)) else { return known };
    // One that has ended is shown as what its driver makes of it, which is about to look.
    let ended = domain.shutdown.map(GuestEvent::Shutdown);
    let decision = ended.as_ref().map_or(Decision::Nothing, |event| decide(&guest.config, event));
    match decision {
        Decision::Nothing if ended.is_some() => State::Suspended,
        Decision::Nothing if domain.paused => State::Paused,
        Decision::Nothing | Decision::GoOn => State::Running,
        Decision::Destroy => State::Destroying,
        Decision::Restart | Decision::RenameRestart => State::Restarting,
        Decision::Preserve | Decision::PauseAndPreserve => ended.as_ref().map_or(known, events::shown),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use config::Uuid;
    use xen::{DomainState, ShutdownReason};
    use xen_types::DomId;

    use super::*;

    #[test]
    fn guest_that_has_ended_is_never_shown_as_running() {
        let text = "type=\"hvm\"\nname=\"hello\"\nmemory=64\non_crash=\"preserve\"";
        let guest = Managed {
            uuid: Uuid::from_u128(1),
            stub_uuid: Uuid::from_u128(2),
            name: "hello".to_owned(),
            domid: DomId::new(1).unwrap(),
            stub_domid: DomId::new(2).unwrap(),
            config: config::load_str("c", text).config.unwrap(),
        };
        let shown = |known, paused, shutdown| {
            let info = DomainInfo {
                domid: guest.domid,
                uuid: *guest.uuid.as_bytes(),
                hvm: true,
                hap: true,
                state: DomainState { paused, shutdown, ..DomainState::default() },
                memory: KiB(0),
                max_memory: KiB(0),
                online_vcpus: 1,
                max_vcpus: 1,
                cpu_time: Duration::ZERO,
                ssidref: 0,
                cpupool: 0,
            };
            state(&guest, known, Some(&info))
        };
        let running = |reason| shown(State::Running, false, Some(reason));
        assert_eq!(shown(State::Running, false, None), State::Running);
        assert_eq!(shown(State::Running, true, None), State::Paused);
        assert_eq!(running(ShutdownReason::Suspend), State::Suspended);
        assert_eq!(running(ShutdownReason::PowerOff), State::Destroying);
        assert_eq!(running(ShutdownReason::Reboot), State::Restarting);
        assert_eq!(running(ShutdownReason::Crash), State::Crashed);
        assert_eq!(shown(State::DmDead, true, Some(ShutdownReason::Reboot)), State::DmDead);
        assert_eq!(state(&guest, State::Running, None), State::Running);
    }
}
