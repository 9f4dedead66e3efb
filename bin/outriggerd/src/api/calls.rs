//! Each call of the interface: who answers it, and how.

use std::sync::Arc;

use api::call::{Call, CallError, Incoming, SERVICE_INTERFACE, SERVICE_NAME, Service};
use api::types::{
    CreateParameters, Guests, HostInfo, Info, Inspection, Monitored, OneGuest, QmpSocket, Refusal,
    RestoreParameters,
};
use config::Uuid;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use toolstack::{CreateOptions, RestoreOptions};
use xen_types::DomId;

use super::changes::{absolute, loaded};
use super::lists::{self, List};
use super::{inspect, processors, show};
use crate::guest::driver;
use crate::guest::registry::Entry;
use crate::guest::request::{Change, Quick, Request};
use crate::guest::shared::{NewGuest, Shared};
use crate::guest::show::guest as show_guest;
use crate::refusal;
use crate::reply::{Answer, Replies};

/// Has calls answered.
pub(crate) struct Calls {
    pub(super) shared: Shared,
}

impl Calls {
    /// Calls to the shared parts.
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Has a call answered; the answers come through `replies`, the last of them always.
    pub(crate) async fn dispatch(&self, call: Incoming, replies: &Replies) {
        let answer = match call {
            Incoming::Own(call) => self.own(call, replies).await,
            Incoming::Service(call) => Ok(Some(service(call))),
        };
        if let Some(answer) = answer.unwrap_or_else(|refusal| Some(Answer::refusal(&refusal))) {
            // The channel is new: there is room, or the client is gone.
            let _ = replies.try_send(answer);
        }
    }

    /// A method of ours: its answer, or nothing when the answers come later.
    async fn own(&self, call: Call, replies: &Replies) -> Result<Option<Answer>, Refusal> {
        let host = &self.shared.host;
        match call {
            Call::List => self.list(replies),
            Call::Get(of) => self.get(self.find(&of.guest).await?, replies),
            Call::Inspect(of) => self.inspect(self.find(&of.guest).await?, replies),
            Call::HostInfo => self.host_info(replies),
            Call::Create(of) => self.create(&of, replies)?,
            Call::Destroy(of) => self.ask(&of.guest, Request::Destroy, replies).await?,
            Call::Pause(of) => self.quick(&of.guest, Quick::Pause, replies).await?,
            Call::Unpause(of) => self.quick(&of.guest, Quick::Unpause, replies).await?,
            Call::Shutdown(of) => self.quick(&of.guest, Quick::Shutdown, replies).await?,
            Call::Reboot(of) => self.quick(&of.guest, show::reboot(of.reset), replies).await?,
            Call::Trigger(of) => {
                self.quick(&of.guest, show::trigger(of.trigger, of.vcpu), replies).await?;
            }
            Call::Sysrq(of) => {
                let Some(key) = only_character(&of.key) else {
                    let parameter = "key is one character".to_owned();
                    return Ok(Some(Answer::call_error(&CallError::InvalidParameter { parameter })));
                };
                self.quick(&of.guest, Quick::Sysrq(key), replies).await?;
            }
            Call::BlockList(of) => self.listed(&of.guest, replies, lists::disks).await?,
            Call::NetworkList(of) => self.listed(&of.guest, replies, lists::nics).await?,
            Call::ChannelList(of) => self.listed(&of.guest, replies, lists::channels).await?,
            Call::VcpuList(of) => self.listed(&of.guest, replies, lists::vcpus).await?,
            Call::BlockAttach(of) => self.change(&of.guest, Change::block_attach(&of)?, replies).await?,
            Call::BlockDetach(of) => self.change(&of.guest, Change::block_detach(&of)?, replies).await?,
            Call::CdInsert(of) => self.change(&of.guest, Change::cd_insert(&of)?, replies).await?,
            Call::CdEject(of) => self.change(&of.guest, Change::cd_eject(&of)?, replies).await?,
            Call::NetworkAttach(of) => {
                self.change(&of.guest, Change::network_attach(&of, host)?, replies).await?;
            }
            Call::NetworkDetach(of) => self.change(&of.guest, Change::network_detach(&of)?, replies).await?,
            Call::NetworkSetBridge(of) => {
                self.change(&of.guest.clone(), Change::network_set_bridge(of)?, replies).await?;
            }
            Call::HostTopology => self.topology(replies),
            Call::ConfigUpdate(of) => {
                let update = Change::config_update(&of, host, replies)?;
                self.change(&of.guest, update, replies).await?;
            }
            Call::VcpuPin(of) => self.change(&of.guest, Change::vcpu_pin(&of, host)?, replies).await?,
            Call::MemMax(of) => self.change(&of.guest, Change::mem_max(of.memory_kib), replies).await?,
            Call::VcpuSet(of) => self.change(&of.guest, Change::vcpu_set(of.vcpus), replies).await?,
            Call::MemSet(of) => self.change(&of.guest, Change::mem_set(of.memory_kib), replies).await?,
            Call::Save(of) => self.change(&of.guest.clone(), Change::save(of)?, replies).await?,
            Call::DumpCore(of) => self.change(&of.guest.clone(), Change::dump_core(of)?, replies).await?,
            Call::Cancel(of) => return self.cancel(&of.guest).await.map(Some),
            Call::Migrate(of) => {
                self.change(&of.guest.clone(), Change::migrate(of, host, replies)?, replies).await?;
            }
            Call::MigrateReceive(of) => self.receive(of, replies)?,
            Call::MigrateResolve(of) => self.resolve(of, replies).await?,
            Call::Migrations => self.migrations(replies),
            Call::Suspend(of) => self.change(&of.guest, Change::suspend(), replies).await?,
            Call::Resume(of) => self.change(&of.guest, Change::resume(), replies).await?,
            Call::Restore(of) => self.restore(of, replies)?,
            Call::Rename(of) => {
                let entry = self.find(&of.guest).await?;
                let change = Change::rename(&self.shared.registry, entry.key, of.name)?;
                entry.ask(Request::Change(change), replies)?;
            }
            Call::Screenshot(of) => self.ask(&of.guest, Request::Screenshot, replies).await?,
            Call::Qmp(of) => return Ok(Some(self.qmp(&self.find(&of.guest).await?).await?)),
            Call::Monitor => self.monitor(replies),
        }
        Ok(None)
    }

