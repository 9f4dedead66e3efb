//! The daemon that owns the lifecycles of guests.
//!
//! All of its state can be read back from Xen, xenstore and the guests' state files: killed at any moment and started
//! again, it adopts the running guests and undoes what was incomplete.
#![forbid(unsafe_code)]

mod api;
mod backoff;
mod daemon;
mod descriptors;
mod dial;
mod guest;
mod listen;
mod lock;
mod qmp;
mod refusal;
mod reply;
mod states;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crate::dial::HostDial;
use crate::qmp::{Access, Qmp};
use ::api::client::last_words_file;
use ::qmp::mux::MuxConfig;
use ::qmp::policy::Policy;
use anyhow::{Context, Result};
use clap::Parser;
use config::HostDefaults;
use daemon::Daemon;
use states::ConsoleStates;
use tokio::signal::unix::{SignalKind, signal};
use toolstack::host::RealHost;
use toolstack::{Deadlines, Paths, Toolstack};
use tracing_subscriber::EnvFilter;
use xen::{Hypervisor, RealHypervisor};
use xenstore::Xenstore;

/// Manages guests whose QEMU runs in a stubdomain, for the `outrigger` command.
#[derive(Debug, Parser)]
#[command(name = "outriggerd", version)]
struct Arguments {
    /// The socket to listen on.
    #[arg(long, env = "OUTRIGGER_SOCKET", default_value = ::api::DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// QMP access policy file (optional).
    #[arg(long, default_value = "/etc/outrigger/qmp.toml", value_name = "FILE")]
    qmp_policy: PathBuf,
    /// xl's configuration of the host (optional).
    #[arg(long, default_value = "/etc/xen/xl.conf", value_name = "FILE")]
    xl_conf: PathBuf,
    /// Log filter, such as `debug` or `toolstack=trace`.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

fn main() -> ExitCode {
    // First of all: a process that saves or restores a guest's memory is this program too, and no daemon.
    if let Some(code) = xen::memory_stream_helper(std::env::args_os()) {
        return code;
    }
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
    descriptors::raise_limit();
    // Held until the end: two daemons would undo each other's work.
    let _lock = lock::take(&arguments.socket)?;
    let outcome = start(arguments);
    if let Err(error) = &outcome {
        // For clients that cannot connect. Without it, they are referred to the log.
        let _ = std::fs::write(last_words_file(&arguments.socket), format!("{error:#}\n"));
    }
    outcome
}

fn start(arguments: &Arguments) -> Result<()> {
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(RealHypervisor::open().context("Cannot reach Xen")?);
    let paths = usual_paths(&*hypervisor)?;
    let xenstore = Xenstore::open().context("Cannot reach xenstore")?;
    let consoles = Path::new(console::attach::SOCKET_DIR);
    let dial = Arc::new(HostDial::new(Arc::clone(&hypervisor), xenstore.clone(), consoles));
    let config = MuxConfig::default().scaled(time_scale());
    let qmp = Qmp::new(&arguments.socket, read_access(&arguments.qmp_policy)?, config, dial)
        .context("Cannot start the thread for the QMP sockets")?;
    let toolstack = Toolstack::new(hypervisor, xenstore, Arc::new(RealHost))
        .with_paths(paths)
        .with_states(Arc::new(ConsoleStates::new(consoles)));
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A guest that takes no notice of a request holds one for ten seconds. More than these wait for their turn.
        .max_blocking_threads(128)
        .build()
        .context("Cannot start the event loop")?
        .block_on(serve(arguments, toolstack, qmp))
}

/// The paths for the running Xen, which must be of the release that this daemon was built for.
fn usual_paths(hypervisor: &dyn Hypervisor) -> Result<Paths> {
    let release = xen::release::check(hypervisor).context("Cannot use this Xen")?;
    Ok(Paths::of(release))
}

/// Who may use QMP, by the policy file.
fn read_access(path: &Path) -> Result<Access> {
    Access::new(read_policy(path)?).with_context(|| format!("{} cannot be used", path.display()))
}

/// Reads the policy file; without one, only the built-in roles exist.
fn read_policy(path: &Path) -> Result<Policy> {
    match std::fs::read_to_string(path) {
        Ok(text) => Policy::parse(&text).with_context(|| format!("{} cannot be used", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Policy::default()),
        Err(error) => Err(error).with_context(|| format!("Cannot read {}", path.display())),
    }
}

/// Reads what xl's configuration sets for every guest. What is wrong in it, or has no effect, is logged once.
fn read_host(path: &Path) -> HostDefaults {
    let loaded = config::load_host(path);
    for diagnostic in &loaded.diagnostics {
        let help = diagnostic.help.join("; ");
        let text = diagnostic.one_line(&loaded.source);
        if diagnostic.is_error() {
            tracing::error!(%help, "{text}; no guest is created before it is corrected and outriggerd restarted");
        } else {
            tracing::warn!(%help, "{text}");
        }
    }
    loaded.defaults
}

/// The factor that scales all deadlines.
fn time_scale() -> f64 {
    let text = std::env::var(Deadlines::SCALE_VARIABLE).unwrap_or_default();
    text.trim().parse().ok().filter(|scale| (0.01..=1000.0).contains(scale)).unwrap_or(1.0)
}

async fn serve(arguments: &Arguments, toolstack: Toolstack, qmp: Qmp) -> Result<()> {
    let host = read_host(&arguments.xl_conf);
    let daemon = Daemon::start(&arguments.socket, toolstack, qmp, host).await?;
    let mut terminate = signal(SignalKind::terminate()).context("Cannot receive signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("Cannot receive signals")?;
    // Absent outside systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // Left by the previous daemon; usually there is none.
    let _ = std::fs::remove_file(last_words_file(&arguments.socket));
    tracing::info!(socket = %arguments.socket.display(), "ready");
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    daemon.run(stop).await
}
