//! Runs the conformance suite of `Hypervisor` against the Xen that this dom0 runs on.
//!
//! Usage: `xen-conformance HVMLOADER FIRMWARE KERNEL [WORDS]`; with `WORDS`, only the cases whose names have them.

use std::process::ExitCode;

use anyhow::Context as _;
use xen::testing::{GuestFiles, cases};
use xen::{Blob, RealHypervisor};

fn main() -> anyhow::Result<ExitCode> {
    if let Some(code) = xen::memory_stream_helper(std::env::args_os()) {
        return Ok(code);
    }
    let mut arguments = std::env::args_os().skip(1);
    let mut file = |what| {
        arguments.next().map(|path| Blob::File(path.into())).with_context(|| format!("no {what} was named"))
    };
    let files =
        GuestFiles { hvmloader: file("hvmloader")?, firmware: file("firmware")?, kernel: file("kernel")? };
    let xen = RealHypervisor::open()?;
    let words = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
    let chosen = || cases().filter(|case| case.name.contains(&words));
    let mut broken = 0;
    for case in chosen() {
        let started = std::time::Instant::now();
        match case.run(&xen, &files) {
            Ok(()) => println!("holds  {:5} ms  {}", started.elapsed().as_millis(), case.name),
            Err(why) => {
                broken += 1;
                println!("BROKEN {:5} ms  {}: {why}", started.elapsed().as_millis(), case.name);
            }
        }
    }
    println!("{} of {} cases hold", chosen().count() - broken, chosen().count());
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
