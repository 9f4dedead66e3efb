//! A real Linux guest: firmware, boot loader, emulated disk, then PV disk and NIC, power-off.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::outrigger;
use crate::harness::config::GuestConfig;
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::unused;
use crate::harness::network::{BRIDGE, bridge_with, no_ports};
use crate::harness::seconds;
use crate::harness::shell::BOOT;
use crate::harness::terminal::Shown;

pub(super) const CASES: &[Case] = &[
    Case::new("linux::boots_unplugs_pings_and_powers_off", pings),
    Case::new("linux::outrigger_shutdown", shutdown),
];

/// Uses both disks and the NIC, and powers off.
const PINGS: &str = "ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0; \
    ping -c 3 -W 20 10.77.0.1; echo PING=$?; readlink /sys/class/net/eth0/device/driver; \
    head -c 64 /dev/xvda >/dev/null && echo XVDA=ok; poweroff -f\n";

fn pings() -> Result<()> {
    bridge_with(BRIDGE, "10.77.0.1/24")?;
    let nic = format!("mac=00:16:3e:77:00:02, bridge={BRIDGE}, model=e1000");
    let mut events = Events::subscribe()?;
    let (guest, mut console) = GuestConfig::linux("tux", PINGS).nic(&nic).boot()?;
    uses_pv_drivers(&mut console)?;
    events.wait_for("tux", "powered-off", 60)?;
    events.wait_for("tux", "destroyed", 60)?;
    guest.must_be_gone()?;
    no_ports()
}

fn uses_pv_drivers(console: &mut Console) -> Result<()> {
    // After the unplug there is one disk driver, not two.
    console.wait_for("xvda xvdb", 20)?;
    ensure!(!console.seen.contains("disks: sda"), "the emulated disks were not unplugged");
    console.wait_for("PING=0", 90)?;
    console.wait_for("XVDA=ok", 30)?;
    ensure!(console.seen.contains("xen-netfront") || console.seen.contains("/vif"), "eth0 is not a PV NIC");
    Ok(())
}

/// Speaks through both channels, and listens to them.
const CHANNELS: &str = "echo CHANNEL-SPEAKS >/dev/hvc1; echo SECOND-SPEAKS >/dev/hvc2; echo waiting\n\
    for n in 1 2; do read -r line </dev/hvc$n; echo GOT $line; done\n";

fn shutdown() -> Result<()> {
    // Channels on the way: consoles of the guest's, one of which ends at a socket.
    let socket = unused("channel")?;
    let first = format!("name=org.example.agent, connection=socket, path={}", socket.display());
    let guest = GuestConfig::linux("calm", CHANNELS)
        .line(&format!("channel=['{first}', 'name=second,connection=pty']"))
        .create()?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("waiting", BOOT)?;
    channel_at_a_socket(&mut console, &socket)?;
    channel_at_a_tty(&mut console, guest.guest.domid)?;
    let said = outrigger(&["shutdown", "--wait=120", "calm"])?.good()?.stdout;
    ensure!(said.contains("PV"), "{said}");
    guest.must_be_gone()
}

fn channel_at_a_socket(console: &mut Console, socket: &Path) -> Result<()> {
    let mut program = UnixStream::connect(socket)?;
    program.set_read_timeout(Some(seconds(30)))?;
    let mut said = [0; 14];
    program.read_exact(&mut said)?;
    ensure!(&said == b"CHANNEL-SPEAKS", "{said:?} came out of the channel");
    program.write_all(b"to the guest\n")?;
    console.wait_for("GOT to the guest", 30)?;
    shown_by_console_command("org.example.agent", "CHANNEL-SPEAKS")
}

/// Its name is where libxl would read it.
fn channel_at_a_tty(console: &mut Console, domid: DomId) -> Result<()> {
    let tty = XsPath::domain(domid).join("device/console/2/tty")?;
    let tty = Xenstore::open()?.read_string(&tty, 64)?.context("the second channel has no tty")?;
    let mut second = File::options().read(true).write(true).open(&tty)?;
    Shown::by(second.try_clone()?).hear("SECOND-SPEAKS", 30)?;
    second.write_all(b"through the tty\n")?;
    console.wait_for("GOT through the tty", 30)?;
    shown_by_console_command("second", "SECOND-SPEAKS")
}

fn shown_by_console_command(channel: &str, words: &str) -> Result<()> {
    let shown = outrigger(&["console", "--no-follow", "--channel", channel, "calm"])?.good()?;
    ensure!(shown.stdout.contains(words), "{shown}");
    Ok(())
}
