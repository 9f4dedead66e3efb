//! The cases of the conformance suite.

use nix::errno::Errno;
use xen_types::{DomId, Gfn, KiB};

use super::{Bench, Case, Outcome, ensure, refused};
use crate::build::Blob;
use crate::cpuid::{CpuidLeaf, CpuidPolicy};
use crate::domain::{Altp2m, CpuMap, DomainKind, DomainSpec, ShutdownReason, Trigger, TscMode};
use crate::error::XenError;
use crate::param::HvmParam;

/// The cases about what is made and what Xen refuses.
pub(super) const CASES: &[Case] = &[
    Case { name: "the host and domain 0 are told of", run: host },
    Case { name: "an unknown domain is refused everywhere", run: unknown_domain },
    Case { name: "a new domain is empty, paused, and goes when destroyed", run: new_domain },
    Case { name: "a number is given once", run: taken_number },
    Case { name: "only the number of CPUs that was announced is made", run: cpus },
    Case { name: "ports are distinct and end at the limit", run: ports },
    Case { name: "HVM parameters are kept, and PV domains have none", run: params },
    Case {
        name: "alternate page tables are there from the start, where the processor has them",
        run: altp2m,
    },
    Case { name: "pausing is counted", run: pausing },
    Case { name: "a domain is set up before it is built", run: set_up },
    Case { name: "a domain that shuts down says why", run: shutting_down },
    Case { name: "a target outlives its stubdomain's hold", run: target },
    Case { name: "a missing file is named", run: missing_file },
    Case { name: "an HVM domain is built and gives its memory back", run: built_hvm },
    Case {
        name: "an HVM domain has shadow paging where there is any, tables and a hole when asked",
        run: special_hvm,
    },
    Case { name: "an HVM domain starts with less memory than it may have", run: ballooned_hvm },
    Case { name: "domains are made by several threads at once", run: threads },
    Case { name: "a PV domain is built and gives its memory back", run: built_pv },
    Case { name: "a PVH domain is built and gives its memory back", run: built_pvh },
    Case { name: "more memory than there is is refused and nothing is kept", run: too_much_memory },
    Case { name: "more memory than the domain may hold is refused", run: beyond_its_limit },
];

const MEMORY: KiB = KiB::from_mib(64);

fn host(bench: &Bench<'_>) -> Outcome {
    let host = bench.xen.host_info()?;
    ensure(host.cpus > 0 && host.free_memory <= host.total_memory, || format!("{host:?} makes no sense"))?;
    ensure(bench.xen.version_info()?.major >= 4, || "Xen is older than 4".to_owned())?;
    let all = bench.xen.list_domains()?;
    ensure(all.iter().any(|info| info.domid == DomId::DOM0 && !info.hvm), || {
        "domain 0 is not listed".to_owned()
    })?;
    ensure(all.is_sorted_by_key(|info| info.domid), || "domains are not listed by number".to_owned())?;
    let dom0 = bench.xen.domain_info(DomId::DOM0)?;
    ensure(dom0.is_some_and(|info| info.max_vcpus > 0 && info.memory.get() > 0), || {
        "domain 0 has no CPU or no memory".to_owned()
    })?;
    bench.xen.console_ring()?;
    let (said, next) = bench.xen.console_ring_from(0)?;
    let (_, end) = bench.xen.console_ring_from(next)?;
    ensure(!said.is_empty() && end.wrapping_sub(next) <= 4096, || {
        "the console ring cannot be read on".to_owned()
    })?;
    Ok(())
}

