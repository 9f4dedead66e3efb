//! The contract suites of the ground crates, kept by the real xenstored and the real Xen. Fakes keep them in unit tests.

use anyhow::Result;
use vm_report::HostState;

use super::Case;
use crate::harness::command::run_within;
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Bare, "contracts::xenstored_keeps_the_contract_of_xenstore", xenstore),
    Case::on(HostState::Daemons, "contracts::xen_keeps_the_contract_of_the_hypervisor", xen),
];

/// Files of which guests are made.
const FILES: [&str; 3] = [
    "/usr/lib/xen-4.17/boot/hvmloader",
    "/usr/share/seabios/bios-256k.bin",
    "/usr/lib/outrigger/stubdom/vmlinuz",
];

fn xenstore() -> Result<()> {
    run_within(seconds(180), "xenstore-contract", &[])?.good().map(drop)
}

fn xen() -> Result<()> {
    run_within(seconds(180), "xen-contract", &FILES)?.good().map(drop)
}
