//! The daemon as a whole: adopts the guests of the previous one, listens, and wakes drivers when domains end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use toolstack::{Cause, CreateOptions, Error, Recovered, Toolstack};
use xenstore::{SpecialWatch, StoreError, WatchGuard};

use crate::backoff::Backoff;
use crate::driver::{self, Shared, Wanted};
use crate::methods::Methods;
use crate::qmp::Qmp;
use crate::registry::Registry;
use crate::restarts::{CutOff, Note, Restarts};
use crate::server;

/// A daemon that listens on its socket.
pub(crate) struct Daemon {
    /// What its parts share.
    pub(crate) shared: Shared,
    socket: PathBuf,
    news: mpsc::Receiver<()>,
    lost: mpsc::Receiver<StoreError>,
    /// Ends with the daemon.
    _watch: WatchGuard,
}

impl Daemon {
    /// Adopts the existing guests and listens. Must be called in the event loop.
    ///
    /// # Errors
    /// When Xen or xenstore does not answer, or the socket cannot be made.
    pub(crate) async fn start(socket: &Path, toolstack: Toolstack, qmp: Qmp) -> Result<Self> {
        // Watched before the first look, so that no end is missed between the two.
        let (wake, news) = mpsc::channel(1);
        let (lose, lost) = mpsc::channel(1);
        let watch = toolstack
            .xenstore()
            .watch(&SpecialWatch::ReleaseDomain)
            .context("Cannot watch for domains that end")?
            .into_callback(move |event| {
                // A full channel wakes us as well.
                let _ = match event {
                    Ok(_) => wake.try_send(()).is_ok(),
                    Err(error) => lose.try_send(error).is_ok(),
                };
            });
        let boot = toolstack.boot_id().context("Cannot read the host's boot ID")?;
        let restarts = Restarts::new(Arc::clone(toolstack.host()), &toolstack.paths().state, boot);
        let toolstack = toolstack.with_monitors(Arc::new(qmp.clone()));
        let registry = Registry::new().with_keeper(Arc::new(qmp.clone()));
        let shared = Shared { toolstack, registry, restarts, qmp };
        recover(&shared).await?;
        let listener =
            server::bind(socket).with_context(|| format!("Cannot listen on {}", socket.display()))?;
        tokio::spawn(server::accept(listener, Arc::new(Methods::new(shared.clone()))));
        detach_unused_loops(&shared);
        Ok(Self { shared, socket: socket.to_owned(), news, lost, _watch: watch })
    }

    /// Runs until `stop` completes. Guests continue; a lifecycle that is in progress then is undone or completed by the
    /// next daemon.
    ///
    /// # Errors
    /// When the connection to xenstore is lost: the daemon could no longer notice any event.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(stop);
        let outcome = loop {
            tokio::select! {
                Some(()) = self.news.recv() => self.shared.registry.look(),
                Some(error) = self.lost.recv() => break Err(error.into()),
                () = &mut stop => break Ok(()),
            }
        };
        let _ = std::fs::remove_file(&self.socket);
        outcome
    }
}

/// Adopts what the previous daemon left. What has to wait for others waits in the guests' drivers.
async fn recover(shared: &Shared) -> Result<()> {
    let mut cut_off = shared.restarts.pending();
    let Recovered { guests, changing, unfinished, ended, troubles, cleaned: _ } = take_up(shared).await?;
    for trouble in &troubles {
        tracing::error!("{}", trouble.report());
    }
    for ended in &ended {
        let (guest, uuid) = (&ended.name, ended.id);
        tracing::warn!(guest, %uuid, "the guest ended when the host went down; removed its state file");
    }
    for guest in guests {
        tracing::info!(guest = guest.name, domid = %guest.domid, "adopted");
        let turn = cut_off.iter().find(|restart| restart.is_of(&guest)).map(|restart| restart.turn);
        let changing = changing.contains(&guest.id());
        if let Err(failure) = driver::adopt(shared, guest, turn, changing) {
            tracing::error!(?failure, "cannot adopt a guest");
        }
    }
    for unfinished in unfinished {
        // A restart continues once its incomplete guest has been removed.
        let next = cut_off.extract_if(.., |restart| restart.config.name == unfinished.name).next();
        if let Err(failure) = driver::finish(shared, unfinished, next.map(wanted)) {
            tracing::error!(?failure, "cannot destroy an incomplete guest");
        }
    }
    resume_restarts(shared, cut_off);
    Ok(())
}

/// Adopts the guests; while Xen does not answer, tries again at growing intervals.
async fn take_up(shared: &Shared) -> Result<Recovered> {
    let mut wait = Duration::from_millis(500);
    loop {
        match shared.toolstack.adopt() {
            Ok(recovered) => return Ok(recovered),
            Err(error @ Error::Cause(Cause::Hypervisor(_))) => {
                tracing::error!(
                    error = error.report(),
                    ?wait,
                    "cannot adopt the guests of the previous daemon; trying again"
                );
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
            Err(error) => return Err(error).context("Cannot adopt the guests of the previous daemon"),
        }
    }
}

/// Detaches loop devices that no guest uses any more, on a thread that may block.
fn detach_unused_loops(shared: &Shared) {
    let toolstack = shared.toolstack.clone();
    tokio::task::spawn_blocking(move || {
        let outcome = toolstack.detach_unused_loops(&mut |event| {
            if let toolstack::Event::Warning { text } = event {
                tracing::warn!("{text}");
            }
        });
        if let Err(error) = outcome {
            tracing::error!(error = error.report(), "cannot detach unused loop devices");
        }
    });
}

fn wanted(restart: CutOff) -> Wanted {
    let CutOff { note, config, uuid, turn } = restart;
    let options = CreateOptions { uuid, ..CreateOptions::default() };
    Wanted { config, options, note: Some(note), backoff: Backoff::after(turn) }
}

/// Creates the guests whose restart the previous daemon had begun but not completed.
fn resume_restarts(shared: &Shared, cut_off: Vec<CutOff>) {
    for restart in cut_off {
        if let Some(guest) = shared.registry.named(&restart.config.name) {
            // Either it had not begun, and the guest's state decides again; or only its last step was missing.
            if restart.is_of(&guest)
                && let Err(error) = shared.toolstack.start_if_new(guest.id())
            {
                tracing::error!(guest = guest.name, error = error.report(), "cannot start a restarted guest");
            }
            restart.note.done();
            continue;
        }
        complete_rename(shared, &restart.note);
        tracing::warn!(guest = restart.config.name, "its restart was interrupted; continuing it");
        if let Err(failure) = driver::create(shared, wanted(restart), None) {
            tracing::error!(?failure, "cannot create a guest again");
        }
    }
}

/// Completes the renaming of a preserved guest, which may have been interrupted: its successor gets its name.
fn complete_rename(shared: &Shared, note: &Note) {
    let Some(uuid) = note.which() else { return };
    let preserved = shared.registry.find(&uuid.to_string(), |_| None).ok().and_then(|entry| entry.guest);
    let Some(guest) = preserved.filter(|guest| guest.name != guest.config.name) else { return };
    if let Err(error) = shared.toolstack.preserve_as(guest.id(), &guest.name) {
        tracing::error!(guest = guest.name, error = error.report(), "cannot rename a preserved guest");
    }
}
