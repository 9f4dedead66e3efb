//! The conformance suite of the ground crates, kept by the real xenstored and the real Xen. Fakes keep them in unit tests.

use anyhow::Result;
use vm_report::HostState;

use super::Case;
use crate::harness::command::run_within;
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Bare, "conformance::xenstored_behaves_as_its_protocol_says", xenstore),
    Case::on(HostState::Daemons, "conformance::xen_behaves_as_the_hypervisor_trait_says", xen),
];

/// Files of which guests are made.
const FILES: [&str; 3] = [
    "/usr/lib/xen-4.17/boot/hvmloader",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/lib/outrigger/stubdom/vmlinuz",
];

fn xenstore() -> Result<()> {
    run_within(seconds(180), "xenstore-conformance", &["--throw-away-host"])?.good().map(drop)
}

fn xen() -> Result<()> {
    run_within(seconds(180), "xen-conformance", &FILES)?.good().map(drop)
}
