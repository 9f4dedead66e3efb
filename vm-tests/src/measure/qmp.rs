//! QMP's round trip and rate: through outriggerd and our stubdomain (ours), with Xen's own vchan-socket-proxy in dom0 and
//! in a stubdomain made by hand (stock), with that proxy in dom0 and our stubdomain (mixed), and at QEMU's own socket
//! within our stubdomain (qemu), below which nothing can get. Then outriggerd's memory a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use xen_types::DomId;
use xenstore::{Store as _, Xenstore, XsPath};

use super::example::{Example, folder};
use super::{Failures, LOGS, figure, has_words, wait_until};
use crate::harness::command::{Stopped, outrigger, run_within};
use crate::harness::daemons::{Daemon, number, pid};
use crate::harness::guest::Made;
use crate::harness::qmp::socket;
use crate::harness::seconds;

/// The program that measures, which is in the stubdomain's image too.
const LOAD: &str = "qmp-load";
/// How long it asks, in seconds.
const LENGTH: &str = "4";
const PROXY: &str = "vchan-socket-proxy";
/// Our image with the probe, which the runner brings in.
const PROBED: &str = "'/images/probed.img'";

/// The two guests, and where the probe within our stubdomain is asked.
struct Guests {
    ours: Made,
    stock: Made,
    probe: XsPath,
}

/// Measures all of it, `runs` times; the memory once.
pub(super) fn measure(runs: u32) -> Result<()> {
    let mut failures = Failures::default();
    let guests = Guests::create()?;
    for run in 1..=runs {
        println!("-- run {run} of {runs}");
        let ours = PathBuf::from(socket("hello"));
        failures.tried("ours_1", load("ours_1", &ours, 1));
        failures.tried("ours_8", load("ours_8", &ours, 8));
        // It holds the one session there can be.
        let daemon = Daemon::stop()?;
        failures.tried("stock_1", proxied("stock_1", &guests.stock));
        failures.tried("mixed_1", proxied("mixed_1", &guests.ours));
        failures.tried("qemu_1", guests.within_the_stubdomain());
        daemon.start()?;
        failures.tried("outriggerd", wait_for_session());
    }
    failures.tried("destroy stock", guests.stock.destroy());
    failures.tried("memory_per_guest", memory_per_guest());
    failures.tried("destroy hello", guests.ours.destroy());
    failures.end()
}

impl Guests {
    fn create() -> Result<Self> {
        let ours = guest("hello", |example| example.set("stubdomain_ramdisk", PROBED))?;
        let stock = guest("stock", |example| {
            example
                .set("stubdomain_kernel", "'/images/stock-vmlinuz'")
                .set("stubdomain_ramdisk", "'/images/stock.img'")
                .set("stubdomain_memory", "192")
        })?;
        wait_for_session()?;
        let probe = XsPath::new(format!("{}/probe", device_model(&ours)?.1))?;
        Ok(Self { ours, stock, probe })
    }

    /// At QEMU's own socket, below which nothing can get.
    fn within_the_stubdomain(&self) -> Result<()> {
        let store = Xenstore::open()?;
        store.write(&self.probe, b"go")?;
        let mut answer = String::new();
        wait_until("an answer from within the stubdomain", 30, || {
            answer = store.read_string(&self.probe, 256)?.unwrap_or_default();
            Ok(answer != "go")
        })?;
        say("qemu_1", &answer)
    }
}

/// Creates a guest, and waits until it only waits for a key.
fn guest(name: &str, more: impl FnOnce(Example) -> Example) -> Result<Made> {
    let config = more(Example::read()?.named(name)?).write(&format!("{name}.cfg"))?;
    let guest = Made::create(&config, &[]).with_context(|| format!("create {name}"))?;
    let log = Path::new(LOGS).join(format!("{name}-dm.3.log"));
    wait_until(&format!("{name} boots"), 60, || Ok(has_words(&log, "echoing COM1")))?;
    Ok(guest)
}

fn wait_for_session() -> Result<()> {
    wait_until("outriggerd has a session", 30, || {
        Ok(outrigger(&["qmp", "hello", "query-status"])?.status == 0)
    })
}

/// The stubdomain, and the directory of the device model in xenstore.
fn device_model(guest: &Made) -> Result<(DomId, String)> {
    let (target, stub) = guest.domids()?;
    Ok((stub, format!("/local/domain/{stub}/device-model/{target}")))
}

/// Has so many clients ask at a socket.
fn load(id: &str, socket: &Path, clients: u32) -> Result<()> {
    let arguments = [&*socket.to_string_lossy(), &clients.to_string(), LENGTH];
    say(id, &run_within(seconds(120), LOAD, &arguments)?.good()?.stdout)
}

/// The same through the stock proxy in dom0.
fn proxied(id: &str, guest: &Made) -> Result<()> {
    let socket = folder()?.join("proxy.sock");
    let (stub, device_model) = device_model(guest)?;
    let proxy = Command::new(PROXY)
        .args([&stub.to_string(), &format!("{device_model}/qmp-vchan")])
        .arg(&socket)
        .spawn()
        .context("cannot start the stock proxy")?;
    let proxy = Stopped(proxy);
    let outcome =
        wait_until("the stock proxy listens", 10, || Ok(socket.exists())).and_then(|()| load(id, &socket, 1));
    drop(proxy);
    // It has left it.
    let _ = fs::remove_file(&socket);
    outcome
}

/// Says the two figures that the measuring program prints.
fn say(id: &str, said: &str) -> Result<()> {
    let (latency, rate) = figures(said).with_context(|| format!("no figures: {said:?}"))?;
    figure(&format!("qmp.latency.{id}"), latency, "us");
    figure(&format!("qmp.rate.{id}"), rate, "1/s");
    Ok(())
}

fn figures(said: &str) -> Option<(f64, f64)> {
    let mut words = said.split_whitespace().map(str::parse);
    Some((words.next()?.ok()?, words.next()?.ok()?))
}

/// What the daemon grows by for a guest, without anything asked.
fn memory_per_guest() -> Result<()> {
    let memory = || number(pid("outriggerd")?, "smaps_rollup", "Pss:");
    let before = memory()?;
    let more = [guest("second", |example| example)?, guest("third", |example| example)?];
    std::thread::sleep(Duration::from_secs(3));
    let grown = i32::try_from(memory()?)? - i32::try_from(before)?;
    figure("qmp.memory_per_guest", f64::from(grown) / 2.0, "KiB");
    more.into_iter().try_for_each(Made::destroy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_figures_come_from_the_measuring_program() {
        assert_eq!(figures("6012 156\n"), Some((6012.0, 156.0)));
        assert_eq!(figures("6012.5 156.1 more"), Some((6012.5, 156.1)));
        assert_eq!(figures("failed"), None);
        assert_eq!(figures(""), None);
    }
}
