//! CPUs and NUMA nodes, real.

use core::ffi::c_uint;
use core::ptr;
use core::time::Duration;

use nix::errno::Errno;
use xen_types::{DomId, KiB};

use super::RealHypervisor;
use super::handle::Handle;
use crate::domain::CpuMap;
use crate::error::{Result, XenError};
use crate::hypervisor::Hypervisor as _;
use crate::processors::{HostCpu, HostNode, Processors, Topology, VcpuInfo};

/// More CPUs or nodes than any release of Xen can have; a larger number is an error.
const MOST: u32 = 1 << 14;
/// What stands for a value that a CPU or a node does not have.
const NO_NUMBER: u32 = u32::MAX;
const NO_SIZE: u64 = u64::MAX;

/// Which of a virtual CPU's affinities is meant.
#[derive(Clone, Copy)]
enum Kind {
    Hard,
    Soft,
}

// SAFETY of every call below: the connection is open and used by this thread alone, and each buffer has the size that
// is said, or that the library takes from the host.
impl Processors for RealHypervisor {
    fn vcpus(&self, domid: DomId) -> Result<Vec<VcpuInfo>> {
        let unknown = || XenError::refused("xc_vcpu_getinfo", Some(domid), Errno::ESRCH);
        let count = self.domain_info(domid)?.ok_or_else(unknown)?.max_vcpus;
        self.with(|handle| {
            let size = cpu_map_size(handle)?;
            let all = (0..count.min(MOST)).map(|number| match vcpu(handle, domid, number, size) {
                // It has none of this number.
                Err(error) if matches!(error.errno(), Some(Errno::ESRCH | Errno::EINVAL)) => Ok(None),
                other => other.map(Some),
            });
            Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        })
    }

    fn set_vcpu_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()> {
        self.with(|handle| set_affinity(handle, domid, vcpu, cpus, Kind::Hard))
    }

    fn set_vcpu_soft_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<()> {
        self.with(|handle| set_affinity(handle, domid, vcpu, cpus, Kind::Soft))
    }

    fn node_affinity(&self, domid: DomId) -> Result<Vec<u32>> {
        self.with(|handle| {
            // SAFETY: see the implementation.
            let count =
                handle.call("xc_get_max_nodes", None, |xc| unsafe { xen_sys::xc_get_max_nodes(xc) })?;
            let mut map = vec![0_u8; usize::try_from(count).unwrap_or(0) / 8 + 1];
            let raw = domid.get().into();
            // SAFETY: see the implementation; the map has at least as many bits as there can be nodes.
            handle.call("xc_domain_node_getaffinity", Some(domid), |xc| unsafe {
                xen_sys::xc_domain_node_getaffinity(xc, raw, map.as_mut_ptr())
            })?;
            Ok(CpuMap::from_bytes(map).iter().map(u32::from).collect())
        })
    }

    fn topology(&self) -> Result<Topology> {
        self.with(|handle| Ok(Topology { cpus: cpus(handle)?, nodes: nodes(handle)? }))
    }
}

/// How many bytes the library reads or writes of a set of CPUs: one bit for each that the host can have.
fn cpu_map_size(handle: &Handle) -> Result<usize> {
    // SAFETY: see the implementation.
    let count = handle.call("xc_get_max_cpus", None, |xc| unsafe { xen_sys::xc_get_max_cpus(xc) })?;
    Ok(usize::try_from(count).unwrap_or(0) / 8 + 1)
}

fn vcpu(handle: &Handle, domid: DomId, number: u32, size: usize) -> Result<VcpuInfo> {
    let raw = domid.get().into();
    let mut info = xen_sys::xc_vcpuinfo_t::default();
    // SAFETY: the structure is the one that the call fills.
    handle.call("xc_vcpu_getinfo", Some(domid), |xc| unsafe {
        xen_sys::xc_vcpu_getinfo(xc, raw, number, &raw mut info)
    })?;
    let (mut hard, mut soft) = (vec![0_u8; size], vec![0_u8; size]);
    let flags = xen_sys::XEN_VCPUAFFINITY_HARD | xen_sys::XEN_VCPUAFFINITY_SOFT;
    // SAFETY: both maps have the size that the library takes from the host.
    handle.call("xc_vcpu_getaffinity", Some(domid), |xc| unsafe {
        let number = number.cast_signed();
        xen_sys::xc_vcpu_getaffinity(xc, raw, number, hard.as_mut_ptr(), soft.as_mut_ptr(), flags)
    })?;
    Ok(VcpuInfo {
        number,
        online: info.online != 0,
        blocked: info.blocked != 0,
        running: info.running != 0,
        cpu_time: Duration::from_nanos(info.cpu_time),
        cpu: info.cpu,
        hard: CpuMap::from_bytes(hard),
        soft: CpuMap::from_bytes(soft),
    })
}

