//! A hypervisor for tests that keeps everything in memory.

mod calls;
mod memory;
mod processors;
mod stream;

use core::cell::Cell;
use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use nix::errno::Errno;
use xen_types::{DomId, EventPort, KiB, Release};

use crate::build::Channel;
use crate::domain::{Altp2m, CpuMap, DomainKind, DomainSpec, DomainState, HostInfo, ShutdownReason, Trigger};
use crate::error::{Result, XenError};
use crate::param::HvmParam;
use crate::release::SIMULATED;

/// Memory of the host when nothing else is said.
const DEFAULT_MEMORY: KiB = KiB::from_mib(4096);
/// Memory that domain 0 has of it.
const DOM0_MEMORY: KiB = KiB::from_mib(1024);

/// A hypervisor that keeps domains, their memory, event channels and HVM parameters, and refuses what Xen refuses with
/// the number that Xen gives. Nothing runs in its domains; a test plays the guest with [`guest_shuts_down`].
///
/// Equal calls give equal answers: domains are numbered from 1, and ports from 1 in each domain.
///
/// [`guest_shuts_down`]: Self::guest_shuts_down
pub struct SimHypervisor {
    state: Mutex<State>,
    observer: Mutex<Option<Observer>>,
}

/// What a test wants done after each call.
type Observer = Arc<dyn Fn(&SimHypervisor, &Operation) + Send + Sync>;

thread_local! {
    /// Whether this thread is in an observer just now.
    static OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The method's name.
    pub name: &'static str,
    /// The domain that it was about; for `create_domain`, the one that was asked for.
    pub domid: Option<DomId>,
    /// Whether it was done.
    pub done: bool,
}

impl SimHypervisor {
    /// Makes a host of 4 GiB with nothing but a domain 0 of 1 GiB.
    #[must_use]
    pub fn new() -> Self {
        Self::with_memory(DEFAULT_MEMORY)
    }