    /// Finds a guest; for a domid, asks Xen which domain has it.
    pub(super) async fn find(&self, asked: &str) -> Result<Entry, Refusal> {
        let holder = match asked.parse::<DomId>() {
            Ok(domid) => self.holder(domid).await.map(|uuid| (domid, uuid)),
            Err(_) => None,
        };
        self.shared.registry.find(asked, holder)
    }

    /// The UUID of the domain that has this domid.
    async fn holder(&self, domid: DomId) -> Option<Uuid> {
        let hypervisor = Arc::clone(self.shared.toolstack.hypervisor());
        let info = tokio::task::spawn_blocking(move || hypervisor.domain_info(domid).ok().flatten());
        info.await.ok().flatten().map(|info| Uuid::from_bytes(info.uuid))
    }

    async fn ask(&self, guest: &str, request: Request, replies: &Replies) -> Result<(), Refusal> {
        self.find(guest).await?.ask(request, replies)
    }

    async fn quick(&self, guest: &str, quick: Quick, replies: &Replies) -> Result<(), Refusal> {
        self.ask(guest, Request::Quick(quick), replies).await
    }

    async fn change(&self, guest: &str, change: Change, replies: &Replies) -> Result<(), Refusal> {
        self.ask(guest, Request::Change(change), replies).await
    }

    async fn cancel(&self, guest: &str) -> Result<Answer, Refusal> {
        let entry = self.find(guest).await?;
        let guest = entry.view.guest.as_ref();
        let cancelled = guest.is_some_and(|guest| self.shared.toolstack.cancel(guest.id()));
        Ok(Answer::last(&json!({ "cancelled": cancelled })))
    }

