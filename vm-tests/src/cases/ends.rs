//! How guests end: the ACPI button for one without PV drivers, and what is kept when the configuration says so.

use anyhow::{Result, ensure};
use api::types::{Guest, State};
use xen_types::DomId;

use super::Case;
use crate::harness::command::{XL, outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::{Made, list, must_run};

pub(super) const CASES: &[Case] = &[
    Case::new("ends::acpi_button_shuts_down_a_guest_without_pv_drivers", acpi_button),
    Case::new("ends::powered_off_guest_is_preserved_when_asked", preserved),
    Case::new("ends::rebooting_guest_is_renamed_and_restarted_when_asked", renamed),
];

fn acpi_button() -> Result<()> {
    let (guest, mut console) = GuestConfig::power("button").boot()?;
    outrigger(&["reboot", "button"])?.refused(1, &["no PV drivers"])?;
    let mut events = Events::subscribe()?;
    let said = outrigger(&["shutdown", "--wait=60", "button"])?.good()?.stdout;
    ensure!(said.contains("ACPI"), "{said}");
    console.wait_for("TESTGUEST power button", 10)?;
    events.wait_for("button", "powered-off", 30)?;
    guest.must_be_gone()
}

fn preserved() -> Result<()> {
    let (guest, mut console) = GuestConfig::power("kept").line("on_poweroff='preserve'").boot()?;
    let mut events = Events::subscribe()?;
    console.type_text("p")?;
    events.wait_for("kept", "powered-off", 60)?;
    events.wait_for("kept", "preserved", 30)?;
    must_be_shut_down("kept", guest.guest.domid)?;
    let listed = run(XL, &["list", "kept"])?.good()?.stdout;
    ensure!(listed.contains("---s--"), "xl list says otherwise: {listed}");
    // The console still tells what it said last.
    Console::serial(&guest, 0)?.wait_for("TESTGUEST powers off", 10)?;
    guest.destroy()
}

fn must_be_shut_down(name: &str, domid: DomId) -> Result<Guest> {
    let guest = must_run(name)?;
    ensure!(guest.domid == domid && guest.state == State::ShutDown, "{guest:?}");
    Ok(guest)
}

fn renamed() -> Result<()> {
    let config = GuestConfig::power("phoenix2").line("on_reboot='rename-restart'");
    let (guest, mut console) = config.boot()?;
    let mut events = Events::subscribe()?;
    console.type_text("r")?;
    events.wait_for("phoenix2", "rebooted", 60)?;
    events.wait_for("phoenix2", "created", 120)?;
    let again = restarted_beside(&guest)?;
    let mut console = config.booted(&again)?;
    console.type_text("p")?;
    events.wait_for("phoenix2", "destroyed", 60)?;
    again.leave();
    ensure!(list()?.len() == 1, "it has not ended for itself: {:?}", list()?);
    guest.destroy()
}

/// The guest that has started anew. The old one is kept under another name.
fn restarted_beside(old: &Made) -> Result<Made> {
    let domid = old.guest.domid;
    let kept = must_be_shut_down(&format!("phoenix2-{domid}"), domid)?;
    let again = Made::named("phoenix2")?;
    ensure!(again.guest.domid != kept.domid && again.guest.uuid != kept.uuid, "{again:?}");
    Ok(again)
}
