//! The daemon that owns the lifecycles of guests.
//!
//! It keeps no truth that it cannot read back from Xen, xenstore and the guests' state files: killed at any moment and
//! started again, it takes the running guests up, and undoes what was half done.
#![forbid(unsafe_code)]

mod answer;
mod convert;
mod driver;
mod inspect;
mod job;
mod lock;
mod methods;
mod observe;
mod registry;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use driver::Shared;
use methods::Methods;
use registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use toolstack::Toolstack;
use toolstack::host::RealHost;
use tracing_subscriber::EnvFilter;
use xen::RealHypervisor;
use xenstore::{SpecialWatch, Xenstore};

/// Owns the lifecycles of guests whose QEMU runs in a stubdomain; `outrigger` asks it.
#[derive(Debug, Parser)]
#[command(name = "outriggerd", version)]
struct Arguments {
    /// The socket to listen on.
    #[arg(long, env = "OUTRIGGER_SOCKET", default_value = api::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// What to log, such as `debug` or `toolstack=trace`.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("\"{}\" is not a log filter", arguments.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    // Held until the end: two daemons would undo each other's work.
    let _lock = lock::take(&arguments.socket)?;
    let hypervisor = RealHypervisor::open().context("Cannot reach Xen")?;
    let xenstore = Xenstore::open().context("Cannot reach xenstore")?;
    let toolstack = Toolstack::new(Arc::new(hypervisor), xenstore, Arc::new(RealHost));
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start the event loop")?
        .block_on(serve(arguments, toolstack))
}

async fn serve(arguments: &Arguments, toolstack: Toolstack) -> Result<()> {
    let shared = Shared { toolstack, registry: Registry::new() };
    // Watched before the first look, so that no end is missed between the two.
    let registry = shared.registry.clone();
    let (wake, mut news) = tokio::sync::mpsc::channel::<()>(1);
    let _watch = shared
        .toolstack
        .xenstore()
        .watch(&SpecialWatch::ReleaseDomain)
        .context("Cannot watch for domains that end")?
        .into_callback(move |_| {
            // A full channel wakes us as well.
            let _ = wake.try_send(());
        });
    recover(&shared)?;
    let listener = server::bind(&arguments.socket)
        .with_context(|| format!("Cannot listen on {}", arguments.socket.display()))?;
    tokio::spawn(server::accept(listener, Arc::new(Methods::new(shared.clone()))));
    let mut terminate = signal(SignalKind::terminate()).context("Cannot receive signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("Cannot receive signals")?;
    // Absent outside systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %arguments.socket.display(), "ready");
    loop {
        tokio::select! {
            Some(()) = news.recv() => registry.look(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // Guests go on; a lifecycle that is under way is undone or ended by the next daemon.
    let _ = std::fs::remove_file(&arguments.socket);
    Ok(())
}

/// Takes up what an earlier daemon left.
fn recover(shared: &Shared) -> Result<()> {
    let recovered = shared
        .toolstack
        .recover(&mut |event| tracing::info!(?event, "clearing up after an earlier daemon"))
        .context("Cannot take up the guests of an earlier daemon")?;
    for trouble in &recovered.troubles {
        tracing::error!("{}", trouble.report());
    }
    for name in &recovered.cleaned {
        tracing::warn!(guest = name, "was half made or half destroyed by an earlier daemon, and is gone now");
    }
    for guest in recovered.guests {
        tracing::info!(guest = guest.name, domid = %guest.domid, "taken up");
        if let Err(failure) = driver::adopt(shared, guest) {
            tracing::error!(?failure, "cannot take up a guest");
        }
    }
    Ok(())
}
