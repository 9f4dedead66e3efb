//! Creating and destroying guests: xl with QEMU in dom0, xl with the stubdomain, ours.
//!
//! xl has programs of their own for each guest, ours has none: what a guest needs in dom0 is what the daemons grow by when
//! one more comes. The first guest of a daemon also makes it touch its own code: `dom0_memory_first.ours`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use api::types::{Outcome, Step};

use super::example::{Example, folder};
use super::processes::{count, memory};
use super::{Failures, LOGS, STOCK_PID, figure, timed, wait_until};
use crate::harness::command::{XL, run, run_within};
use crate::harness::daemons::{ConsoleDaemon, Daemon};
use crate::harness::guest::{Made, must_run};
use crate::harness::seconds;
use crate::harness::xl_serial::Serial;

/// The stubdomain's image.
const IMAGE: &str = "/usr/lib/outrigger/stubdom";
/// The example's name.
pub(super) const NAME: &str = "hello";

/// Who makes a guest, and where its QEMU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Stock xl with QEMU in dom0.
    XlDom0,
    /// Stock xl with the stubdomain.
    XlStub,
    /// Outrigger.
    Ours,
}

impl Kind {
    /// As figures are called.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::XlDom0 => "xl_dom0",
            Self::XlStub => "xl_stub",
            Self::Ours => "ours",
        }
    }

    /// The command.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::XlDom0 | Self::XlStub => XL,
            Self::Ours => "outrigger",
        }
    }
}

/// Measures all three, `runs` times.
pub(super) fn measure(runs: u32) -> Result<()> {
    let configs = Configs::write()?;
    let mut failures = Failures::default();
    for run in 1..=runs {
        println!("-- run {run} of {runs}");
        let toolstack = Daemon::stop()?;
        let console = ConsoleDaemon::stock(&["--log=none", STOCK_PID])?;
        settle();
        let outcome = xl_dom0(&configs, &mut failures);
        failures.tried("xl_dom0", outcome);
        let outcome = xl_stub(&configs, &mut failures);
        failures.tried("xl_stub", outcome);
        drop(console);
        settle();
        toolstack.start()?;
        let outcome = ours(&configs, &mut failures);
        failures.tried("ours", outcome);
    }
    failures.end()
}

/// What a daemon that was started or stopped has left to do.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}

