//! How guests end: the ACPI button for one without PV drivers, and what is kept when the configuration says so.

use anyhow::{Result, ensure};
use api::types::State;

use super::Case;
use crate::harness::command::{XL, outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::{Made, list, must_run, power};

pub(super) const CASES: &[Case] = &[
    Case::new("ends::acpi_button_shuts_down_a_guest_without_pv_drivers", acpi_button),
    Case::new("ends::powered_off_guest_is_preserved_when_asked", preserved),
    Case::new("ends::rebooting_guest_is_renamed_and_restarted_when_asked", renamed),
];

fn ready(guest: &Made) -> Result<Console> {
    let mut console = Console::serial(guest, 0)?;
    console.wait_for("TESTGUEST ready", 60)?;
    Ok(console)
}

fn acpi_button() -> Result<()> {
    let guest = Made::create(&power("button", "")?, &[])?;
    let mut console = ready(&guest)?;
    outrigger(&["reboot", "button"])?.refused(1, &["no PV drivers"])?;
    let mut events = Events::subscribe()?;
    let said = outrigger(&["shutdown", "--wait=60", "button"])?.good()?.stdout;
    ensure!(said.contains("ACPI"), "{said}");
    console.wait_for("TESTGUEST power button", 10)?;
    events.wait_for("button", "powered-off", 30)?;
    ensure!(outrigger(&["domid", "button"])?.status == 4, "it is still there");
    guest.leave();
    Ok(())
}

fn preserved() -> Result<()> {
    let guest = Made::create(&power("kept", "on_poweroff='preserve'")?, &[])?;
    let mut console = ready(&guest)?;
    let mut events = Events::subscribe()?;
    console.type_text("p")?;
    events.wait_for("kept", "powered-off", 60)?;
    events.wait_for("kept", "preserved", 30)?;
    let still = must_run("kept")?;
    ensure!(still.domid == guest.guest.domid && still.state == State::ShutDown, "{still:?}");
    let listed = run(XL, &["list", "kept"])?.good()?.stdout;
    ensure!(listed.contains("---s--"), "xl list says otherwise: {listed}");
    // The console still tells what it said last.
    Console::serial(&guest, 0)?.wait_for("TESTGUEST powers off", 10)?;
    guest.destroy()
}

fn renamed() -> Result<()> {
    let guest = Made::create(&power("phoenix2", "on_reboot='rename-restart'")?, &[])?;
    let mut console = ready(&guest)?;
    let mut events = Events::subscribe()?;
    console.type_text("r")?;
    events.wait_for("phoenix2", "rebooted", 60)?;
    events.wait_for("phoenix2", "created", 120)?;
    let old = format!("phoenix2-{}", guest.guest.domid);
    let kept = must_run(&old)?;
    ensure!(kept.domid == guest.guest.domid && kept.state == State::ShutDown, "{kept:?}");
    let again = must_run("phoenix2")?;
    ensure!(again.domid != kept.domid && again.uuid != kept.uuid, "{again:?}");
    let again = Made { guest: again };
    let mut console = ready(&again)?;
    // The new one ends for itself.
    console.type_text("p")?;
    events.wait_for("phoenix2", "destroyed", 60)?;
    again.leave();
    ensure!(list()?.len() == 1, "{:?}", list()?);
    guest.destroy()
}