fn unknown_domain(bench: &Bench<'_>) -> Outcome {
    let (xen, none) = (bench.xen, Bench::unknown());
    ensure(xen.domain_info(none)?.is_none(), || format!("domain {none} is there"))?;
    let gone = &[Errno::ESRCH];
    refused("pausing", xen.pause_domain(none), gone)?;
    refused("unpausing", xen.unpause_domain(none), gone)?;
    refused("destroying", xen.destroy_domain(none), gone)?;
    refused("shutting down", xen.shutdown_domain(none, ShutdownReason::PowerOff), gone)?;
    refused("a trigger", xen.send_trigger(none, Trigger::Power, 0), gone)?;
    refused("CPUs", xen.set_max_vcpus(none, 1), gone)?;
    refused("a memory limit", xen.set_max_memory(none, MEMORY), gone)?;
    refused("a memory target", xen.set_pod_target(none, MEMORY), gone)?;
    refused("a memory map limit", xen.set_memory_map_limit(none, MEMORY), gone)?;
    refused("paging memory", xen.set_paging_memory(none, MEMORY), gone)?;
    refused("a TSC mode", xen.set_tsc_mode(none, TscMode::Default), gone)?;
    refused("a time offset", xen.set_time_offset(none, 60), gone)?;
    refused("a CPUID policy", xen.apply_cpuid_policy(none, &CpuidPolicy::default()), gone)?;
    refused("reading a parameter", xen.hvm_param(none, HvmParam::StorePfn), gone)?;
    refused("setting a parameter", xen.set_hvm_param(none, HvmParam::HpetEnabled, 1), gone)?;
    refused("a port", xen.alloc_unbound_port(none, DomId::DOM0), gone)?;
    let stub = bench.make(DomainKind::Pv)?;
    refused("an unknown stubdomain", xen.set_target(none, stub), gone)?;
    refused("an unknown target", xen.set_target(stub, none), gone)
}

fn new_domain(bench: &Bench<'_>) -> Outcome {
    for kind in [DomainKind::Pv, Bench::HVM] {
        let domid = bench.make(kind)?;
        let info = bench.xen.domain_info(domid)?;
        let fits = info.as_ref().is_some_and(|info| {
            info.uuid == Bench::UUID
                && info.hvm == kind.is_hvm()
                && info.state.paused
                && !info.state.dying
                && info.state.shutdown.is_none()
                && info.memory.get() == 0
                && info.max_vcpus == 0
        });
        ensure(fits, || format!("{kind:?} came out as {info:?}"))?;
        let all = bench.xen.list_domains()?;
        ensure(all.iter().any(|info| info.domid == domid), || format!("domain {domid} is not listed"))?;
        bench.xen.destroy_domain(domid)?;
        bench.gone(domid)?;
        refused("destroying again", bench.xen.destroy_domain(domid), &[Errno::ESRCH])?;
    }
    Ok(())
}

fn taken_number(bench: &Bench<'_>) -> Outcome {
    let first = bench.make(DomainKind::Pv)?;
    let mut spec = DomainSpec::new(DomainKind::Pv, Bench::UUID, 1);
    spec.domid = Some(first);
    refused("a number that is taken", bench.xen.create_domain(&spec), &[Errno::EEXIST])?;
    let second = bench.make(DomainKind::Pv)?;
    ensure(first != second, || format!("two domains are {first}"))
}

fn cpus(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make(DomainKind::Pv)?;
    refused("two CPUs instead of one", bench.xen.set_max_vcpus(domid, 2), &[Errno::EINVAL])?;
    bench.xen.set_max_vcpus(domid, 1)?;
    let made = bench.xen.domain_info(domid)?.map(|info| info.max_vcpus);
    ensure(made == Some(1), || format!("{made:?} CPUs were made"))?;
    bench.xen.set_vcpu_affinity(domid, 0, &CpuMap::all())?;
    bench.xen.set_vcpu_affinity(domid, 0, &CpuMap::from_iter([0]))?;
    refused(
        "no CPU to run on",
        bench.xen.set_vcpu_affinity(domid, 0, &CpuMap::from_iter([])),
        &[Errno::EINVAL],
    )?;
    let none = bench.xen.set_vcpu_affinity(domid, 1, &CpuMap::all());
    refused("affinity of a second CPU", none, &[Errno::ESRCH, Errno::EINVAL])?;
    let none = bench.xen.set_vcpu_soft_affinity(domid, 1, &CpuMap::all());
    refused("soft affinity of a second CPU", none, &[Errno::ESRCH, Errno::EINVAL])?;
    bench.xen.set_vcpu_soft_affinity(domid, 0, &CpuMap::from_iter([0]))?;
    let all = bench.xen.vcpus(domid)?;
    let sets: Vec<Vec<u16>> = all.iter().flat_map(|cpu| [&cpu.hard, &cpu.soft]).map(first_cpus).collect();
    ensure(sets == [[0], [0]], || format!("its CPUs are {all:?}"))?;
    bench.xen.node_affinity(domid).map(drop)?;
    let topology = bench.xen.topology()?;
    let online = usize::try_from(bench.xen.host_info()?.cpus).unwrap_or(0);
    ensure(topology.cpus.len() == online && !topology.nodes.is_empty(), || format!("{topology:?}"))
}

