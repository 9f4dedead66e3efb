use core::time::Duration;

use xen_types::{DomId, KiB};

use crate::domain::CpuMap;
use crate::error::Result;

/// What a toolstack asks of Xen about physical and virtual CPUs, and about NUMA nodes.
///
/// # Errors
/// As for [`Hypervisor`](crate::Hypervisor).
pub trait Processors: Send + Sync {
    /// The virtual CPUs of a domain, by number.
    ///
    /// # Errors
    /// As said at the trait.
    fn vcpus(&self, domid: DomId) -> Result<Vec<VcpuInfo>>;

    /// Chooses the physical CPUs that a virtual CPU may run on.
    ///
    /// # Errors
    /// `EINVAL` when none of them exists, `ESRCH` for an unknown virtual CPU.
    fn set_vcpu_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()>;

    /// Chooses the physical CPUs that a virtual CPU runs on if they are free.
    ///
    /// # Errors
    /// `ESRCH` or `EINVAL` for an unknown virtual CPU.
    fn set_vcpu_soft_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()>;

    /// The NUMA nodes that a domain's memory comes from first, by number.
    ///
    /// # Errors
    /// As said at the trait.
    fn node_affinity(&self, domid: DomId) -> Result<Vec<u32>>;

    /// The host's CPUs and NUMA nodes.
    ///
    /// # Errors
    /// As said at the trait.
    fn topology(&self) -> Result<Topology>;
}

/// A virtual CPU (`struct xen_domctl_getvcpuinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuInfo {
    /// Its number.
    pub number: u32,
    /// Whether the domain uses it.
    pub online: bool,
    /// Whether it waits for something.
    pub blocked: bool,
    /// Whether it runs just now.
    pub running: bool,
    /// Processor time that it has used.
    pub cpu_time: Duration,
    /// The physical CPU that it runs on, or has run on last.
    pub cpu: u32,
    /// The physical CPUs that it may run on.
    pub hard: CpuMap,
    /// Those that it runs on if they are free.
    pub soft: CpuMap,
}

/// The host's CPUs and NUMA nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The CPUs that are online.
    pub cpus: Vec<HostCpu>,
    /// The nodes that have memory.
    pub nodes: Vec<HostNode>,
}

/// A physical CPU (`struct xen_sysctl_cputopo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Its number.
    pub number: u32,
    /// Its core's number within the socket.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// A NUMA node (`struct xen_sysctl_meminfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNode {
    /// Its number.
    pub number: u32,
    /// All of its memory.
    pub memory: KiB,
    /// What no domain has of it.
    pub free: KiB,
    /// How far the nodes are, by number; 10 is the node itself.
    pub distances: Vec<u32>,
}
