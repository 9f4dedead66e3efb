//! The methods of the interface: parameters in, drivers asked, answers out.

use api::call::{Call, CallError, Incoming, SERVICE_INTERFACE, SERVICE_NAME, Service};
use api::types::{
    CreateParameters, Disks, Guests, Happened, HostInfo, Info, Inspection, Nics, OneGuest, QmpSocket, Refusal,
};
use config::Uuid;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use toolstack::{CreateOptions, GuestId, Toolstack};

use crate::answer::Answer;
use crate::backoff::Backoff;
use crate::change::{self, Change};
use crate::convert;
use crate::driver::{self, Event, Replies, Request, Shared, Wanted};
use crate::refusal;
use crate::registry::Entry;

/// All methods.
pub(crate) struct Methods {
    shared: Shared,
}

impl Methods {
    /// The methods over the shared parts.
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Has a call answered; the answers come through `replies`, the last of them always.
    pub(crate) fn dispatch(&self, call: Incoming, replies: &Replies) {
        let answer = match call {
            Incoming::Own(call) => self.own(call, replies),
            Incoming::Service(call) => Ok(Some(service(call))),
        };
        if let Some(answer) = answer.unwrap_or_else(|failure| Some(Answer::failure(&failure))) {
            // The channel is new: there is room, or the client is gone.
            let _ = replies.try_send(answer);
        }
    }

    /// A method of ours: its answer, or nothing when the answers come later.
    fn own(&self, call: Call, replies: &Replies) -> Result<Option<Answer>, Refusal> {
        match call {
            Call::List => self.list(replies),
            Call::Get(of) => return Ok(Some(self.get(&self.find(&of.guest)?))),
            Call::Inspect(of) => self.inspect(self.find(&of.guest)?, replies),
            Call::HostInfo => self.host_info(replies),
            Call::Create(of) => self.create(&of, replies)?,
            Call::Destroy(of) => ask(&self.find(&of.guest)?, Event::Destroy(replies.clone()))?,
            Call::Pause(of) => self.request(&of.guest, Request::Pause, replies)?,
            Call::Unpause(of) => self.request(&of.guest, Request::Unpause, replies)?,
            Call::Shutdown(of) => self.request(&of.guest, Request::Shutdown, replies)?,
            Call::Reboot(of) => self.request(&of.guest, Request::Reboot, replies)?,
            Call::Trigger(of) => {
                self.request(&of.guest, Request::Trigger(change::signal(of.trigger), of.vcpu), replies)?;
            }
            Call::Sysrq(of) => {
                let Some(key) = only_character(&of.key) else {
                    let parameter = "key is one character".to_owned();
                    return Ok(Some(Answer::call_error(&CallError::InvalidParameter { parameter })));
                };
                self.request(&of.guest, Request::Sysrq(key), replies)?;
            }
            Call::BlockList(of) => self.devices(self.find(&of.guest)?, replies, |toolstack, id| {
                let disks = toolstack.disks(id)?.into_iter().map(change::disk).collect();
                Ok(Answer::last(&Disks { disks }))
            })?,
            Call::NetworkList(of) => self.devices(self.find(&of.guest)?, replies, |toolstack, id| {
                let nics = toolstack.nics(id)?.into_iter().map(change::nic).collect();
                Ok(Answer::last(&Nics { nics }))
            })?,
            Call::BlockAttach(of) => self.change(&of.guest, Change::block_attach(&of)?, replies)?,
            Call::BlockDetach(of) => self.change(&of.guest, Change::block_detach(&of)?, replies)?,
            Call::CdInsert(of) => self.change(&of.guest, Change::cd_insert(&of)?, replies)?,
            Call::CdEject(of) => self.change(&of.guest, Change::cd_eject(&of)?, replies)?,
            Call::NetworkAttach(of) => self.change(&of.guest, Change::network_attach(&of)?, replies)?,
            Call::NetworkDetach(of) => self.change(&of.guest, Change::network_detach(&of)?, replies)?,
            Call::NetworkSetBridge(of) => {
                self.change(&of.guest.clone(), Change::network_set_bridge(of)?, replies)?;
            }
            Call::VcpuSet(of) => self.change(&of.guest, Change::vcpu_set(of.vcpus), replies)?,
            Call::MemSet(of) => self.change(&of.guest, Change::mem_set(of.memory_kib), replies)?,
            Call::Rename(of) => self.change(&of.guest, Change::rename(of.name), replies)?,
            Call::Screenshot(of) => self.change(&of.guest, Change::screenshot(replies), replies)?,
            Call::Qmp(of) => return Ok(Some(self.qmp(&self.find(&of.guest)?))),
            Call::Monitor => self.monitor(replies),
        }
        Ok(None)
    }

    fn find(&self, asked: &str) -> Result<Entry, Refusal> {
        let hypervisor = self.shared.toolstack.hypervisor();
        let holder = |domid| Some(Uuid::from_bytes(hypervisor.domain_info(domid).ok()??.uuid));
        self.shared.registry.find(asked, holder)
    }