/// A set of CPUs without those that no host of the suite has.
fn first_cpus(map: &CpuMap) -> Vec<u16> {
    map.iter().filter(|cpu| *cpu < 64).collect()
}

fn ports(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make(DomainKind::Pv)?;
    bench.xen.set_max_vcpus(domid, 1)?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let port = bench.xen.alloc_unbound_port(domid, DomId::DOM0)?;
        ensure(port.get() > 0 && seen.insert(port), || format!("port {port} was given twice, or is 0"))?;
    }
    let free = 1023 - seen.len();
    for _ in 0..free {
        bench.xen.alloc_unbound_port(domid, DomId::DOM0)?;
    }
    refused("a port beyond the limit", bench.xen.alloc_unbound_port(domid, DomId::DOM0), &[Errno::ENOSPC])
}

fn params(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make(Bench::HVM)?;
    bench.xen.set_max_vcpus(domid, 1)?;
    for (param, value) in [(HvmParam::HpetEnabled, 1), (HvmParam::TimerMode, 1), (HvmParam::VptAlign, 1)] {
        bench.xen.set_hvm_param(domid, param, value)?;
        let kept = bench.xen.hvm_param(domid, param)?;
        ensure(kept == value, || format!("{param:?} is {kept} and not {value}"))?;
    }
    let pv = bench.make(DomainKind::Pv)?;
    bench.xen.set_max_vcpus(pv, 1)?;
    refused("a PV domain's parameter", bench.xen.hvm_param(pv, HvmParam::StorePfn), &[Errno::EINVAL])?;
    let set = bench.xen.set_hvm_param(pv, HvmParam::HpetEnabled, 1);
    refused("setting a PV domain's parameter", set, &[Errno::EINVAL])?;
    refused(
        "the power button of a PV domain",
        bench.xen.send_trigger(pv, Trigger::Power, 0),
        &[Errno::EINVAL],
    )
}

fn altp2m(bench: &Bench<'_>) -> Outcome {
    let mut spec = DomainSpec::new(Bench::HVM, Bench::UUID, 1);
    spec.altp2m = Altp2m::External;
    match bench.keep(bench.xen.create_domain(&spec)) {
        Ok(domid) => {
            let kept = bench.xen.hvm_param(domid, HvmParam::Altp2m)?;
            ensure(kept == Altp2m::External as u64, || format!("the mode is {kept}"))
        }
        // From 4.19 on Xen looks whether the processor can do it.
        error => refused("a mode that the processor lacks", error, &[Errno::EINVAL, Errno::EOPNOTSUPP]),
    }
}

fn pausing(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make(DomainKind::Pv)?;
    let paused = || -> Result<bool, XenError> {
        Ok(bench.xen.domain_info(domid)?.is_some_and(|info| info.state.paused))
    };
    bench.xen.pause_domain(domid)?;
    bench.xen.unpause_domain(domid)?;
    ensure(paused()?, || "the first of two pausings was forgotten".to_owned())?;
    bench.xen.unpause_domain(domid)?;
    ensure(!paused()?, || "the domain is still paused".to_owned())?;
    refused("unpausing what is not paused", bench.xen.unpause_domain(domid), &[Errno::EINVAL])?;
    bench.xen.pause_domain(domid)?;
    ensure(paused()?, || "the domain is not paused".to_owned())?;
    refused("pausing domain 0 from domain 0", bench.xen.pause_domain(DomId::DOM0), &[Errno::EINVAL])
}

