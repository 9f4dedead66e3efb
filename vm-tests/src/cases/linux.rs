//! A real Linux guest: firmware, boot loader, emulated disk, then PV disk and NIC, power-off.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use xenstore::{Store as _, Xenstore, XsPath};

use super::Case;
use crate::harness::command::{outrigger, run};
use crate::harness::consoles::Console;
use crate::harness::events::Events;
use crate::harness::guest::{BRIDGE, Made, bridge, linux, scratch};
use crate::harness::seconds;
use crate::harness::terminal::Shown;

pub(super) const CASES: &[Case] = &[
    Case::new("linux::boots_unplugs_pings_and_powers_off", pings),
    Case::new("linux::outrigger_shutdown", shutdown),
];

/// How long the guest may take from its first byte to its init, under emulation.
const BOOT: u64 = 300;

fn pings() -> Result<()> {
    bridge()?;
    run("ip", &["addr", "replace", "10.77.0.1/24", "dev", BRIDGE])?.good()?;
    let script = "ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0; \
                  ping -c 3 -W 20 10.77.0.1; echo PING=$?; readlink /sys/class/net/eth0/device/driver; \
                  head -c 64 /dev/xvda >/dev/null && echo XVDA=ok; poweroff -f\n";
    let config =
        linux("tux", script, &format!("vif=['mac=00:16:3e:77:00:02, bridge={BRIDGE}, model=e1000']"))?;
    let mut events = Events::subscribe()?;
    let guest = Made::create(&config, &[])?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("TESTGUEST up", BOOT)?;
    // After the unplug there is one disk driver, not two.
    console.wait_for("xvda xvdb", 20)?;
    ensure!(!console.seen.contains("disks: sda"), "the emulated disks were not unplugged");
    console.wait_for("PING=0", 90)?;
    console.wait_for("XVDA=ok", 30)?;
    ensure!(console.seen.contains("xen-netfront") || console.seen.contains("/vif"), "eth0 is not a PV NIC");
    events.wait_for("tux", "powered-off", 60)?;
    events.wait_for("tux", "destroyed", 60)?;
    guest.leave();
    ensure!(outrigger(&["domid", "tux"])?.status == 4, "it is still there");
    let ports = fs::read_dir(Path::new("/sys/class/net").join(BRIDGE).join("brif"))?.count();
    ensure!(ports == 0, "{ports} ports are left on the bridge");
    Ok(())
}

fn shutdown() -> Result<()> {
    // A channel on the way: a console of the guest's that ends at a socket.
    let socket = scratch("channel", b"")?;
    fs::remove_file(&socket)?;
    let channel = format!("name=org.example.agent, connection=socket, path={}", socket.display());
    let script = "echo CHANNEL-SPEAKS >/dev/hvc1; echo SECOND-SPEAKS >/dev/hvc2; echo waiting\n\
        for n in 1 2; do read -r line </dev/hvc$n; echo GOT $line; done\n";
    let guest = Made::create(
        &linux("calm", script, &format!("channel=['{channel}', 'name=second,connection=pty']"))?,
        &[],
    )?;
    let mut console = Console::serial(&guest, 0)?;
    console.wait_for("waiting", BOOT)?;
    let mut program = UnixStream::connect(&socket)?;
    program.set_read_timeout(Some(seconds(30)))?;
    let mut said = [0; 14];
    program.read_exact(&mut said)?;
    ensure!(&said == b"CHANNEL-SPEAKS", "{said:?} came out of the channel");
    program.write_all(b"to the guest\n")?;
    console.wait_for("GOT to the guest", 30)?;
    let shown = outrigger(&["console", "--no-follow", "--channel", "org.example.agent", "calm"])?.good()?;
    ensure!(shown.stdout.contains("CHANNEL-SPEAKS"), "{shown}");
    // The other one ends at a pseudo-terminal, whose name is where libxl would read it.
    let tty = XsPath::domain(guest.guest.domid).join("device/console/2/tty")?;
    let tty = Xenstore::open()?.read_string(&tty, 64)?.context("the second channel has no tty")?;
    let mut second = File::options().read(true).write(true).open(&tty)?;
    Shown::by(second.try_clone()?).hear("SECOND-SPEAKS", 30)?;
    second.write_all(b"through the tty\n")?;
    console.wait_for("GOT through the tty", 30)?;
    let shown = outrigger(&["console", "--no-follow", "--channel", "second", "calm"])?.good()?;
    ensure!(shown.stdout.contains("SECOND-SPEAKS"), "{shown}");
    let said = outrigger(&["shutdown", "--wait=120", "calm"])?.good()?.stdout;
    ensure!(said.contains("PV"), "{said}");
    ensure!(outrigger(&["domid", "calm"])?.status == 4, "it is still there");
    guest.leave();
    Ok(())
}
