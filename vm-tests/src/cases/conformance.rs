//! The conformance suite of the ground crates, kept by the real xenstored and the real Xen. Fakes keep them in unit tests.

use std::fs::File;

use anyhow::{Result, ensure};
use vm_report::{HostState, XENSTORED};

use super::Case;
use crate::harness::command::{outrigger, run, run_within};
use crate::harness::guest::scratch;
use crate::harness::{idle, seconds};

pub(super) const CASES: &[Case] = &[
    Case::on(HostState::Bare, "conformance::xenstored_behaves_as_its_protocol_says", xenstore),
    Case::on(HostState::Bare, "conformance::xenstored_in_c_behaves_as_its_protocol_says", xenstore)
        .on_c_xenstored(),
    Case::on(HostState::LinuxGuest, "conformance::xenstored_treats_a_guest_as_its_protocol_says", guest),
    Case::on(HostState::Daemons, "conformance::xen_behaves_as_the_hypervisor_trait_says", xen),
];

/// Files of which guests are made, besides hvmloader.
const FILES: [&str; 2] = ["/usr/share/seabios/bios-256k.bin", "/usr/lib/outrigger/stubdom/vmlinuz"];

/// The suite and the libraries that it needs, from dom0's root folder.
const PROGRAM: [&str; 4] = [
    "usr/bin/xenstore-conformance",
    "lib64/ld-linux-x86-64.so.2",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib/x86_64-linux-gnu/libgcc_s.so.1",
];

fn xenstore() -> Result<()> {
    // What the host was told to start: not what the suite takes it for.
    let daemon = std::env::var(XENSTORED).unwrap_or_default();
    let arguments = ["--throw-away-host", "--xenstored", &daemon];
    run_within(seconds(180), "xenstore-conformance", &arguments)?.good()?;
    // What the suite finds out by itself is the same. In dom0 no case for a guest does anything.
    let found = run_within(seconds(180), "xenstore-conformance", &["--guest"])?;
    let wanted = if daemon == "ocaml" { "xenstored: OCaml" } else { "xenstored: C" };
    ensure!(found.status == 1 && found.stdout.starts_with(wanted), "{found}");
    Ok(())
}

/// The suite's part for an unprivileged domain, in the Linux guest: the program and its libraries are on a disk, as a tar
/// archive.
fn guest() -> Result<()> {
    let shell = &mut idle::shell()?;
    let archive = scratch("conformance.tar", &[])?.display().to_string();
    run("tar", &[&["-c", "-h", "-f", &archive, "-C", "/"][..], &PROGRAM].concat())?.good()?;
    // Whole blocks of any backend.
    let file = File::options().write(true).open(&archive)?;
    file.set_len(file.metadata()?.len().next_multiple_of(1 << 20))?;
    outrigger(&["block-attach", idle::NAME, &format!("{archive},raw,xvdd,r")])?.good()?;
    shell.until("[ -b /dev/xvdd ]", 30)?;
    shell.good("tar -x -f /dev/xvdd -C /", 60)?;
    let daemon = std::env::var(XENSTORED).unwrap_or_default();
    shell.good(&format!("/{} --guest --xenstored {daemon}", PROGRAM[0]), 180)?;
    outrigger(&["block-detach", idle::NAME, "xvdd"])?.good().map(drop)
}

fn xen() -> Result<()> {
    let hvmloader = xen::release::BUILT.hvmloader();
    let files: Vec<&str> = std::iter::once(hvmloader.as_str()).chain(FILES).collect();
    run_within(seconds(180), "xen-conformance", &files)?.good().map(drop)
}