fn set_up(bench: &Bench<'_>) -> Outcome {
    for kind in [DomainKind::Pv, Bench::HVM] {
        let domid = bench.make_ready(kind, MEMORY)?;
        let limit = bench.xen.domain_info(domid)?.map(|info| info.max_memory);
        ensure(limit == Some(MEMORY + KiB(1024)), || format!("the memory limit is {limit:?}"))?;
        bench.xen.set_tsc_mode(domid, TscMode::Default)?;
        bench.xen.set_time_offset(domid, 3600)?;
        if kind.is_hvm() {
            bench.xen.set_paging_memory(domid, KiB(1024))?;
        } else {
            bench.xen.set_memory_map_limit(domid, MEMORY)?;
            refused(
                "paging memory of a PV domain",
                bench.xen.set_paging_memory(domid, KiB(1024)),
                PV_PAGING,
            )?;
        }
        bench.xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
        // Without the hypervisor bit, and with the brand string's leaf left as it is.
        let no_hypervisor =
            format!("0{}", "x".repeat(31)).parse().map_err(|_| super::Broken("bits".to_owned()))?;
        let leaf = CpuidLeaf { leaf: 1, subleaf: None, registers: [None, None, Some(no_hypervisor), None] };
        let same = CpuidLeaf { leaf: 0x8000_0002, subleaf: None, registers: [const { None }; 4] };
        let policy = CpuidPolicy { leaves: vec![leaf, same], ..CpuidPolicy::default() };
        bench.xen.apply_cpuid_policy(domid, &policy)?;
    }
    Ok(())
}

/// With shadow paging in Xen, the number says that the domain is not in shadow mode; without, that there is no such
/// call.
const PV_PAGING: &[Errno] = &[Errno::EINVAL, Errno::EOPNOTSUPP];

fn shutting_down(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make_ready(Bench::HVM, MEMORY)?;
    bench.xen.shutdown_domain(domid, ShutdownReason::Crash)?;
    bench.soon("the domain has shut down", || {
        let state = bench.xen.domain_info(domid)?.map(|info| info.state.shutdown);
        Ok(state == Some(Some(ShutdownReason::Crash)))
    })
}

fn target(bench: &Bench<'_>) -> Outcome {
    let guest = bench.make(Bench::HVM)?;
    let stub = bench.make(DomainKind::Pv)?;
    refused("a domain as its own target", bench.xen.set_target(stub, stub), &[Errno::EINVAL])?;
    bench.xen.set_target(stub, guest)?;
    refused("a second target", bench.xen.set_target(stub, guest), &[Errno::EINVAL])?;
    bench.xen.destroy_domain(guest)?;
    // The stubdomain holds on to it.
    let held = bench.xen.domain_info(guest)?;
    ensure(held.is_some_and(|info| info.state.dying), || {
        "a target did not wait for its stubdomain".to_owned()
    })?;
    bench.xen.destroy_domain(stub)?;
    bench.gone(guest)
}

fn missing_file(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make_ready(DomainKind::Pv, MEMORY)?;
    let mut build = bench.pv_build(domid, MEMORY)?;
    build.kernel = Blob::File("/nonexistent/vmlinuz".into());
    let error = bench.xen.build_pv(domid, &build);
    ensure(matches!(&error, Err(XenError::ReadFile { what: "kernel", .. })), || {
        format!("a missing kernel gave {error:?}")
    })?;
    build.kernel = Blob::Bytes(Vec::new());
    let error = bench.xen.build_pv(domid, &build);
    ensure(matches!(&error, Err(XenError::Invalid { .. })), || format!("an empty kernel gave {error:?}"))
}

