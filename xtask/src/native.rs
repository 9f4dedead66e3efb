//! The demonstration on this machine's own Xen, for who sits in a dom0 already.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use image::packages::Store;
use testhost::{Origin, Report};

use crate::binaries::{self, Profile, Xen};
use crate::view::View;
use crate::{demo, guest, workspace};

/// Where the daemon listens once it is ready.
const SOCKET: &str = "/run/outrigger/outriggerd.sock";
/// Where `create` looks for the stubdomain's image.
const IMAGE: &str = "/usr/lib/outrigger/stubdom";

/// Whether this machine is a Xen dom0.
pub(crate) fn is_dom0() -> bool {
    fs::read_to_string("/proc/xen/capabilities").is_ok_and(|text| text.contains("control_d"))
}

/// Creates the example guest on this machine.
///
/// It installs the stubdomain's image where it is absent, and runs the daemons from the build folder for as long as
/// the demonstration takes where none run yet. Without `build`, all of that has to be there: the programs on the path.
pub(crate) fn demo(json: bool, build: bool) -> Result<ExitCode> {
    if !is_dom0() {
        bail!("This machine is not a Xen dom0; omit --native to use the embedded host");
    }
    let started = Instant::now();
    if build {
        prepare()?;
    } else if !Path::new(IMAGE).join("vmlinuz").exists() {
        bail!("There is no stubdomain image in {IMAGE}; build it with `outrigger image build`");
    }
    let programs = workspace::target().join("release");
    let examples = workspace::kept("examples");
    ensure!(
        examples.join("hello-disk.img").exists(),
        "The example's disks are missing in {}; omit --no-build to create them",
        examples.display()
    );
    let _daemons = daemons(build.then_some(&*programs))?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("demo");
    fs::write(&script, demo::script(&examples.to_string_lossy(), json))?;
    let begun = Instant::now();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.arg(&script).env("PATH", format!("{}:{path}", programs.display()));
    if json {
        command.stdout(std::io::stderr());
    }
    let status = command.status().context("Cannot start sh")?;
    let report = Report {
        status: status.code().unwrap_or(1),
        origin: Origin::Booted,
        startup: begun - started,
        job: begun.elapsed(),
        logs: "/var/log/outrigger".into(),
    };
    demo::conclude(Path::new("/tmp/demo"), &report, json, started)
}

/// Builds the programs, the stubdomain's image and the example's disks.
fn prepare() -> Result<()> {
    let mut view = View::new(false, false);
    binaries::dom0(Profile::Release, true, &Xen::Installed)?;
    install_image(&mut view)?;
    guest::examples()?;
    let config = workspace::kept("examples").join("hello.cfg");
    fs::copy(workspace::root().join("examples/hello.cfg"), &config)
        .with_context(|| format!("Cannot write {}", config.display()))?;
    Ok(())
}

fn install_image(view: &mut View) -> Result<()> {
    let place = Path::new(IMAGE);
    if place.join("manifest.json").exists() {
        return Ok(());
    }
    fs::create_dir_all(place).with_context(|| format!("Cannot make {IMAGE}; run this as root"))?;
    for put in guest::stubdom(&Store::from_environment()?, true, view)? {
        fs::copy(&put.source, &put.target)
            .with_context(|| format!("Cannot write {}", put.target.display()))?;
    }
    Ok(())
}

/// Daemons that end with the demonstration.
struct Daemons(Vec<Child>);

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts the daemons where none run: those of a folder, or those on the path.
fn daemons(programs: Option<&Path>) -> Result<Daemons> {
    let mut daemons = Daemons(Vec::new());
    if UnixStream::connect(SOCKET).is_ok() {
        return Ok(daemons);
    }
    for (name, arguments) in [("outrigger-consoled", ["--foreground"].as_slice()), ("outriggerd", &[])] {
        let program = programs.map_or_else(|| name.into(), |folder| folder.join(name));
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
        daemons.0.push(child.with_context(|| format!("Cannot start {name}"))?);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while UnixStream::connect(SOCKET).is_err() {
        for child in &mut daemons.0 {
            if let Some(status) = child.try_wait()? {
                bail!("A daemon failed to start ({status}); is another one, or stock xenconsoled, running?");
            }
        }
        if Instant::now() >= deadline {
            bail!("outriggerd did not open {SOCKET} within 30 s");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(daemons)
}
