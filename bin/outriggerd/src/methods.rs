//! The methods of the interface: parameters in, drivers asked, answers out.

use std::sync::Arc;

use api::frame::{self, Call};
use api::types::{
    CreateParameters, Disks, Failure, GuestParameter, Guests, Happened, HostInfo, Info, Inspection, Nics,
    OneGuest, QmpSocket, Sysrq, TriggerParameters,
};
use config::Uuid;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use toolstack::{CreateOptions, GuestId, Toolstack};

use crate::answer::Answer;
use crate::backoff::Backoff;
use crate::change::{self, Change};
use crate::convert;
use crate::driver::{self, Event, Replies, Request, Shared, Wanted};
use crate::registry::Entry;

/// The service that every varlink server has.
const SERVICE: &str = "org.varlink.service";
/// Its definition (<https://varlink.org/Service>).
const SERVICE_INTERFACE: &str = "# Every varlink service answers this.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// All methods.
pub(crate) struct Methods {
    shared: Shared,
}

impl Methods {
    /// The methods over the shared parts.
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Whether only the client ends the call.
    pub(crate) fn is_endless(call: &Call) -> bool {
        call.more && call.method.strip_prefix(api::INTERFACE_NAME) == Some(".Monitor")
    }

    /// Has a call answered; the answers come through `replies`, the last of them always.
    pub(crate) fn dispatch(self: &Arc<Self>, call: &Call, replies: &Replies) {
        let (interface, method) = call.method.rsplit_once('.').unwrap_or(("", &call.method));
        let answer = match interface {
            SERVICE => service(method, call),
            api::INTERFACE_NAME => match self.own(method, call, replies) {
                Ok(answer) => answer,
                Err(answer) => Some(answer),
            },
            _ => Some(Answer::error(
                &format!("{SERVICE}.InterfaceNotFound"),
                &json!({ "interface": interface }),
            )),
        };
        if let Some(answer) = answer {
            // The channel is new: there is room, or the client is gone.
            let _ = replies.try_send(answer);
        }
    }

    /// A method of ours: its answer, or nothing when the answers come later.
    fn own(self: &Arc<Self>, method: &str, call: &Call, replies: &Replies) -> Result<Option<Answer>, Answer> {
        let now = |answer| Ok(Some(answer));
        match method {
            "List" => self.list(replies),
            "Get" => return now(self.get(&self.find(call)?)),
            "Inspect" => self.inspect(self.find(call)?, replies),
            "HostInfo" => self.host_info(replies),
            "Create" => self.create(&parameters(call)?, replies),
            "Destroy" => ask(&self.find(call)?, Event::Destroy(replies.clone()))?,
            "Pause" => self.request(call, Request::Pause, replies)?,
            "Unpause" => self.request(call, Request::Unpause, replies)?,
            "Shutdown" => self.request(call, Request::Shutdown, replies)?,
            "Reboot" => self.request(call, Request::Reboot, replies)?,
            "BlockList" => self.devices(self.find(call)?, replies, |toolstack, id| {
                let disks = toolstack.disks(id)?.into_iter().map(change::disk).collect();
                Ok(Answer::last(&Disks { disks }))
            })?,
            "NetworkList" => self.devices(self.find(call)?, replies, |toolstack, id| {
                let nics = toolstack.nics(id)?.into_iter().map(change::nic).collect();
                Ok(Answer::last(&Nics { nics }))
            })?,
            "Trigger" => {
                let TriggerParameters { trigger, vcpu, .. } = parameters(call)?;
                self.request(call, Request::Trigger(change::signal(trigger), vcpu), replies)?;
            }
            "Sysrq" => {
                let key = parameters::<Sysrq>(call)?.key;
                let mut letters = key.chars();
                let (Some(key), None) = (letters.next(), letters.next()) else {
                    let why = json!({ "parameter": "key is one character" });
                    return Err(Answer::error(&format!("{SERVICE}.InvalidParameter"), &why));
                };
                self.request(call, Request::Sysrq(key), replies)?;
            }
            "Qmp" => return now(self.qmp(&self.find(call)?)),
            "Monitor" | "Screenshot" if !call.more => {
                return Err(Answer::error(&format!("{SERVICE}.ExpectedMore"), &json!({})));
            }
            "Monitor" => self.monitor(replies),
            _ => {
                let Some(change) = Change::of(method, call, replies)? else {
                    let name = format!("{SERVICE}.MethodNotFound");
                    return Err(Answer::error(&name, &json!({ "method": method })));
                };
                ask(&self.find(call)?, Event::Change(change, replies.clone()))?;
            }
        }
        Ok(None)
    }

    fn find(&self, call: &Call) -> Result<Entry, Answer> {
        let GuestParameter { guest } = parameters(call)?;
        let hypervisor = self.shared.toolstack.hypervisor();
        let holder = |domid| Some(Uuid::from_bytes(hypervisor.domain_info(domid).ok()??.uuid));
        self.shared.registry.find(&guest, holder).map_err(|failure| Answer::failure(&failure))
    }