/// What xl is told to have a guest's QEMU in the stubdomain of our image.
pub(super) fn stub_keys() -> [(&'static str, String); 6] {
    [
        ("device_model_version", "'qemu-xen'".to_owned()),
        ("device_model_stubdomain_override", "1".to_owned()),
        ("stubdomain_kernel", format!("'{IMAGE}/vmlinuz'")),
        ("stubdomain_ramdisk", format!("'{IMAGE}/initramfs.img'")),
        // What our toolstack gives its stubdomains too.
        ("stubdomain_cmdline", "'console=hvc0 quiet rootfstype=ramfs xen_privcmd.unrestricted=1'".to_owned()),
        ("stubdomain_memory", "160".to_owned()),
    ]
}

/// A configuration for each.
pub(super) struct Configs {
    xl_dom0: PathBuf,
    xl_stub: PathBuf,
    ours: PathBuf,
    second: PathBuf,
    /// The serial port of xl's guest with QEMU in dom0.
    com1: PathBuf,
}

impl Configs {
    fn write() -> Result<Self> {
        Self::of(Example::read()?)
    }

    /// The configuration of one kind.
    pub(super) fn of_kind(&self, kind: Kind) -> &Path {
        match kind {
            Kind::XlDom0 => &self.xl_dom0,
            Kind::XlStub => &self.xl_stub,
            Kind::Ours => &self.ours,
        }
    }

    /// Writes those of this example.
    pub(super) fn of(example: Example) -> Result<Self> {
        let com1 = folder()?.join("com1");
        let xl_dom0 = example
            .clone()
            .set("device_model_stubdomain_override", "0")
            .set("serial", &format!("[ 'file:{}', 'null' ]", com1.display()));
        let xl_stub = stub_keys()
            .into_iter()
            .fold(example.clone(), |example, (key, value)| example.set(key, &value))
            .set("serial", "'pty'");
        Ok(Self {
            xl_dom0: xl_dom0.write("xl_dom0.cfg")?,
            xl_stub: xl_stub.write("xl_stub.cfg")?,
            ours: example.write("ours.cfg")?,
            second: example.named("second")?.write("second.cfg")?,
            com1,
        })
    }
}

/// Creates a guest, waits for its first byte, and says the figures.
fn creation<T>(
    kind: &str,
    dom0_memory: &str,
    failures: &mut Failures,
    create: impl FnOnce() -> Result<T>,
    first_byte: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let before = memory()?;
    let start = Instant::now();
    let made = create().context("create")?;
    figure(&format!("create.{kind}"), start.elapsed().as_secs_f64(), "s");
    if failures.tried(kind, first_byte().context("no byte from the guest")).is_some() {
        figure(&format!("first_byte.{kind}"), start.elapsed().as_secs_f64(), "s");
    }
    figure(&format!("{dom0_memory}.{kind}"), mib(memory()? - before), "MiB");
    figure(&format!("qemu_processes.{kind}"), count("qemu-system")?.into(), "count");
    Ok(made)
}

fn mib(kib: i64) -> f64 {
    i32::try_from(kib).map_or(f64::NAN, |kib| f64::from(kib) / 1024.0)
}

/// A guest of xl's, destroyed when this is dropped.
struct OfXl;

impl OfXl {
    fn create(config: &Path) -> Result<Self> {
        let guest = Self;
        run_within(seconds(300), XL, &["create", &config.to_string_lossy()])?.good()?;
        Ok(guest)
    }

    fn destroy(self) -> Result<()> {
        let destroyed = run(XL, &["destroy", NAME])?.good();
        std::mem::forget(self);
        destroyed.map(drop)
    }
}

impl Drop for OfXl {
    fn drop(&mut self) {
        // Only on a failure's way out.
        let _ = run(XL, &["destroy", NAME]);
    }
}

fn xl_dom0(configs: &Configs, failures: &mut Failures) -> Result<()> {
    remove(&configs.com1)?;
    let create = || OfXl::create(&configs.xl_dom0);
    let guest = creation("xl_dom0", "dom0_memory", failures, create, || grown(&configs.com1))?;
    timed("destroy.xl_dom0", || guest.destroy())
}

fn xl_stub(configs: &Configs, failures: &mut Failures) -> Result<()> {
    let mut serial = Serial::of(NAME);
    let create = || OfXl::create(&configs.xl_stub);
    let guest = creation("xl_stub", "dom0_memory", failures, create, || serial.wait_for_byte())?;
    timed("destroy.xl_stub", || guest.destroy())
}

fn ours(configs: &Configs, failures: &mut Failures) -> Result<()> {
    let com1 = Path::new(LOGS).join(format!("{NAME}-dm.3.log"));
    remove(&com1)?;
    let create = || Made::create_in_steps(&configs.ours, &[]);
    let (guest, steps) = creation("ours", "dom0_memory_first", failures, create, || grown(&com1))?;
    let stub = must_run(NAME)?.stub_memory_kib;
    figure("stubdom_memory.ours", super::sources::precise(stub.0), "KiB");
    failures.tried("ours", second(&configs.second).context("a second guest"));
    timed("destroy.ours", || guest.destroy())?;
    say_steps(&steps);
    Ok(())
}

fn say_steps(steps: &[Step]) {
    for step in steps.iter().filter(|step| step.outcome == Outcome::Done && !step.id.is_empty()) {
        if let Some(millis) = step.millis {
            figure(&format!("step.{}", step.id.replace('-', "_")), millis / 1000.0, "s");
        }
    }
}

/// What a guest needs in dom0 when the daemons have one already.
fn second(config: &Path) -> Result<()> {
    let com1 = Path::new(LOGS).join("second-dm.3.log");
    remove(&com1)?;
    let before = memory()?;
    let guest = Made::create(config, &[])?;
    grown(&com1).context("no byte from it")?;
    figure("dom0_memory.ours", mib(memory()? - before), "MiB");
    guest.destroy()
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Waits until a file has something in it.
fn grown(file: &Path) -> Result<()> {
    wait_until("something in the file", 120, || Ok(fs::metadata(file).is_ok_and(|about| about.len() > 0)))
}
