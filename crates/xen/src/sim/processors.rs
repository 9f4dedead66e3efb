//! CPUs and NUMA nodes, simulated: two CPUs on one node.

use core::time::Duration;

use nix::errno::Errno;
use xen_types::DomId;

use super::{SimDomain, SimHypervisor};
use crate::domain::CpuMap;
use crate::error::Result;
use crate::processors::{HostCpu, HostNode, Processors, Topology, VcpuInfo};

/// The host's CPUs.
const CPUS: u16 = 2;

impl Processors for SimHypervisor {
    fn vcpus(&self, domid: DomId) -> Result<Vec<VcpuInfo>> {
        self.on("vcpus", domid, |domain| Ok((0..domain.vcpus).map(|number| vcpu(domain, number)).collect()))
    }

    fn set_vcpu_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()> {
        self.on("set_vcpu_affinity", domid, |domain| {
            if vcpu >= domain.vcpus {
                return Err(Errno::ESRCH);
            }
            if !cpus.iter().any(|cpu| cpu < CPUS) {
                return Err(Errno::EINVAL);
            }
            domain.affinity.insert(vcpu, cpus.clone());
            Ok(())
        })
    }

    fn set_vcpu_soft_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()> {
        self.on("set_vcpu_soft_affinity", domid, |domain| {
            if vcpu >= domain.vcpus {
                return Err(Errno::ESRCH);
            }
            domain.soft_affinity.insert(vcpu, cpus.clone());
            Ok(())
        })
    }

    fn node_affinity(&self, domid: DomId) -> Result<Vec<u32>> {
        self.on("node_affinity", domid, |_| Ok(vec![0]))
    }

    fn topology(&self) -> Result<Topology> {
        self.call("topology", None, |state| {
            let cpus = (0..CPUS).map(u32::from);
            let cpus = cpus.map(|number| HostCpu { number, core: number, socket: 0, node: 0 }).collect();
            let node = HostNode { number: 0, memory: state.total, free: state.free, distances: vec![10] };
            Ok(Topology { cpus, nodes: vec![node] })
        })
    }
}

fn vcpu(domain: &SimDomain, number: u32) -> VcpuInfo {
    let everywhere = || CpuMap::from_iter(0..CPUS);
    let state = domain.state();
    VcpuInfo {
        number,
        online: domain.built,
        blocked: state.blocked,
        running: state.running,
        cpu_time: Duration::ZERO,
        cpu: 0,
        hard: domain.affinity.get(&number).cloned().unwrap_or_else(everywhere),
        soft: domain.soft_affinity.get(&number).cloned().unwrap_or_else(everywhere),
    }
}
