//! PID 1 of a stubdomain in which QEMU's monitor is measured without anything between, for `cargo xtask bench qmp`: it
//! leaves a process of its own behind and becomes the agent.
//!
//! That process waits until dom0 writes `go` to the key `probe` in the device model's directory, has `qmp-load` measure
//! QEMU's socket for as many clients as fit on it (one), and puts what that says into the key.
#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use stubdom_abi::{ImageConfig, paths};
use xen_types::DomId;
use xenstore::{Connection, RelPath, Store as _};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Where the overlay has the agent, and the program that measures.
const AGENT: &str = "/agent";
const LOAD: &str = "/qmp-load";
/// An hour is longer than any measurement.
const LONG: Duration = Duration::from_secs(3600);

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == "probe" {
        return probe();
    }
    if std::process::id() == 1 {
        // The agent reaps it, as it does all orphans.
        Command::new("/init").arg0("probe").spawn()?;
    }
    // The agent goes by the name under which it is called.
    Err(Command::new(AGENT).arg0(name).args(arguments).exec().into())
}

fn probe() -> Outcome<()> {
    // The agent mounts /dev.
    let bus = Path::new("/dev/xen/xenbus");
    while !bus.exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let store = Connection::open_path(bus)?;
    let target: DomId = store.read_string(&paths::own_target(), 8)?.ok_or("no target")?.parse()?;
    let key = RelPath::new(format!("device-model/{target}/probe"))?;
    store.watch(&key, "probe")?;
    loop {
        if store.read_string(&key, 64)?.as_deref() == Some("go") {
            let output = Command::new(LOAD).args([ImageConfig::QMP_SOCKET, "1", "4"]).output()?;
            let said = if output.status.success() { output.stdout } else { output.stderr };
            store.write(&key, String::from_utf8_lossy(&said).trim().as_bytes())?;
        }
        store.next_event(Instant::now() + LONG)?;
    }
}