    fn request(&self, guest: &str, request: Request, replies: &Replies) -> Result<(), Refusal> {
        ask(&self.find(guest)?, Event::Request(request, replies.clone()))
    }

    fn change(&self, guest: &str, change: Change, replies: &Replies) -> Result<(), Refusal> {
        ask(&self.find(guest)?, Event::Change(change, replies.clone()))
    }

    fn get(&self, entry: &Entry) -> Answer {
        match convert::guest(&self.shared.toolstack, entry) {
            Some(guest) => Answer::last(&OneGuest { guest }),
            None => {
                let (guest, lifecycle) = (entry.name.clone(), "create".to_owned());
                Answer::failure(&Refusal::Busy { guest, lifecycle })
            }
        }
    }

    fn qmp(&self, entry: &Entry) -> Answer {
        let socket = entry.guest.as_ref().and_then(|guest| self.shared.qmp.socket(guest.id()));
        match socket {
            Some(socket) => Answer::last(&QmpSocket { socket: socket.display().to_string() }),
            None => {
                let (guest, lifecycle) = (entry.name.clone(), "create".to_owned());
                Answer::failure(&Refusal::Busy { guest, lifecycle })
            }
        }
    }

    fn list(&self, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || {
            let entries = shared.registry.all();
            let guests =
                entries.iter().filter_map(|entry| convert::guest(&shared.toolstack, entry)).collect();
            let unreadable = match shared.toolstack.unreadable() {
                Ok(files) => files.iter().map(convert::unreadable).collect(),
                // The guests are shown all the same.
                Err(error) => vec![convert::unreadable_folder(&shared.toolstack.paths().guests(), &error)],
            };
            Answer::last(&Guests { guests, unreadable })
        });
    }

    fn inspect(&self, entry: Entry, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || {
            let (Some(shown), Some(guest)) = (convert::guest(&shared.toolstack, &entry), &entry.guest) else {
                let (guest, lifecycle) = (entry.name.clone(), "create".to_owned());
                return Answer::failure(&Refusal::Busy { guest, lifecycle });
            };
            match crate::inspect::inspect(&shared.toolstack, guest) {
                Ok(found) => Answer::last(&Inspection {
                    guest: shown,
                    config: serde_json::to_value(&guest.config).unwrap_or_default(),
                    qemu_argv: found.qemu_argv,
                    agent: found.agent,
                }),
                Err(error) => Answer::failure(&refusal::of_query(&error)),
            }
        });
    }

    /// Answers what a guest has, from a thread that may block.
    fn devices(
        &self,
        entry: Entry,
        replies: &Replies,
        list: impl FnOnce(&Toolstack, GuestId) -> Result<Answer, toolstack::Error> + Send + 'static,
    ) -> Result<(), Refusal> {
        let Some(guest) = entry.guest else {
            return Err(Refusal::Busy { guest: entry.name, lifecycle: "create".to_owned() });
        };
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || {
            list(&toolstack, guest.id())
                .unwrap_or_else(|error| Answer::failure(&refusal::of(&guest.name, &error)))
        });
        Ok(())
    }

    fn host_info(&self, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || match host_info(&shared) {
            Ok(info) => Answer::last(&Info { info }),
            Err(error) => Answer::failure(&refusal::of_query(&error)),
        });
    }

    fn create(&self, parameters: &CreateParameters, replies: &Replies) -> Result<(), Refusal> {
        let loaded = config::load_str(&parameters.path, &parameters.config);
        let Some(config) = loaded.config else {
            return Err(Refusal::BadConfig { diagnostics: loaded.render(false) });
        };
        let options = CreateOptions { paused: parameters.paused, ..CreateOptions::default() };
        let wanted = Wanted { config, options, note: None, backoff: Backoff::default() };
        driver::create(&self.shared, wanted, Some(replies.clone()))
    }

    fn monitor(&self, replies: &Replies) {
        let mut happenings = self.shared.registry.listen();
        let replies = replies.clone();
        tokio::spawn(async move {
            loop {
                let happened = tokio::select! {
                    happened = happenings.recv() => happened,
                    // The client is gone: it must not be listened for until the next happening.
                    () = replies.closed() => return,
                };
                let answer = match happened {
                    Ok(happening) => Answer::more(&Happened { happening }),
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

fn ask(entry: &Entry, event: Event) -> Result<(), Refusal> {
    entry.events.send(event).map_err(|_| Refusal::NoSuchGuest { guest: entry.name.clone() })
}

/// Answers from a thread that may block on Xen or xenstore.
fn blocking(replies: &Replies, work: impl FnOnce() -> Answer + Send + 'static) {
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
        virt_caps: convert::virt_caps(&host.capabilities),
        total_memory_kib: host.total_memory,
        free_memory_kib: host.free_memory,
        cpus: host.cpus,
        image: image.display().to_string(),
        image_present: image.join("vmlinuz").is_file() && image.join("initramfs.img").is_file(),
        guests: u32::try_from(shared.registry.all().len()).unwrap_or(u32::MAX),
    })
}