    fn request(&self, call: &Call, request: Request, replies: &Replies) -> Result<(), Answer> {
        ask(&self.find(call)?, Event::Request(request, replies.clone()))
    }

    fn get(&self, entry: &Entry) -> Answer {
        match convert::guest(&self.shared.toolstack, entry) {
            Some(guest) => Answer::last(&OneGuest { guest }),
            None => {
                let (guest, lifecycle) = (entry.name.clone(), "create".to_owned());
                Answer::failure(&Failure::Busy { guest, lifecycle })
            }
        }
    }

    fn qmp(&self, entry: &Entry) -> Answer {
        let socket = entry.guest.as_ref().and_then(|guest| self.shared.qmp.socket(guest.id()));
        match socket {
            Some(socket) => Answer::last(&QmpSocket { socket: socket.display().to_string() }),
            None => {
                let (guest, lifecycle) = (entry.name.clone(), "create".to_owned());
                Answer::failure(&Failure::Busy { guest, lifecycle })
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
                return Answer::failure(&Failure::Busy { guest, lifecycle });
            };
            match crate::inspect::inspect(&shared.toolstack, guest) {
                Ok(found) => Answer::last(&Inspection {
                    guest: shown,
                    config: serde_json::to_value(&guest.config).unwrap_or_default(),
                    qemu_argv: found.qemu_argv,
                    agent: found.agent,
                }),
                Err(error) => Answer::failure(&convert::unanswered(&error)),
            }
        });
    }

    /// Answers what a guest has, from a thread that may block.
    fn devices(
        &self,
        entry: Entry,
        replies: &Replies,
        list: impl FnOnce(&Toolstack, GuestId) -> Result<Answer, toolstack::Error> + Send + 'static,
    ) -> Result<(), Answer> {
        let Some(guest) = entry.guest else {
            let lifecycle = "create".to_owned();
            return Err(Answer::failure(&Failure::Busy { guest: entry.name, lifecycle }));
        };
        let toolstack = self.shared.toolstack.clone();
        blocking(replies, move || {
            list(&toolstack, guest.id()).unwrap_or_else(|error| Answer::failure(&convert::refused(&error)))
        });
        Ok(())
    }

    fn host_info(&self, replies: &Replies) {
        let shared = self.shared.clone();
        blocking(replies, move || match host_info(&shared) {
            Ok(info) => Answer::last(&Info { info }),
            Err(error) => Answer::failure(&convert::unanswered(&error)),
        });
    }

    fn create(&self, parameters: &CreateParameters, replies: &Replies) {
        let loaded = config::load_str(&parameters.path, &parameters.config);
        let Some(config) = loaded.config else {
            let diagnostics = loaded.render(false);
            let _ = replies.try_send(Answer::failure(&Failure::BadConfig { diagnostics }));
            return;
        };
        let options = CreateOptions { paused: parameters.paused, ..CreateOptions::default() };
        let wanted = Wanted { config, options, note: None, backoff: Backoff::default() };
        if let Err(failure) = driver::create(&self.shared, wanted, Some(replies.clone())) {
            let _ = replies.try_send(Answer::failure(&failure));
        }
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

fn service(method: &str, call: &Call) -> Option<Answer> {
    #[derive(serde::Deserialize)]
    struct Interface {
        interface: String,
    }

    Some(match method {
        "GetInfo" => Answer::last(&json!({
            "vendor": "Outrigger",
            "product": "outriggerd",
            "version": env!("CARGO_PKG_VERSION"),
            "url": env!("CARGO_PKG_REPOSITORY"),
            "interfaces": [SERVICE, api::INTERFACE_NAME],
        })),
        "GetInterfaceDescription" => match parameters::<Interface>(call) {
            Ok(Interface { interface }) if interface == api::INTERFACE_NAME => {
                Answer::last(&json!({ "description": api::INTERFACE }))
            }
            Ok(Interface { interface }) if interface == SERVICE => {
                Answer::last(&json!({ "description": SERVICE_INTERFACE }))
            }
            Ok(Interface { interface }) => {
                Answer::error(&format!("{SERVICE}.InterfaceNotFound"), &json!({ "interface": interface }))
            }
            Err(answer) => answer,
        },
        _ => Answer::error(&format!("{SERVICE}.MethodNotFound"), &json!({ "method": method })),
    })
}

/// A call's parameters.
pub(crate) fn parameters<T: DeserializeOwned>(call: &Call) -> Result<T, Answer> {
    frame::read_parameters(call.parameters.as_deref()).map_err(|error| Answer::invalid_parameter(&error))
}

fn ask(entry: &Entry, event: Event) -> Result<(), Answer> {
    entry.events.send(event).map_err(|_| Answer::failure(&Failure::NoSuchGuest { guest: entry.name.clone() }))
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
