//! The daemon as a whole: adopts the guests of the previous one, listens, and wakes drivers when domains end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use config::HostDefaults;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use toolstack::{Cause, Error, Guest, Recovered, Toolstack};
use xenstore::{SpecialWatch, StoreError, WatchGuard};

use crate::api::{Calls, server};
use crate::guest::driver;
use crate::guest::registry::Registry;
use crate::guest::shared::Shared;
use crate::listen;
use crate::qmp::Qmp;

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
    pub(crate) async fn start(
        socket: &Path,
        toolstack: Toolstack,
        qmp: Qmp,
        host: HostDefaults,
    ) -> Result<Self> {
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
        qmp.run_in(Handle::current());
        let toolstack = toolstack.with_monitors(Arc::new(qmp.clone()));
        let registry = Registry::new().with_observer(Arc::new(qmp.clone()));
        let shared = Shared { toolstack, registry, qmp, host: Arc::new(host) };
        recover(&shared).await?;
        let listener =
            listen::bind(socket).with_context(|| format!("Cannot listen on {}", socket.display()))?;
        tokio::spawn(server::accept(listener, Arc::new(Calls::new(shared.clone()))));
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
    let recovered = adopt(shared).await?;
    for trouble in &recovered.troubles {
        tracing::error!("{}", trouble.report());
    }
    for ended in &recovered.ended {
        let (guest, uuid) = (&ended.name, ended.id);
        if ended.was_restarting {
            tracing::warn!(
                guest, %uuid,
                "the guest was not restarted, because the host went down meanwhile; create it to start it"
            );
        } else {
            tracing::warn!(guest, %uuid, "the guest ended when the host went down; removed its state file");
        }
    }
    for guest in recovered.guests {
        tracing::info!(guest = guest.name, domid = %guest.domid, "adopted");
        let id = guest.id();
        if recovered.held.contains(&id) {
            hold(shared, guest);
            continue;
        }
        let turn = recovered.delayed.iter().find(|(delayed, _)| *delayed == id).map(|(_, turn)| *turn);
        let changing = recovered.changing.contains(&id);
        if let Err(refusal) = driver::adopt(shared, guest, turn, changing) {
            tracing::error!(?refusal, "cannot adopt a guest");
        }
    }
    for unfinished in recovered.unfinished {
        if unfinished.restart.is_some() {
            tracing::warn!(guest = unfinished.name, "its restart was interrupted; continuing it");
        }
        if let Err(refusal) = driver::finish(shared, unfinished) {
            tracing::error!(?refusal, "cannot finish what was interrupted of a guest");
        }
    }
    Ok(())
}

/// Adopts a guest about which another host has to decide.
fn hold(shared: &Shared, guest: Guest) {
    let migrations = shared.toolstack.migrations().unwrap_or_else(|error| {
        tracing::error!(error = error.report(), "cannot read the journals of migrations");
        Vec::new()
    });
    let own = migrations.into_iter().filter(|migration| migration.guest == guest.id());
    let host = own.max_by_key(|migration| migration.unresolved).map(|migration| migration.peer);
    let (name, host) = (guest.name.clone(), host.unwrap_or_default());
    tracing::error!(
        guest = name,
        host,
        "suspended until that host reports whether it has the guest; run outrigger migrate --resolve {name} {host}"
    );
    if let Err(refusal) = driver::adopt_held(shared, guest, host) {
        tracing::error!(?refusal, "cannot adopt a guest");
    }
}

/// Adopts the guests; while Xen does not answer, tries again at growing intervals.
async fn adopt(shared: &Shared) -> Result<Recovered> {
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
