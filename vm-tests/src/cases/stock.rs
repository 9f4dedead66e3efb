//! Stock Xen tools beside ours: they are at ease with our domains.

use anyhow::{Result, ensure};

use super::Case;
use crate::harness::command::{outrigger, run};
use crate::harness::events::Events;
use crate::harness::guest::{Made, hello};

pub(super) const CASES: &[Case] = &[
    Case::new("stock::xl_list_shows_guest_and_stubdomain", xl_list),
    Case::new("stock::xl_destroy_ends_guest_and_stubdomain", xl_destroy),
];

const XL: &str = "/usr/lib/xen-4.17/bin/xl";

fn xl_list() -> Result<()> {
    let guest = Made::create(&hello("shown", "")?, &[])?;
    let text = run(XL, &["list"])?.good()?.stdout;
    for (name, domid) in [("shown", guest.guest.domid), ("shown-dm", guest.stub()?)] {
        ensure!(
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(name) && words.next() == Some(&domid.to_string())
            }),
            "xl list does not show {name}:\n{text}"
        );
    }
    let domid = run(XL, &["domid", "shown"])?.good()?.stdout;
    ensure!(domid.trim() == guest.guest.domid.to_string(), "xl domid says {domid}");
    run(XL, &["list", "-v"])?.good()?;
    run(XL, &["vcpu-list", "shown"])?.good()?;
    run(XL, &["block-list", "shown"])?.good()?;
    guest.destroy()
}

fn xl_destroy() -> Result<()> {
    let guest = Made::create(&hello("stocked", "")?, &[])?;
    let mut events = Events::subscribe()?;
    run(XL, &["destroy", "stocked"])?.good()?;
    // The daemon clears what xl does not know of.
    events.wait_for("stocked", "destroyed", 60)?;
    ensure!(outrigger(&["domid", "stocked"])?.status == 4, "the guest is still listed");
    guest.leave();
    Ok(())
}
