//! The daemon that serves every PV console of every domain.
#![forbid(unsafe_code)]

mod background;
mod messages;
mod options;

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use console::lock::Lock;
use console::server::{Server, Turn};
use console::xen_platform::XenPlatform;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::{info, warn};
use xenstore::Connection;

use messages::Messages;
use options::Options;

/// How long the daemon's own messages are waited for at its end.
const MESSAGES_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = if options.foreground { run(&options) } else { background::start(&options) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrigger-consoled: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves consoles until a signal ends it.
fn run(options: &Options) -> Result<()> {
    // Before any other thread, so that none gets them.
    let signals = catch_signals().context("Cannot receive signals")?;
    let messages = Messages::start(std::io::stderr()).context("Cannot start a thread for messages")?;
    start_logging(options, &messages);
    let ended = serve_until_signal(options, &signals);
    messages.finish(MESSAGES_WAIT);
    ended
}

fn serve_until_signal(options: &Options, signals: &SignalFd) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(&options.run_dir).with_context(|| {
        format!("Cannot make the folder {}; try --run-dir, or run as root", options.run_dir.display())
    })?;
    let lock = Lock::take(&options.run_dir.join("consoled.lock"))?;
    raise_descriptor_limit();
    let platform = XenPlatform::open().context("Cannot use Xen")?;
    let mut server = start(platform, options)?;
    server.add_caller_fd(signals.as_fd())?;
    info!(consoles = server.consoles().count(), "serving consoles");
    tell_ready(options)?;
    let ended = serve(&mut server, signals);
    if ended.is_ok() {
        server.stop();
    }
    if let Some(path) = &options.pid_file {
        // A stale process ID is worse than none; the file may already be gone.
        let _ = fs::remove_file(path);
    }
    drop(lock);
    ended
}

fn start(platform: XenPlatform, options: &Options) -> Result<Server<XenPlatform>> {
    // Distinguished from other errors of xenstore, because the user can fix it.
    drop(Connection::open().context("Cannot use xenstore; xenstored must run first")?);
    Ok(Server::start(platform, Arc::new(Connection::open), options.settings())?)
}

fn serve(server: &mut Server<XenPlatform>, signals: &SignalFd) -> Result<()> {
    loop {
        if server.turn(None)? != Turn::Caller {
            continue;
        }
        while let Some(signal) = signals.read_signal().context("Cannot receive signals")? {
            if signal.ssi_signo == Signal::SIGHUP as u32 {
                info!("reopening the logs");
                server.reopen_logs();
            } else {
                info!(signal = signal.ssi_signo, "ending");
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                return Ok(());
            }
        }
    }
}

fn start_logging(options: &Options, messages: &Messages) {
    let default = match options.verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("OUTRIGGER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let messages = messages.clone();
    let make = move || messages.clone();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(make).with_ansi(false).init();
}

fn catch_signals() -> nix::Result<SignalFd> {
    let set: SigSet = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// A console takes four descriptors and each of its viewers one.
fn raise_descriptor_limit() {
    const WANTED: u64 = 65_536;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft >= WANTED {
        return;
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, WANTED, hard.max(WANTED))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, limit = soft, "low descriptor limit: only few consoles can be served");
    }
}

fn tell_ready(options: &Options) -> Result<()> {
    if let Some(path) = &options.pid_file {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    if let Some(fd) = options.ready_fd {
        fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{fd}"))
            .and_then(|mut file| file.write_all(b"ready\n"))
            .with_context(|| format!("Cannot write to descriptor {fd} (--ready-fd)"))?;
    }
    // Fails when there is no service manager.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}
