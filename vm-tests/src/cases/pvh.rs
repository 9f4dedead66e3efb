//! Stubdomains that are PVH domains.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vm_report::HostState;
use xen::{DomainInfo, Hypervisor, RealHypervisor};

use super::Case;
use crate::harness::config::GuestConfig;
use crate::harness::events::Events;
use crate::harness::guest::Made;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Daemons, "pvh::hello_guest_talks_and_echoes", talks)
        .since_xen(4, 19)
        .on_each_debian(),
    Case::on(HostState::Daemons, "pvh::rounds_leave_nothing", rounds).since_xen(4, 19),
    Case::new("pvh::linux_guest_uses_emulated_and_pv_disks", linux).since_xen(4, 19),
];

/// The same guest, with a stubdomain of this kind.
fn with(config: GuestConfig, kind: &str) -> GuestConfig {
    config.set("stubdomain_type", &format!("'{kind}'"))
}

/// What Xen knows of the guest's stubdomain.
fn stub_of(guest: &Made) -> Result<DomainInfo> {
    let info = RealHypervisor::open()?.domain_info(guest.stub()?)?;
    info.context("Xen does not know the stubdomain")
}

fn talks() -> Result<()> {
    for kind in ["pv", "pvh"] {
        let (took, stub) = talks_through(kind)?;
        ensure!(stub.hvm == (kind == "pvh") && stub.hap == stub.hvm, "the stubdomain is {stub:?}");
        eprintln!("{kind}: created in {:.2} s, {} of memory", took.as_secs_f64(), stub.memory);
    }
    Ok(())
}

/// How long the create took, and what its stubdomain was.
fn talks_through(kind: &str) -> Result<(Duration, DomainInfo)> {
    let config = with(GuestConfig::hello(kind), kind);
    let begun = Instant::now();
    let guest = config.create()?;
    let took = begun.elapsed();
    config.booted(&guest)?.echo("through its stubdomain")?;
    let stub = stub_of(&guest)?;
    guest.destroy()?;
    Ok((took, stub))
}

/// A stubdomain that goes away gives back what it has mapped: what is left is noticed after the case.
fn rounds() -> Result<()> {
    for _ in 0..3 {
        let (guest, mut console) = with(GuestConfig::hello("again"), "pvh").boot()?;
        console.echo("once more")?;
        guest.destroy()?;
    }
    Ok(())
}

/// Reads all of its PV disk, and powers off.
const READS: &str = "cat /dev/xvda >/dev/null && echo XVDA=ok; poweroff -f\n";

/// Firmware and boot loader read by the emulated controller, for which QEMU maps many pages of the guest.
fn linux() -> Result<()> {
    let mut events = Events::subscribe()?;
    let (guest, mut console) = with(GuestConfig::linux("tux", READS), "pvh").boot()?;
    console.wait_for("XVDA=ok", 60)?;
    events.wait_for("tux", "destroyed", 60)?;
    guest.must_be_gone()
}