fn built_hvm(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make_ready(Bench::HVM, MEMORY)?;
    bench.xen.set_hvm_param(domid, HvmParam::HpetEnabled, 1)?;
    bench.xen.set_hvm_param(domid, HvmParam::TimerMode, 1)?;
    bench.xen.set_tsc_mode(domid, TscMode::Default)?;
    bench.xen.set_paging_memory(domid, KiB(2048))?;
    bench.xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    let build = bench.hvm_build(domid, MEMORY)?;
    let built = bench.xen.build_hvm(domid, &build)?;
    for (param, value) in [
        (HvmParam::StorePfn, built.store_gfn.get()),
        (HvmParam::ConsolePfn, built.console_gfn.get()),
        (HvmParam::StoreEvtchn, build.store.port.get().into()),
        (HvmParam::ConsoleEvtchn, build.console.port.get().into()),
    ] {
        let found = bench.xen.hvm_param(domid, param)?;
        ensure(found == value && value != 0, || format!("{param:?} is {found} and not {value}"))?;
    }
    let info = bench.xen.domain_info(domid)?;
    let fits = info.as_ref().is_some_and(|info| {
        // Without the video memory and the hole below 1 MiB, with some special pages.
        let around = KiB::from_mib(60).get() - 128..KiB::from_mib(61).get();
        around.contains(&info.memory.get()) && info.online_vcpus == 1 && info.state.paused && info.hap
    });
    ensure(fits, || format!("it came out as {info:?}"))
}

/// An HVM domain with shadow paging, where Xen was built with it (Debian's security updates leave it out).
fn shadow_or_hap(bench: &Bench<'_>) -> Result<DomainKind, super::Broken> {
    let shadow = bench.xen.host_info()?.capabilities.shadow;
    Ok(if shadow { Bench::SHADOW } else { Bench::HVM })
}

fn special_hvm(bench: &Bench<'_>) -> Outcome {
    let kind = shadow_or_hap(bench)?;
    if kind != Bench::SHADOW {
        refused("shadow paging", bench.make(Bench::SHADOW), &[Errno::EOPNOTSUPP])?;
    }
    let domid = bench.make_ready(kind, MEMORY)?;
    bench.xen.set_paging_memory(domid, KiB(4096))?;
    let mut build = bench.hvm_build(domid, MEMORY)?;
    build.smbios = Some(Blob::Bytes(vec![0x5a; 300]));
    build.acpi = Some(Blob::Bytes(vec![0xa5; 5000]));
    // So large a hole that a part of the memory lies above 4 GiB.
    build.mmio_hole = Some(KiB::from_mib(4096 - 32));
    build.apic = false;
    let built = bench.xen.build_hvm(domid, &build)?;
    let lengths = (built.smbios.map(|at| at.length), built.acpi.map(|at| at.length));
    ensure(lengths == (Some(300), Some(5000)), || format!("the tables came out as {built:?}"))?;
    let info = bench.xen.domain_info(domid)?;
    let hap = kind != Bench::SHADOW;
    ensure(info.as_ref().is_some_and(|info| info.hap == hap && info.hvm), || {
        format!("it came out as {info:?}")
    })
}

fn ballooned_hvm(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make_ready(Bench::HVM, MEMORY)?;
    bench.xen.set_paging_memory(domid, KiB(2048))?;
    let mut build = bench.hvm_build(domid, MEMORY)?;
    build.memory.target = KiB::from_mib(36);
    bench.xen.build_hvm(domid, &build)?;
    let memory = bench.xen.domain_info(domid)?.map_or(0, |info| info.memory.get());
    let around = KiB::from_mib(31).get()..KiB::from_mib(33).get();
    ensure(around.contains(&memory), || format!("it holds {memory} KiB and not about 32 MiB"))?;
    bench.xen.set_pod_target(domid, KiB::from_mib(48))?;
    let pv = bench.make_ready(DomainKind::Pv, MEMORY)?;
    let none = bench.xen.set_pod_target(pv, MEMORY);
    refused("a memory target of a PV domain", none, &[Errno::EINVAL, Errno::ENOSYS])
}

