//! Makes and destroys guests without a daemon, to look at the toolstack alone in a real dom0.
//!
//! `create CFG [--paused]` creates the guest and prints the time of every step; `destroy UUID` destroys it; `list`
//! lists all domains, `recover` does what a daemon does at its start. State, logs and the stubdomain's image are where the daemon has them;
//! `OUTRIGGER_STUBDOM_DIR` names another folder with the image.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use toolstack::host::RealHost;
use toolstack::{CreateOptions, Event, GuestId, Paths, Toolstack};
use xen::RealHypervisor;
use xenstore::Xenstore;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut paths = Paths::default();
    if let Ok(folder) = std::env::var("OUTRIGGER_STUBDOM_DIR") {
        paths.stubdomain = folder.into();
    }
    let hypervisor = Arc::new(RealHypervisor::open()?);
    let toolstack = Toolstack::new(hypervisor, Xenstore::open()?, Arc::new(RealHost)).with_paths(paths);
    let begin = Instant::now();
    let mut show = |event: Event| match event {
        Event::Progress { done, total } => println!("  {done} of {total}"),
        Event::StepFinished { label, took, .. } => println!("{:9.3} s  {label}", took.as_secs_f64()),
        Event::StepFailed { label, took, error, .. } => {
            println!("{:9.3} s  {label}: FAILED: {error}", took.as_secs_f64());
        }
        Event::Undoing { label, .. } => {
            println!("{:9.3} s  (since the start) undoing: {label}", begin.elapsed().as_secs_f64());
        }
        Event::Warning { text } => println!("             warning: {text}"),
        Event::StepStarted { .. } | Event::Round { .. } | Event::StoodStill { .. } => {}
    };
    match args.as_slice() {
        ["create", file, rest @ ..] => {
            let loaded = config::load(Path::new(file));
            let Some(config) = loaded.config else { bail!("The configuration has errors") };
            let options = CreateOptions { paused: rest.contains(&"--paused"), ..CreateOptions::default() };
            match toolstack.create(&config, options, &mut show) {
                Ok(guest) => println!(
                    "guest {}: domain {} with stubdomain {}",
                    guest.uuid, guest.domid, guest.stub_domid
                ),
                Err(error) => bail!("{}", error.report()),
            }
        }
        ["destroy", uuid] => {
            if let Err(error) = toolstack.destroy(GuestId(uuid.parse()?), &mut show) {
                bail!("{}", error.report());
            }
        }
        ["list"] => {
            for entry in toolstack.list()? {
                println!("{:5} {:20} {:8} {}", entry.domid, entry.name, entry.memory, entry.state);
            }
        }
        ["recover"] => {
            let recovered = toolstack.recover(&mut show)?;
            println!("running: {:?}", recovered.guests.iter().map(|guest| &guest.name).collect::<Vec<_>>());
            println!("cleaned: {:?}", recovered.cleaned);
            for trouble in recovered.troubles {
                println!("trouble: {}", trouble.report());
            }
        }
        _ => bail!("Usage: create CFG [--paused] | destroy UUID | list | recover"),
    }
    println!("{:9.3} s  in all", begin.elapsed().as_secs_f64());
    Ok(())
}
