//! CPUs and NUMA nodes in the interface's form.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use api::types::{DomainVcpus, HostCpu, HostNode, Topology, Vcpu, Vcpus};
use toolstack::{Cause, Error, GuestId, Toolstack};
use xen::{CpuMap, VcpuInfo};

/// The vCPUs of a guest and of its stubdomain.
pub(super) fn vcpus(toolstack: &Toolstack, id: GuestId) -> Result<Vcpus, Error> {
    let topology = toolstack.hypervisor().topology().map_err(Cause::from)?;
    let online: BTreeSet<u16> =
        topology.cpus.iter().filter_map(|cpu| u16::try_from(cpu.number).ok()).collect();
    let domains = toolstack.vcpus(id)?.into_iter().map(|of| DomainVcpus {
        domid: of.domid,
        name: of.name,
        vcpus: of.vcpus.iter().map(|vcpu| shown(vcpu, &online)).collect(),
    });
    Ok(Vcpus { domains: domains.collect() })
}

fn shown(vcpu: &VcpuInfo, online: &BTreeSet<u16>) -> Vcpu {
    Vcpu {
        number: vcpu.number,
        online: vcpu.online,
        running: vcpu.running,
        blocked: vcpu.blocked,
        cpu: vcpu.cpu,
        cpu_time_ns: u64::try_from(vcpu.cpu_time.as_nanos()).unwrap_or(u64::MAX),
        hard: set(&vcpu.hard, online),
        soft: set(&vcpu.soft, online),
    }
}

/// Numbers and ranges; `all` if every CPU that is online is among them.
fn set(map: &CpuMap, online: &BTreeSet<u16>) -> String {
    let cpus: BTreeSet<u16> = map.iter().collect();
    if cpus.is_superset(online) {
        return "all".to_owned();
    }
    let mut text = String::new();
    let cpus: Vec<u16> = cpus.into_iter().collect();
    for run in cpus.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let comma = if text.is_empty() { "" } else { "," };
        if let [first, .., last] = run {
            let _ = write!(text, "{comma}{first}-{last}");
        } else if let [only] = run {
            let _ = write!(text, "{comma}{only}");
        }
    }
    text
}

/// The host's CPUs and NUMA nodes.
pub(super) fn topology(toolstack: &Toolstack) -> Result<Topology, Cause> {
    let found = toolstack.hypervisor().topology()?;
    let cpus = found.cpus.iter().map(|cpu| HostCpu {
        number: cpu.number,
        core: cpu.core,
        socket: cpu.socket,
        node: cpu.node,
    });
    let nodes = found.nodes.into_iter().map(|node| HostNode {
        number: node.number,
        memory_kib: node.memory,
        free_memory_kib: node.free,
        distances: node.distances,
    });
    Ok(Topology { cpus: cpus.collect(), nodes: nodes.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_ranges_or_all() {
        let online = BTreeSet::from_iter(0..4);
        let shown = |cpus: &[u16]| set(&CpuMap::from_iter(cpus.iter().copied()), &online);
        assert_eq!(shown(&[0, 1, 2, 3]), "all");
        assert_eq!(set(&CpuMap::all(), &online), "all");
        assert_eq!(shown(&[0, 1, 3]), "0-1,3");
        assert_eq!(shown(&[2]), "2");
        assert_eq!(shown(&[]), "");
    }
}