    fn get(&self, entry: Entry, replies: &Replies) {
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || match show_guest(&toolstack, &entry.view) {
            Some(guest) => Answer::last(&OneGuest { guest }),
            None => Answer::refusal(&entry.view.busy()),
        });
    }

    async fn qmp(&self, entry: &Entry) -> Result<Answer, Refusal> {
        let guest = entry.view.guest.as_ref();
        let socket = guest.and_then(|guest| self.shared.qmp.socket(guest.id()));
        let socket = match socket {
            Some(socket) => socket.ready().await,
            None => None,
        };
        let socket = socket.ok_or_else(|| entry.view.busy())?;
        Ok(Answer::last(&QmpSocket { socket: socket.display().to_string() }))
    }

    fn list(&self, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || {
            let entries = shared.registry.all();
            let guests =
                entries.iter().filter_map(|entry| show_guest(&shared.toolstack, &entry.view)).collect();
            let incomplete = entries.iter().filter_map(|entry| show::incomplete(&entry.view)).collect();
            let unreadable = match shared.toolstack.unreadable() {
                Ok(files) => files.iter().map(show::unreadable).collect(),
                // The guests are shown all the same.
                Err(error) => vec![show::unreadable_folder(&shared.toolstack.paths().guests(), &error)],
            };
            Answer::last(&Guests { guests, incomplete, unreadable })
        });
    }

    fn inspect(&self, entry: Entry, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || {
            let view = &entry.view;
            let (Some(shown), Some(guest)) = (show_guest(&shared.toolstack, view), &view.guest) else {
                return Answer::refusal(&view.busy());
            };
            match inspect::inspect(&shared.toolstack, guest) {
                Ok(found) => Answer::last(&Inspection {
                    guest: shown,
                    config: serde_json::to_value(&guest.config).unwrap_or_default(),
                    qemu_argv: found.qemu_argv,
                    agent: found.agent,
                }),
                Err(error) => Answer::refusal(&refusal::of_query(&error)),
            }
        });
    }

    /// Answers what a guest has, from a thread that may block.
    async fn listed(&self, guest: &str, replies: &Replies, list: List) -> Result<(), Refusal> {
        let entry = self.find(guest).await?;
        let Some(guest) = entry.view.guest.clone() else { return Err(entry.view.busy()) };
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || {
            list(&toolstack, guest.id())
                .unwrap_or_else(|error| Answer::refusal(&refusal::of(&guest.name, &error)))
        });
        Ok(())
    }

    fn host_info(&self, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || match host_info(&shared) {
            Ok(info) => Answer::last(&Info { info }),
            Err(error) => Answer::refusal(&refusal::of_query(&error)),
        });
    }

    fn topology(&self, replies: &Replies) {
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || match processors::topology(&toolstack) {
            Ok(topology) => Answer::last(&topology),
            Err(error) => Answer::refusal(&refusal::of_query(&error)),
        });
    }

    fn create(&self, parameters: &CreateParameters, replies: &Replies) -> Result<(), Refusal> {
        let config = loaded((&parameters.path, &parameters.config), &self.shared.host, replies)?;
        let CreateParameters { paused, force, .. } = *parameters;
        let options = CreateOptions { paused, force, ..CreateOptions::default() };
        let new = NewGuest::Configured(Box::new(config), options);
        driver::create(&self.shared, new, Some(replies.clone()))
    }

    /// Reads the file's header on a thread, because its disk may hang; only then the guest has a name.
    fn restore(&self, parameters: RestoreParameters, replies: &Replies) -> Result<(), Refusal> {
        let RestoreParameters { path, name, paused, force } = parameters;
        let path = absolute(path)?;
        let (shared, replies, runtime) = (self.shared.clone(), replies.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let opened = shared.toolstack.open_saved(&path).and_then(|saved| saved.named(&name));
            let restored =
                opened.map_err(|error| refusal::of(&path.display().to_string(), &error)).and_then(|saved| {
                    let _guard = runtime.enter();
                    let new = NewGuest::Saved(Box::new(saved), RestoreOptions { paused, force });
                    driver::create(&shared, new, Some(replies.clone()))
                });
            if let Err(refusal) = restored {
                let _ = replies.blocking_send(Answer::refusal(&refusal));
            }
        });
        Ok(())
    }

    fn monitor(&self, replies: &Replies) {
        let mut events = self.shared.registry.subscribe();
        let replies = replies.clone();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    // The client is gone: its subscription must not last until the next event.
                    () = replies.closed() => return,
                };
                let answer = match event {
                    Ok(event) => Answer::more(&Monitored { event }),
                    // A subscriber that was too slow misses events; it continues with the next.
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                };
                if replies.send(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn service(call: Service) -> Answer {
    let of = match call {
        Service::GetInfo => {
            return Answer::last(&json!({
                "vendor": "Outrigger",
                "product": "outriggerd",
                "version": env!("CARGO_PKG_VERSION"),
                "url": env!("CARGO_PKG_REPOSITORY"),
                "interfaces": [SERVICE_NAME, api::INTERFACE_NAME],
            }));
        }
        Service::GetInterfaceDescription(of) => of,
    };
    match of.interface.as_str() {
        api::INTERFACE_NAME => Answer::last(&json!({ "description": api::INTERFACE })),
        SERVICE_NAME => Answer::last(&json!({ "description": SERVICE_INTERFACE })),
        _ => Answer::call_error(&CallError::InterfaceNotFound { interface: of.interface }),
    }
}

/// The character of a text that has no other.
fn only_character(text: &str) -> Option<char> {
    let mut characters = text.chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// Answers from a thread that may block on Xen or xenstore.
pub(super) fn blocking(replies: &Replies, work: impl FnOnce() -> Answer + Send + 'static) {
    let replies = replies.clone();
    tokio::task::spawn_blocking(move || {
        let _ = replies.blocking_send(work());
    });
}

fn host_info(shared: &Shared) -> Result<HostInfo, toolstack::Cause> {
    let hypervisor = shared.toolstack.hypervisor();
    let version = hypervisor.version_info()?;
    let host = hypervisor.host_info()?;
    let image = &shared.toolstack.paths().stubdomain;
    Ok(HostInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        xen_version: format!("{}.{}{}", version.major, version.minor, version.extra),
        xen_caps: version.capabilities,
        virt_caps: show::virt_caps(&host.capabilities),
        total_memory_kib: host.total_memory,
        free_memory_kib: host.free_memory,
        cpus: host.cpus,
        image: image.display().to_string(),
        image_present: image.join("vmlinuz").is_file() && image.join("initramfs.img").is_file(),
        guests: u32::try_from(shared.registry.all().len()).unwrap_or(u32::MAX),
    })
}