fn threads(bench: &Bench<'_>) -> Outcome {
    let fourth = shadow_or_hap(bench)?;
    std::thread::scope(|scope| {
        let builders = [Bench::HVM, DomainKind::Pv, Bench::HVM, fourth].map(|kind| {
            scope.spawn(move || -> Outcome {
                let domid = bench.make_ready(kind, MEMORY)?;
                if kind.is_hvm() {
                    bench.xen.set_paging_memory(domid, KiB(2048))?;
                    let build = bench.hvm_build(domid, MEMORY)?;
                    bench.xen.build_hvm(domid, &build)?;
                } else {
                    bench.channel(domid)?;
                }
                refused("an unknown domain", bench.xen.pause_domain(Bench::unknown()), &[Errno::ESRCH])?;
                let info = bench.xen.domain_info(domid)?;
                ensure(info.is_some_and(|info| info.hvm == kind.is_hvm()), || {
                    format!("domain {domid} is another")
                })?;
                bench.xen.destroy_domain(domid)?;
                bench.gone(domid)
            })
        });
        builders.into_iter().try_for_each(|builder| {
            builder.join().unwrap_or_else(|_| Err(super::Broken("a thread panicked".to_owned())))
        })
    })
}

fn built_pv(bench: &Bench<'_>) -> Outcome {
    let memory = KiB::from_mib(96);
    let domid = bench.make_ready(DomainKind::Pv, memory)?;
    bench.xen.set_memory_map_limit(domid, memory)?;
    bench.xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    let build = bench.pv_build(domid, memory)?;
    let built = bench.xen.build_pv(domid, &build)?;
    ensure(built.store_frame != built.console_frame, || {
        format!("both rings are frame {}", built.store_frame)
    })?;
    let info = bench.xen.domain_info(domid)?;
    let fits = info.as_ref().is_some_and(|info| {
        info.memory == memory && info.online_vcpus == 1 && info.state.paused && !info.hvm
    });
    ensure(fits, || format!("it came out as {info:?}"))
}

fn built_pvh(bench: &Bench<'_>) -> Outcome {
    let memory = KiB::from_mib(96);
    let domid = bench.make_ready(DomainKind::Pvh, memory)?;
    bench.xen.set_hvm_param(domid, HvmParam::TimerMode, 1)?;
    bench.xen.set_paging_memory(domid, KiB::from_mib(2))?;
    bench.xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    let build = bench.pv_build(domid, memory)?;
    let built = bench.xen.build_pvh(domid, &build)?;
    let param = bench.xen.hvm_param(domid, HvmParam::StorePfn)?;
    ensure(Gfn(param) == built.store_frame, || format!("the rings are not at {built:?}"))?;
    let info = bench.xen.domain_info(domid)?;
    let fits = info.as_ref().is_some_and(|info| {
        let all = memory..memory + KiB(1024);
        all.contains(&info.memory) && info.online_vcpus == 1 && info.state.paused && info.hvm && info.hap
    });
    ensure(fits, || format!("it came out as {info:?}"))
}

fn too_much_memory(bench: &Bench<'_>) -> Outcome {
    let memory = KiB::from_mib(bench.xen.host_info()?.free_memory.mib() + 64);
    let domid = bench.make_ready(DomainKind::Pv, memory)?;
    let mut build = bench.pv_build(domid, memory)?;
    // With a claim Xen says no before any memory is given.
    build.claim = true;
    refused("more memory than there is", bench.xen.build_pv(domid, &build), &[Errno::ENOMEM])?;
    let held = bench.xen.domain_info(domid)?.map(|info| info.memory);
    ensure(held == Some(KiB(0)), || format!("the domain holds {held:?}"))
}

fn beyond_its_limit(bench: &Bench<'_>) -> Outcome {
    let domid = bench.make_ready(DomainKind::Pv, KiB::from_mib(32))?;
    let build = bench.pv_build(domid, KiB::from_mib(96))?;
    refused("more memory than the domain may hold", bench.xen.build_pv(domid, &build), &[Errno::ENOMEM])
}
