//! CPUs and NUMA nodes in the interface `io.outrigger`.

use serde::{Deserialize, Serialize};
use xen_types::{DomId, KiB};

/// A virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub number: u32,
    /// Whether the domain uses it.
    pub online: bool,
    /// Whether it runs just now.
    pub running: bool,
    /// Whether it waits for something.
    pub blocked: bool,
    /// The CPU that it runs on, or has run on last.
    pub cpu: u32,
    /// CPU time that it has used, in nanoseconds.
    pub cpu_time_ns: u64,
    /// The CPUs that it may run on: numbers and ranges, or `all`.
    pub hard: String,
    /// The CPUs that it runs on if they are free, in the same form.
    pub soft: String,
}

/// A domain with its virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainVcpus {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// By number.
    pub vcpus: Vec<Vcpu>,
}

/// The reply of `VcpuList`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vcpus {
    /// The guest and its stubdomain.
    pub domains: Vec<DomainVcpus>,
}

/// A CPU of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A NUMA node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNode {
    /// Its number.
    pub number: u32,
    /// All of its memory.
    pub memory_kib: KiB,
    /// What no domain has of it.
    pub free_memory_kib: KiB,
    /// How far the nodes are, by number; 10 is the node itself.
    pub distances: Vec<u32>,
}

/// The reply of `HostTopology`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// The CPUs that are online.
    pub cpus: Vec<HostCpu>,
    /// The nodes that have memory.
    pub nodes: Vec<HostNode>,
}
