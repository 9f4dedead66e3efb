//! The simulated Xen: domains, ring pages, event channels.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use console::Uuid;
use console::platform::{DomainState, Platform};
use console::ring::{Index, RingMemory, XenconsInterface};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xen_types::{DomId, EventPort, Gfn, GrantRef};

pub(crate) type Page = Arc<XenconsInterface>;

#[derive(Default)]
struct State {
    domains: BTreeMap<DomId, DomainState>,
    /// The number of domains ever created, so that no two have the same UUID.
    made: u128,
    grants: HashMap<(DomId, GrantRef), Page>,
    /// Ports that guests offer, and to which local port each is bound.
    offers: HashMap<(DomId, EventPort), Option<EventPort>>,
    next_port: u32,
    fired: VecDeque<EventPort>,
    masked: HashMap<EventPort, bool>,
    notified: HashMap<(DomId, EventPort), usize>,
    hypervisor_port: Option<EventPort>,
    hypervisor_said: Vec<u8>,
    /// Another domain gets the domid when the server binds one of its ports.
    given_away_at_bind: Option<DomId>,
    /// A domain that replaces an earlier one in the list after the domains were listed this many times.
    listed_later: Option<(u32, DomainState)>,
    /// How many requests for a UUID get no answer.
    unanswered: u32,
    /// After so many of the server's accesses to Xen and to rings, its process is killed.
    fuse: Option<u32>,
}

/// What unwinds when the server's process is killed.
pub(crate) struct Killed;

/// The simulated Xen.
#[derive(Clone)]
pub(crate) struct Xen(Arc<(Mutex<State>, EventFd)>);