    /// Makes a host of this much memory, of which domain 0 has 1 GiB.
    #[must_use]
    pub fn with_memory(total: KiB) -> Self {
        let free = KiB(total.get().saturating_sub(DOM0_MEMORY.get()));
        let mut dom0 = SimDomain::new(&DomainSpec::new(DomainKind::Pv, [0; 16], 1));
        dom0.memory = DOM0_MEMORY;
        dom0.max_memory = DOM0_MEMORY;
        (dom0.vcpus, dom0.pauses, dom0.built) = (1, 0, true);
        let state = State {
            release: SIMULATED,
            page_time: Duration::from_micros(10),
            domains: BTreeMap::from([(DomId::DOM0, dom0)]),
            total,
            free,
            last_domid: 0,
            operations: Vec::new(),
            fail_after: None,
            die_after: None,
            fail_named: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), observer: Mutex::new(None) }
    }

    /// Lets another release run; without this, it is the one that the program was built for.
    pub fn set_release(&self, release: Release) {
        self.lock().release = release;
    }

    /// Makes the `n`-th call from now on fail with `EIO`; 1 is the next one. Calls after it are done again.
    pub fn fail_nth_call(&self, n: u64) {
        self.lock().fail_after = Some(n.saturating_sub(1));
    }

    /// Ends the calling thread's work, with a panic that prints nothing, instead of its `n`-th call from now on, from 1,
    /// as when the daemon is killed; 0 lets it live.
    pub fn die_at_nth_call(&self, n: u64) {
        self.lock().die_after = n.checked_sub(1).map(|left| (thread::current().id(), left));
    }

    /// Makes each call of the method of this name fail with this number, until [`Self::heal`].
    pub fn fail_operation(&self, name: &'static str, errno: Errno) {
        self.lock().fail_named.insert(name, errno);
    }

    /// Has this done after each call, before the caller sees its result: a test plays the guest with it, which does
    /// something when it is unpaused. It may make calls of its own, which are not observed.
    pub fn observe(&self, observer: impl Fn(&Self, &Operation) + Send + Sync + 'static) {
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(observer));
    }

    /// Ends all failures that were asked for.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.fail_after = None;
        state.fail_named.clear();
    }

    /// The calls so far, oldest first.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.lock().operations.clone()
    }

    /// What is left of domains other than 0: a line for each thing that a toolstack should have removed.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.lock();
        let mut left: Vec<String> = state
            .domains
            .iter()
            .filter(|(domid, _)| **domid != DomId::DOM0)
            .map(|(domid, domain)| {
                let memory = domain.memory + domain.paging_memory;
                let dying = if domain.dying { ", dying" } else { "" };
                format!("domain {domid} with {memory} and {} ports{dying}", domain.ports.len())
            })
            .collect();
        let held =
            state.domains.values().fold(KiB(0), |sum, domain| sum + domain.memory + domain.paging_memory);
        if held + state.free != state.total {
            left.push(format!("memory: {held} held and {} free of {}", state.free, state.total));
        }
        left
    }

    /// Plays a guest that shuts itself down. Does nothing to a domain that does not run.
    pub fn guest_shuts_down(&self, domid: DomId, reason: ShutdownReason) {
        if let Some(domain) = self.lock().domains.get_mut(&domid)
            && domain.pauses == 0
        {
            domain.shutdown.get_or_insert(reason);
        }
    }

    /// Plays a guest that suspends itself, as one does that was asked to through xenstore. Does nothing to a domain that
    /// does not run.
    pub fn suspend_guest(&self, domid: DomId) {
        self.guest_shuts_down(domid, ShutdownReason::Suspend);
    }

    /// Says how many pages a domain writes during each round of a live save; 16 when nothing is said.
    pub fn set_dirty_pages(&self, domid: DomId, pages: u64) {
        self.set_dirty_rounds(domid, [], pages);
    }

    /// Says how many pages a domain writes during the first rounds of its next live saves, and how many in each later one.
    pub fn set_dirty_rounds(&self, domid: DomId, rounds: impl IntoIterator<Item = u64>, later: u64) {
        if let Some(domain) = self.lock().domains.get_mut(&domid) {
            domain.dirty_rounds = rounds.into_iter().collect();
            domain.dirty_pages = later;
        }
    }

    /// Says how long a round of a live save takes for each page, as [`Precopy::elapsed`](crate::Precopy::elapsed) has it; 10
    /// microseconds when nothing is said. Nobody waits so long.
    pub fn set_page_time(&self, time: Duration) {
        self.lock().page_time = time;
    }

    /// Whether Xen records which memory of a domain is written.
    #[must_use]
    pub fn log_dirty(&self, domid: DomId) -> bool {
        self.lock().domains.get(&domid).is_some_and(|domain| domain.log_dirty)
    }

    /// Whether a domain runs: it is not paused, has not shut down and is not being destroyed.
    #[must_use]
    pub fn runs(&self, domid: DomId) -> bool {
        let state = self.lock();
        let runs = |domain: &SimDomain| domain.pauses == 0 && domain.shutdown.is_none() && !domain.dying;
        state.domains.get(&domid).is_some_and(runs)
    }

    /// The triggers that were sent to a domain, oldest first.
    #[must_use]
    pub fn triggers(&self, domid: DomId) -> Vec<Trigger> {
        self.lock().domains.get(&domid).map(|domain| domain.triggers.clone()).unwrap_or_default()
    }

    /// The memory that a domain was last told to hold in the end; 0 when it was told nothing.
    #[must_use]
    pub fn memory_target(&self, domid: DomId) -> KiB {
        self.lock().domains.get(&domid).map_or(KiB(0), |domain| domain.memory_target)
    }

    /// Where a vCPU may run; `None` when nothing was said.
    #[must_use]
    pub fn affinity(&self, domid: DomId, vcpu: u32) -> Option<CpuMap> {
        self.lock().domains.get(&domid).and_then(|domain| domain.affinity.get(&vcpu).cloned())
    }

    /// Where a vCPU runs if it can; `None` when nothing was said.
    #[must_use]
    pub fn soft_affinity(&self, domid: DomId, vcpu: u32) -> Option<CpuMap> {
        self.lock().domains.get(&domid).and_then(|domain| domain.soft_affinity.get(&vcpu).cloned())
    }

    /// The domain that a stubdomain may be the device model of.
    #[must_use]
    pub fn target(&self, stub: DomId) -> Option<DomId> {
        self.lock().domains.get(&stub).and_then(|domain| domain.target)
    }

    /// The ports of a domain and the domain that may bind to each.
    #[must_use]
    pub fn ports(&self, domid: DomId) -> Vec<(EventPort, DomId)> {
        let state = self.lock();
        let ports = state.domains.get(&domid).map(|domain| &domain.ports);
        ports.into_iter().flatten().map(|(port, remote)| (*port, *remote)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call: writes it down, lets it fail when a test wants that, and otherwise does it.
    fn call<T>(
        &self,
        name: &'static str,
        domid: Option<DomId>,
        action: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T> {
        let mut state = self.lock();
        if state.dies() {
            drop(state);
            std::panic::resume_unwind(Box::new(name));
        }
        let result = match state.injected(name) {
            Some(errno) => Err(errno),
            None => action(&mut state),
        };
        let operation = Operation { name, domid, done: result.is_ok() };
        state.operations.push(operation.clone());
        drop(state);
        self.tell_observer(&operation);
        result.map_err(|errno| XenError::refused(name, domid, errno))
    }

    fn tell_observer(&self, operation: &Operation) {
        let observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(observer) = observer
            && !OBSERVING.replace(true)
        {
            observer(self, operation);
            OBSERVING.set(false);
        }
    }

    /// Makes a call about a domain that must exist.
    fn on<T>(
        &self,
        name: &'static str,
        domid: DomId,
        action: impl FnOnce(&mut SimDomain) -> Result<T, Errno>,
    ) -> Result<T> {
        self.call(name, Some(domid), |state| action(state.living(domid)?))
    }
}

impl fmt::Debug for SimHypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHypervisor").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Default for SimHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct State {
    release: Release,
    page_time: Duration,
    domains: BTreeMap<DomId, SimDomain>,
    total: KiB,
    free: KiB,
    last_domid: u16,
    operations: Vec<Operation>,
    fail_after: Option<u64>,
    /// The thread that dies, after so many calls more.
    die_after: Option<(ThreadId, u64)>,
    fail_named: BTreeMap<&'static str, Errno>,
}

impl State {
    /// Whether the caller's thread dies instead of this call.
    fn dies(&mut self) -> bool {
        match &mut self.die_after {
            Some((thread, left)) if *thread == thread::current().id() => match left.checked_sub(1) {
                Some(less) => *left = less,
                None => {
                    self.die_after = None;
                    return true;
                }
            },
            _ => {}
        }
        false
    }

    fn injected(&mut self, name: &'static str) -> Option<Errno> {
        if let Some(left) = self.fail_after {
            self.fail_after = left.checked_sub(1);
            if left == 0 {
                return Some(Errno::EIO);
            }
        }
        self.fail_named.get(name).copied()
    }

    /// A domain that exists and is not being destroyed.
    fn living(&mut self, domid: DomId) -> Result<&mut SimDomain, Errno> {
        self.domains.get_mut(&domid).filter(|domain| !domain.dying).ok_or(Errno::ESRCH)
    }

    /// The next number that no domain has. Like Xen's, it goes on from the last one, so that a number is not used
    /// again soon.
    fn next_domid(&mut self) -> Result<DomId, Errno> {
        for _ in 0..DomId::FIRST_RESERVED {
            self.last_domid = (self.last_domid + 1) % DomId::FIRST_RESERVED;
            match DomId::new(self.last_domid) {
                Ok(domid) if domid != DomId::DOM0 && !self.domains.contains_key(&domid) => return Ok(domid),
                _ => {}
            }
        }
        Err(Errno::ENOMEM)
    }

    fn take_memory(&mut self, memory: KiB) -> Result<(), Errno> {
        let left = self.free.get().checked_sub(memory.get()).ok_or(Errno::ENOMEM)?;
        self.free = KiB(left);
        Ok(())
    }

    /// Gives a domain its memory, or says why not.
    fn fill(&mut self, domid: DomId, hvm: bool, memory: KiB, channels: [Channel; 2]) -> Result<(), Errno> {
        let domain = self.living(domid)?;
        let known = |channel: &Channel| domain.ports.get(&channel.port) == Some(&channel.peer);
        let fits = domain.spec.kind.is_hvm() == hvm && !domain.built && domain.vcpus > 0;
        if !fits || !channels.iter().all(known) {
            return Err(Errno::EINVAL);
        }
        if memory > domain.max_memory {
            return Err(Errno::ENOMEM);
        }
        self.take_memory(memory)?;
        let domain = self.living(domid)?;
        (domain.memory, domain.built) = (memory, true);
        Ok(())
    }

    fn destroy(&mut self, domid: DomId) -> Result<(), Errno> {
        if domid == DomId::DOM0 {
            return Err(Errno::EINVAL);
        }
        let domain = self.domains.get_mut(&domid).ok_or(Errno::ESRCH)?;
        domain.dying = true;
        let freed = domain.memory + domain.paging_memory;
        (domain.memory, domain.paging_memory) = (KiB(0), KiB(0));
        domain.ports.clear();
        domain.target = None;
        self.free = self.free + freed;
        self.bury();
        Ok(())
    }

    /// Forgets the dying domains that no stubdomain refers to as its target. A stubdomain holds on to its target.
    fn bury(&mut self) {
        let held: BTreeSet<DomId> = self.domains.values().filter_map(|domain| domain.target).collect();
        self.domains.retain(|domid, domain| !domain.dying || held.contains(domid));
    }
}

#[derive(Debug)]
struct SimDomain {
    spec: DomainSpec,
    vcpus: u32,
    affinity: BTreeMap<u32, CpuMap>,
    soft_affinity: BTreeMap<u32, CpuMap>,
    pauses: u32,
    memory: KiB,
    max_memory: KiB,
    memory_target: KiB,
    paging_memory: KiB,
    built: bool,
    /// What was written to its memory from outside: addresses and bytes.
    written: Vec<(u64, Vec<u8>)>,
    log_dirty: bool,
    dirty_rounds: VecDeque<u64>,
    dirty_pages: u64,
    dying: bool,
    shutdown: Option<ShutdownReason>,
    target: Option<DomId>,
    params: BTreeMap<HvmParam, u64>,
    ports: BTreeMap<EventPort, DomId>,
    triggers: Vec<Trigger>,
}

impl SimDomain {
    fn new(spec: &DomainSpec) -> Self {
        Self {
            spec: spec.clone(),
            vcpus: 0,
            affinity: BTreeMap::new(),
            soft_affinity: BTreeMap::new(),
            pauses: 1,
            memory: KiB(0),
            max_memory: KiB(0),
            memory_target: KiB(0),
            paging_memory: KiB(0),
            built: false,
            written: Vec::new(),
            log_dirty: false,
            dirty_rounds: VecDeque::new(),
            dirty_pages: 16,
            dying: false,
            shutdown: None,
            target: None,
            params: match spec.altp2m {
                Altp2m::Disabled => BTreeMap::new(),
                mode => BTreeMap::from([(HvmParam::Altp2m, mode as u64)]),
            },
            ports: BTreeMap::new(),
            triggers: Vec::new(),
        }
    }

    fn state(&self) -> DomainState {
        let stopped = self.pauses > 0 || self.shutdown.is_some() || self.dying;
        DomainState {
            running: false,
            blocked: self.built && !stopped,
            paused: self.pauses > 0,
            dying: self.dying,
            shutdown: self.shutdown,
        }
    }
}

/// What the simulated host says of itself.
fn host(state: &State) -> HostInfo {
    HostInfo {
        cpus: 2,
        cpu_khz: 2_000_000,
        threads_per_core: 1,
        cores_per_socket: 2,
        nodes: 1,
        total_memory: state.total,
        free_memory: state.free,
        scrub_memory: KiB(0),
        claimed_memory: KiB(0),
        capabilities: crate::domain::HostCapabilities {
            hvm: true,
            pv: true,
            hap: true,
            shadow: true,
            iommu: false,
            iommu_shares_hap: false,
            vpmu: false,
            vmtrace: false,
        },
    }
}

#[cfg(test)]
mod tests;