fn set_affinity(handle: &Handle, domid: DomId, vcpu: u32, cpus: &CpuMap, kind: Kind) -> Result<()> {
    const WHAT: &str = "xc_vcpu_setaffinity";
    let vcpu = i32::try_from(vcpu).map_err(|_| XenError::refused(WHAT, Some(domid), Errno::ESRCH))?;
    // The library reads it, and writes it back.
    let mut map = cpus.as_bytes().to_vec();
    map.resize(cpu_map_size(handle)?, 0);
    let (hard, soft, flags) = match kind {
        Kind::Hard => (map.as_mut_ptr(), ptr::null_mut(), xen_sys::XEN_VCPUAFFINITY_HARD),
        Kind::Soft => (ptr::null_mut(), map.as_mut_ptr(), xen_sys::XEN_VCPUAFFINITY_SOFT),
    };
    // SAFETY: the map has the size that the library takes from the host, and it leaves out the one that is not given.
    handle.call(WHAT, Some(domid), |xc| unsafe {
        xen_sys::xc_vcpu_setaffinity(xc, domid.get().into(), vcpu, hard, soft, flags)
    })?;
    Ok(())
}

fn cpus(handle: &Handle) -> Result<Vec<HostCpu>> {
    const WHAT: &str = "xc_cputopoinfo";
    let mut count: c_uint = 0;
    // SAFETY: without a place for them, the CPUs are only counted.
    handle.call(WHAT, None, |xc| unsafe { xen_sys::xc_cputopoinfo(xc, &raw mut count, ptr::null_mut()) })?;
    let mut all = vec![xen_sys::xc_cputopo_t::default(); sane(WHAT, count)?];
    // SAFETY: the array has as much room as is said.
    handle.call(WHAT, None, |xc| unsafe { xen_sys::xc_cputopoinfo(xc, &raw mut count, all.as_mut_ptr()) })?;
    let numbered = (0..count).zip(&all);
    let online = numbered.filter(|(_, cpu)| ![cpu.core, cpu.socket, cpu.node].contains(&NO_NUMBER));
    Ok(online
        .map(|(number, cpu)| HostCpu { number, core: cpu.core, socket: cpu.socket, node: cpu.node })
        .collect())
}

fn nodes(handle: &Handle) -> Result<Vec<HostNode>> {
    const WHAT: &str = "xc_numainfo";
    let mut count: c_uint = 0;
    // SAFETY: without a place for them, the nodes are only counted.
    handle.call(WHAT, None, |xc| unsafe {
        xen_sys::xc_numainfo(xc, &raw mut count, ptr::null_mut(), ptr::null_mut())
    })?;
    let room = sane(WHAT, count)?;
    let mut all = vec![xen_sys::xc_meminfo_t::default(); room];
    let mut distances = vec![NO_NUMBER; room * room];
    // SAFETY: the arrays have as much room as is said: for the nodes, and for each of them with each.
    handle.call(WHAT, None, |xc| unsafe {
        xen_sys::xc_numainfo(xc, &raw mut count, all.as_mut_ptr(), distances.as_mut_ptr())
    })?;
    // The rows are as long as what was filled, which is never more than there is room for.
    let row = usize::try_from(count).unwrap_or(0).clamp(1, room.max(1));
    let numbered = (0..count).zip(&all).zip(distances.chunks(row));
    Ok(numbered
        .filter(|((_, node), _)| node.memsize != NO_SIZE)
        .map(|((number, node), distances)| HostNode {
            number,
            memory: KiB(node.memsize / 1024),
            free: KiB(node.memfree / 1024),
            distances: distances.to_vec(),
        })
        .collect())
}

/// A number of CPUs or nodes, checked.
fn sane(what: &'static str, count: u32) -> Result<usize> {
    let count = if count <= MOST { usize::try_from(count).ok() } else { None };
    count.ok_or_else(|| XenError::refused(what, None, Errno::EPROTO))
}