impl Xen {
    pub(super) fn new() -> Self {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        Self(Arc::new((Mutex::default(), wake)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    fn fire(&self, port: EventPort) {
        let mut state = self.state();
        match state.masked.get_mut(&port) {
            Some(latched @ false) => *latched = true,
            Some(true) => {}
            None => {
                // Masked from now on, with nothing latched.
                state.masked.insert(port, false);
                state.fired.push_back(port);
            }
        }
        self.0.1.write(1).unwrap();
    }

    /// The guest sends an event.
    pub(crate) fn kick(&self, domid: DomId, port: u32) {
        let local = self.state().offers.get(&(domid, EventPort(port))).copied().flatten();
        if let Some(local) = local {
            self.fire(local);
        }
    }

    /// Kills the server's process after so many of its accesses, or not at all.
    pub(crate) fn set_fuse(&self, accesses: Option<u32>) {
        self.state().fuse = accesses;
    }

    /// Counts an access.
    fn access(&self) {
        let burnt = {
            let mut state = self.state();
            state.fuse = state.fuse.map(|left| left.saturating_sub(1));
            let burnt = state.fuse == Some(0);
            if burnt {
                state.fuse = None;
            }
            burnt
        };
        if burnt {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Xen itself says something on its console.
    pub(crate) fn say(&self, text: &str) {
        self.state().hypervisor_said.extend_from_slice(text.as_bytes());
        let port = self.state().hypervisor_port;
        if let Some(port) = port {
            self.fire(port);
        }
    }

    /// How often the guest was woken through this port of its.
    pub(crate) fn notified(&self, domid: DomId, port: u32) -> usize {
        self.state().notified.get(&(domid, EventPort(port))).copied().unwrap_or(0)
    }

    pub(crate) fn is_bound(&self, domid: DomId, port: u32) -> bool {
        self.state().offers.get(&(domid, EventPort(port))).is_some_and(Option::is_some)
    }

    /// Binds a port as another process does, until what this gives is dropped.
    pub(crate) fn take_port(&self, domid: DomId, port: u32) -> SimPlatform {
        let mut other = SimPlatform { xen: self.clone(), bound: Vec::new() };
        other.bind(domid, EventPort(port)).unwrap();
        other
    }

    /// Creates a domain with this domid, which has nothing of an earlier one.
    pub(super) fn create(&self, domid: DomId) {
        self.replace(domid);
        let mut state = self.state();
        state.grants.retain(|(owner, _), _| *owner != domid);
        state.offers.retain(|(owner, _), _| *owner != domid);
    }

    /// Gives the domid to another domain without a change in xenstore, as before xenstored is notified.
    pub(crate) fn replace(&self, domid: DomId) {
        let mut state = self.state();
        state.made += 1;
        let uuid = Uuid::from_u128(state.made);
        state.domains.insert(domid, DomainState { domid, uuid, dying: false });
    }

    /// The same, when the server binds one of the domain's ports.
    pub(crate) fn replace_at_bind(&self, domid: DomId) {
        self.state().given_away_at_bind = Some(domid);
    }

    /// Leaves this many requests for a domain's UUID unanswered.
    pub(crate) fn leave_unanswered(&self, questions: u32) {
        self.state().unanswered = questions;
    }

    /// The domain gets its domid only after the domains were listed this many times; until then a domain with this UUID
    /// has it.
    pub(crate) fn list_later(&self, lists: u32, domid: DomId, uuid: Uuid) {
        let mut state = self.state();
        let former = DomainState { domid, uuid, dying: false };
        let later = state.domains.insert(domid, former).unwrap();
        state.listed_later = Some((lists, later));
    }

    pub(crate) fn kill(&self, domid: DomId) {
        self.state().domains.get_mut(&domid).unwrap().dying = true;
    }

    /// The UUID of the domain that has this domid.
    pub(crate) fn uuid(&self, domid: DomId) -> Uuid {
        self.state().domains[&domid].uuid
    }

    /// Shares a fresh ring page and a port.
    pub(crate) fn offer(&self, domid: DomId, grant: u32, port: u32) -> Page {
        let page = Page::default();
        let mut state = self.state();
        state.grants.insert((domid, GrantRef(grant)), Arc::clone(&page));
        state.offers.insert((domid, EventPort(port)), None);
        page
    }
}

/// A ring page that the server has mapped.
pub(crate) struct Mapped {
    page: Page,
    xen: Xen,
}

impl RingMemory for Mapped {
    fn load(&self, index: Index) -> u32 {
        self.xen.access();
        self.page.load(index)
    }

    fn store(&self, index: Index, value: u32) {
        // A process can be killed before it and after it.
        self.xen.access();
        self.page.store(index, value);
        self.xen.access();
    }

    fn copy_out(&self, offset: usize, to: &mut [u8]) {
        self.page.copy_out(offset, to);
    }

    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.xen.access();
        self.page.copy_in(offset, from);
    }

    fn mark_connected(&self) {
        self.xen.access();
        self.page.mark_connected();
    }
}

/// One process's handle on the simulated Xen; what it holds goes when it is dropped, as when a process is killed.
pub(crate) struct SimPlatform {
    xen: Xen,
    bound: Vec<EventPort>,
}

impl SimPlatform {
    pub(super) const fn new(xen: Xen) -> Self {
        Self { xen, bound: Vec::new() }
    }
}

impl Platform for SimPlatform {
    type Page = Mapped;

    fn domains(&mut self) -> io::Result<Vec<DomainState>> {
        let mut state = self.xen.state();
        let listed = state.domains.values().copied().collect();
        if let Some((lists, _)) = &mut state.listed_later {
            *lists -= 1;
        }
        if let Some((_, domain)) = state.listed_later.take_if(|(lists, _)| *lists == 0) {
            state.domains.insert(domain.domid, domain);
        }
        Ok(listed)
    }

    fn domain_uuid(&mut self, domid: DomId) -> io::Result<Option<Uuid>> {
        let mut state = self.xen.state();
        if state.unanswered > 0 {
            state.unanswered -= 1;
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(state.domains.get(&domid).map(|domain| domain.uuid))
    }

    fn map_grant(&mut self, domid: DomId, grant: GrantRef) -> io::Result<Mapped> {
        self.xen.access();
        let page = self.xen.state().grants.get(&(domid, grant)).cloned();
        let page = page.ok_or(ErrorKind::NotFound)?;
        Ok(Mapped { page, xen: self.xen.clone() })
    }

    fn map_frame(&mut self, domid: DomId, frame: Gfn) -> io::Result<Mapped> {
        self.map_grant(domid, GrantRef(u32::try_from(frame.get()).unwrap()))
    }

    fn bind(&mut self, domid: DomId, remote: EventPort) -> io::Result<EventPort> {
        self.xen.access();
        let given_away = self.xen.state().given_away_at_bind.take_if(|given_away| *given_away == domid);
        if let Some(domid) = given_away {
            self.xen.replace(domid);
        }
        let port = {
            let mut state = self.xen.state();
            state.next_port += 1;
            let local = EventPort(state.next_port);
            match state.offers.get_mut(&(domid, remote)) {
                Some(offer @ None) => *offer = Some(local),
                _ => return Err(ErrorKind::InvalidInput.into()),
            }
            local
        };
        self.bound.push(port);
        self.xen.fire(port);
        Ok(port)
    }

    fn unbind(&mut self, port: EventPort) {
        let mut state = self.xen.state();
        state.offers.values_mut().filter(|bound| **bound == Some(port)).for_each(|bound| *bound = None);
        state.masked.remove(&port);
        self.bound.retain(|bound| *bound != port);
    }

    fn notify(&mut self, port: EventPort) {
        self.xen.access();
        let mut state = self.xen.state();
        assert!(self.bound.contains(&port), "an event for a port that is not bound");
        // One whose other end the domain has closed, to offer it anew: Xen drops the event.
        let remote = state.offers.iter().find(|(_, bound)| **bound == Some(port)).map(|(remote, _)| *remote);
        if let Some(remote) = remote {
            *state.notified.entry(remote).or_default() += 1;
        }
    }

    fn unmask(&mut self, port: EventPort) {
        self.xen.access();
        let latched = self.xen.state().masked.remove(&port);
        assert!(latched.is_some(), "a port that has not fired was unmasked");
        if latched == Some(true) {
            self.xen.fire(port);
        }
    }

    fn next_event(&mut self) -> io::Result<Option<EventPort>> {
        let port = self.xen.state().fired.pop_front();
        if port.is_none() {
            let _ = self.xen.0.1.read();
        }
        Ok(port)
    }

    fn watch_hypervisor_log(&mut self) -> io::Result<EventPort> {
        let port = {
            let mut state = self.xen.state();
            state.next_port += 1;
            EventPort(state.next_port)
        };
        self.xen.state().hypervisor_port = Some(port);
        Ok(port)
    }

    fn hypervisor_log(&mut self, index: u32) -> io::Result<(Vec<u8>, u32)> {
        let said = self.xen.state().hypervisor_said.clone();
        let start = usize::try_from(index).unwrap().min(said.len());
        Ok((said[start..].to_vec(), u32::try_from(said.len()).unwrap()))
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.xen.0.1.as_fd()
    }
}

impl Drop for SimPlatform {
    fn drop(&mut self) {
        for port in self.bound.clone() {
            self.unbind(port);
        }
    }
}
