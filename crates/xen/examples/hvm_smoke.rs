//! Builds an HVM domain in this dom0, tells of it, and destroys it.
//!
//! Usage: `hvm_smoke HVMLOADER FIRMWARE [MIB [run]]`. With `run` hvmloader gets ten seconds to say something through Xen's
//! console (Xen's option `guest_loglvl=all`); without a device model it does not come far.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use xen::{
    Blob, Channel, CpuidPolicy, DomainKind, DomainSpec, GuestMemory, HvmBuild, HvmParam, Hypervisor,
    RealHypervisor, TscMode,
};
use xen_types::{DomId, EventPort, Gfn, KiB};
use xenstore::{Access, Permissions, Store as _, Xenstore, XsPath};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let hvmloader = arguments.next().context("no hvmloader was named")?;
    let firmware = arguments.next().context("no firmware was named")?;
    let mib = arguments.next().map_or(Ok(64), |mib| mib.parse()).context("the memory is a number of MiB")?;
    let runs = arguments.next().is_some();
    let xen = RealHypervisor::open()?;
    let version = xen.version_info()?;
    println!("Xen {}.{}{}: {}", version.major, version.minor, version.extra, version.capabilities);
    let before = xen.host_info()?;
    println!("{before:?}");

    let spec = DomainSpec::new(DomainKind::Hvm { hap: true, nested: false }, *b"hvm_smoke guest!", 2);
    let domid = xen.create_domain(&spec)?;
    let result = build(&xen, domid, KiB::from_mib(mib), hvmloader, firmware)
        .and_then(|channel| if runs { run(&xen, domid, channel) } else { Ok(()) });
    let started = Instant::now();
    xen.destroy_domain(domid)?;
    println!("destroyed in {} ms", started.elapsed().as_millis());
    result?;
    while xen.domain_info(domid)?.is_some() {
        ensure!(started.elapsed().as_secs() < 20, "domain {domid} is still there");
    }
    let after = xen.host_info()?;
    println!("free before {}, after {}", before.free_memory, after.free_memory);
    Ok(())
}

fn build(
    xen: &dyn Hypervisor,
    domid: DomId,
    memory: KiB,
    hvmloader: String,
    firmware: String,
) -> anyhow::Result<(Gfn, EventPort)> {
    let started = Instant::now();
    xen.set_max_vcpus(domid, 2)?;
    xen.set_max_memory(domid, memory + KiB(1024))?;
    let channel =
        || xen.alloc_unbound_port(domid, DomId::DOM0).map(|port| Channel { port, peer: DomId::DOM0 });
    let (store, console) = (channel()?, channel()?);
    xen.set_hvm_param(domid, HvmParam::HpetEnabled, 1)?;
    xen.set_hvm_param(domid, HvmParam::TimerMode, 1)?;
    xen.set_tsc_mode(domid, TscMode::Default)?;
    xen.set_paging_memory(domid, KiB(3072))?;
    xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    let built = xen.build_hvm(
        domid,
        &HvmBuild {
            hvmloader: Blob::File(hvmloader.into()),
            firmware: Blob::File(firmware.into()),
            smbios: None,
            acpi: None,
            memory: GuestMemory { target: memory, max: memory, video: KiB::from_mib(16) },
            max_vcpus: 2,
            online_vcpus: 1,
            apic: true,
            mmio_hole: None,
            claim: false,
            store,
            console,
        },
    )?;
    println!("domain {domid} built in {} ms: {built:?}", started.elapsed().as_millis());
    let info = xen.domain_info(domid)?.context("the domain is gone")?;
    println!("{}  {info:?}", info.state);
    for param in
        [HvmParam::StorePfn, HvmParam::IoreqServerPfn, HvmParam::NrIoreqServerPages, HvmParam::IdentPt]
    {
        println!("{param:?} = {:#x}", xen.hvm_param(domid, param)?);
    }
    ensure!(info.hvm && info.state.paused && info.memory > KiB(0), "the domain is not what it should be");
    Ok((built.store_gfn, store.port))
}

fn run(xen: &dyn Hypervisor, domid: DomId, (gfn, port): (Gfn, EventPort)) -> anyhow::Result<()> {
    // hvmloader asks xenstore for its options.
    let store = Xenstore::open()?;
    let path = |name: &str| format!("/local/domain/{domid}{name}").parse::<XsPath>();
    store.mkdir(&path("")?)?;
    store.set_perms(&path("")?, &Permissions::owned_by(DomId::DOM0).allow(domid, Access::Read))?;
    store.write(&path("/hvmloader/bios")?, b"seabios")?;
    store.write(&path("/hvmloader/allow-memory-relocate")?, b"0")?;
    store.write(&path("/domid")?, domid.to_string().as_bytes())?;
    store.introduce(domid, gfn, port)?;
    xen.unpause_domain(domid)?;
    let started = Instant::now();
    while started.elapsed().as_secs() < 10 {
        let state = xen.domain_info(domid)?.context("the domain is gone")?.state;
        if state.shutdown.is_some() {
            println!("it shut down: {state}");
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    let ring = xen.console_ring()?;
    let own = format!("(d{domid})");
    String::from_utf8_lossy(&ring)
        .lines()
        .filter(|line| line.starts_with(&own))
        .for_each(|line| println!("{line}"));
    println!("{:?}", xen.domain_info(domid)?);
    store.rm(&path("")?)?;
    Ok(())
}
