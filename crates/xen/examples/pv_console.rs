//! Starts a PV domain and follows its console until it shuts down.
//!
//! Usage: `pv_console own|leave KERNEL RAMDISK [MIB]`. With `own` the console is read through its grant, as a console
//! daemon does; with `leave` it is left to the daemon that the host has.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen::{
    Access, Blob, Channel, CpuidPolicy, DomainKind, DomainSpec, EventChannels, ForeignMemory, GrantTable,
    Hypervisor, KernelBuild, KernelBuilt, RealHypervisor, SharedPages, ShutdownReason,
};
use xen_types::{DomId, EventPort, GrantRef, KiB};
use xenstore::{Store as _, Xenstore, XsPath};

/// Offsets in `struct xencons_interface` (`xen/include/public/io/console.h`).
const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;
/// `GNTTAB_RESERVED_CONSOLE` in `xen/include/public/grant_table.h`.
const CONSOLE_GRANT: GrantRef = GrantRef(0);
const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let own = arguments.next().context("own or leave?")? == "own";
    let kernel = Blob::File(arguments.next().context("no kernel was named")?.into());
    let ramdisk = Blob::File(arguments.next().context("no RAM disk was named")?.into());
    let mib = arguments.next().map_or(Ok(128), |mib| mib.parse()).context("the memory is a number of MiB")?;
    let xen = RealHypervisor::open()?;
    let before = xen.host_info()?.free_memory;
    let domid = xen.create_domain(&DomainSpec::new(DomainKind::Pv, *b"pv_console guest", 1))?;
    let result = run(&xen, domid, own, KiB::from_mib(mib), kernel, ramdisk);
    // xenstored forgets a domain that has been destroyed by itself; what a toolstack wrote for it stays.
    xen.destroy_domain(domid)?;
    Xenstore::open()?.rm(&format!("/local/domain/{domid}").parse::<XsPath>()?)?;
    let reason = result?;
    let started = Instant::now();
    while xen.domain_info(domid)?.is_some() {
        ensure!(started.elapsed() < DEADLINE, "domain {domid} is still there");
    }
    println!("domain {domid} ended: {reason}; free before {before}, after {}", xen.host_info()?.free_memory);
    Ok(())
}

fn run(
    xen: &dyn Hypervisor,
    domid: DomId,
    own: bool,
    memory: KiB,
    kernel: Blob,
    ramdisk: Blob,
) -> anyhow::Result<ShutdownReason> {
    let started = Instant::now();
    xen.set_max_vcpus(domid, 1)?;
    xen.set_max_memory(domid, memory + KiB(1024))?;
    let channel =
        || xen.alloc_unbound_port(domid, DomId::DOM0).map(|port| Channel { port, peer: DomId::DOM0 });
    let (store, console) = (channel()?, channel()?);
    xen.set_memory_map_limit(domid, memory)?;
    xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    let cmdline = "console=hvc0 panic=-1 loglevel=6".to_owned();
    let build = KernelBuild {
        kernel,
        ramdisk: Some(ramdisk),
        cmdline,
        memory,
        max_vcpus: 1,
        claim: false,
        store,
        console,
    };
    let building = Instant::now();
    let built = xen.build_pv(domid, &build)?;
    println!("built in {} ms: {built:?}", building.elapsed().as_millis());
    introduce(domid, &build, &built, !own)?;
    let reader = if own { Some(Reader::open(domid, console.port, &built)?) } else { None };
    xen.unpause_domain(domid)?;
    println!("running after {} ms", started.elapsed().as_millis());
    loop {
        if let Some(reader) = &reader {
            reader.wait_and_print()?;
        }
        let info = xen.domain_info(domid)?.context("the domain is gone")?;
        if let Some(reason) = info.state.shutdown {
            return Ok(reason);
        }
        if started.elapsed() > DEADLINE {
            bail!("the domain did not shut down: {info:?}");
        }
        std::thread::park_timeout(Duration::from_millis(if own { 0 } else { 100 }));
    }
}

/// Tells xenstore of the domain and, when asked to, the console daemon of its console.
fn introduce(
    domid: DomId,
    build: &KernelBuild,
    built: &KernelBuilt,
    with_console: bool,
) -> anyhow::Result<()> {
    let store = Xenstore::open()?;
    let own = [
        ("name", format!("pv_console-{domid}")),
        ("domid", domid.to_string()),
        ("store/port", build.store.port.to_string()),
        ("store/ring-ref", built.store_frame.to_string()),
    ];
    let console = [
        ("console/limit", "1048576".to_owned()),
        ("console/type", "xenconsoled".to_owned()),
        ("console/output", "pty".to_owned()),
        ("console/port", build.console.port.to_string()),
        ("console/ring-ref", built.console_frame.to_string()),
    ];
    let console = console.into_iter().filter(|_| with_console);
    for (name, value) in own.into_iter().chain(console) {
        let path: XsPath = format!("/local/domain/{domid}/{name}").parse()?;
        store.write(&path, value.as_bytes())?;
    }
    store.introduce(domid, built.store_frame, build.store.port)?;
    Ok(())
}

/// The console's ring and event channel.
struct Reader {
    ring: SharedPages,
    events: EventChannels,
    port: EventPort,
}

impl Reader {
    fn open(domid: DomId, remote: EventPort, built: &KernelBuilt) -> anyhow::Result<Self> {
        let ring = GrantTable::open()?.map(domid, &[CONSOLE_GRANT], Access::ReadWrite)?.into_pages();
        // The same page by its frame, as for domains of old that granted nothing.
        let foreign = ForeignMemory::open()?.map(domid, &[built.console_frame], Access::ReadWrite)?;
        ring.store_u32(0, 0x6f75_7472, Ordering::Release);
        ensure!(foreign.load_u32(0, Ordering::Acquire) == 0x6f75_7472, "the two mappings are not one page");
        ring.store_u32(0, 0, Ordering::Release);
        let events = EventChannels::open()?;
        let port = events.bind_interdomain(domid, remote)?;
        Ok(Self { ring, events, port })
    }

    fn wait_and_print(&self) -> anyhow::Result<()> {
        let mut ready = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(500_u16))?;
        while let Some(port) = self.events.pending()? {
            ensure!(port == self.port, "port {port} fired, {} was bound", self.port);
            self.events.unmask(port)?;
        }
        let (cons, prod) = (
            self.ring.load_u32(OUT_CONS, Ordering::Relaxed),
            self.ring.load_u32(OUT_PROD, Ordering::Acquire),
        );
        let length = prod.wrapping_sub(cons);
        ensure!(length <= OUT_SIZE, "the domain's ring claims {length} bytes");
        let mut text = vec![0; length as usize];
        for (index, byte) in (cons..).zip(&mut text) {
            *byte = self.ring.load_u8(OUT + (index % OUT_SIZE) as usize, Ordering::Relaxed);
        }
        for line in String::from_utf8_lossy(&text).lines() {
            println!("console | {line}");
        }
        if length > 0 {
            self.ring.store_u32(OUT_CONS, prod, Ordering::Release);
            self.events.notify(self.port)?;
        }
        Ok(())
    }
}
