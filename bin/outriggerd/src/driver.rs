//! One task a guest: owns what is known of it, takes events from a queue, starts lifecycles on threads of their own.
//!
//! ```text
//!  Busy(create) ──done──▶ Running ──shut down, or device model died──▶ by the configuration:
//!      │ failed            │   ▲                                         destroy  ─▶ Busy(destroy)
//!      ▼                   │   └────────done──── Busy(restart) ◀──────── restart
//!    gone                  │ a client destroys it                        preserve ─▶ Kept
//!      ▲                   ▼                                                          │
//!      └──────done──── Busy(destroy) ◀────────────a client destroys it────────────────┘
//! ```
//!
//! All that a driver knows can be read back from Xen, xenstore and the guest's state file, so that a new daemon's
//! driver goes on where a killed one was.

use api::types::{Failure, Guest as ApiGuest, Progress, State as ApiState, Via};
use config::GuestConfig;
use tokio::sync::mpsc;
use toolstack::{CreateOptions, Decision, Guest, GuestEvent, ShutdownWay, Toolstack, decide};

use crate::answer::Answer;
use crate::convert;
use crate::job::{self, Ended, Job};
use crate::observe;
use crate::registry::{Entry, Key, Registry};

/// Where a handler's answers go.
pub(crate) type Replies = mpsc::Sender<Answer>;

/// What a driver reacts to.
#[derive(Debug)]
pub(crate) enum Event {
    /// Xen has news of some domain: look at ours.
    Look,
    /// A client wants it destroyed.
    Destroy(Replies),
    /// A client wants something quick.
    Request(Request, Replies),
    /// The lifecycle that was under way has ended.
    Ended(Box<Ended>),
}

/// Requests that need no lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Stop its processors.
    Pause,
    /// Let them run.
    Unpause,
    /// Ask it to power off.
    Shutdown,
    /// Ask it to reboot.
    Reboot,
}

/// What a driver is doing.
#[derive(Debug)]
enum State {
    /// Nothing: the guest runs.
    Running,
    /// Nothing: the guest has ended and is kept.
    Kept,
    /// A lifecycle is under way; who asked for it waits for its end.
    Busy(Job, Option<Replies>),
}

/// What all drivers share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Does the work.
    pub(crate) toolstack: Toolstack,
    /// Knows all guests.
    pub(crate) registry: Registry,
}

/// A guest's driver.
struct Driver {
    shared: Shared,
    key: Key,
    guest: Option<Guest>,
    state: State,
    queue: mpsc::UnboundedReceiver<Event>,
    handle: mpsc::UnboundedSender<Event>,
}

/// Takes up a guest that is there.
pub(crate) fn adopt(shared: &Shared, guest: Guest) -> Result<(), Failure> {
    let (handle, queue) = mpsc::unbounded_channel();
    let key = shared.registry.enter(Entry {
        name: guest.name.clone(),
        guest: Some(guest.clone()),
        state: ApiState::Running,
        events: handle.clone(),
    })?;
    let driver =
        Driver { shared: shared.clone(), key, guest: Some(guest), state: State::Running, queue, handle };
    tokio::spawn(driver.run());
    Ok(())
}

/// Makes a new guest for a client.
pub(crate) fn create(
    shared: &Shared,
    config: GuestConfig,
    paused: bool,
    replies: Option<Replies>,
) -> Result<(), Failure> {
    let (handle, queue) = mpsc::unbounded_channel();
    let key = shared.registry.enter(Entry {
        name: config.name.clone(),
        guest: None,
        state: ApiState::Creating,
        events: handle.clone(),
    })?;
    let toolstack = shared.toolstack.clone();
    let name = config.name.clone();
    let options = CreateOptions { paused, ..CreateOptions::default() };
    job::spawn(Job::Create, &name, &handle, replies.clone(), move |events| {
        toolstack.create(&config, options, events).map(Some)
    });
    let state = State::Busy(Job::Create, replies);
    let driver = Driver { shared: shared.clone(), key, guest: None, state, queue, handle };
    tokio::spawn(driver.run());
    Ok(())
}

impl Driver {
    async fn run(mut self) {
        let _ = self.handle.send(Event::Look);
        while let Some(event) = self.queue.recv().await {
            match event {
                Event::Look => self.look(),
                Event::Destroy(replies) => self.destroy_for(replies),
                Event::Request(request, replies) => self.request(request, replies),
                Event::Ended(ended) => self.ended(*ended),
            }
            if self.guest.is_none() && !matches!(self.state, State::Busy(..)) {
                break;
            }
        }
        self.shared.registry.forget(self.key);
    }

    /// Looks whether the guest or its stubdomain has ended, and does what the configuration says.
    fn look(&mut self) {
        let (State::Running, Some(guest)) = (&self.state, self.guest.clone()) else { return };
        let event = match observe::guest(&self.shared.toolstack, &guest) {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(error) => {
                tracing::warn!(guest = guest.name, error = %convert::chain(&error), "cannot look at a guest");
                return;
            }
        };
        self.shared.registry.tell(&guest, convert::kind(&event), convert::detail(&event));
        match decide(&guest.config, &event) {
            Decision::Nothing => {}
            Decision::Destroy => self.destroy(&guest, None),
            Decision::Restart => self.restart(&guest),
            Decision::RenameRestart => self.rename_restart(guest),
            Decision::Preserve => self.keep(&guest, &event),
            Decision::PauseAndPreserve => {
                if let Err(error) = self.shared.toolstack.hypervisor().pause_domain(guest.domid) {
                    tracing::error!(guest = guest.name, error = %convert::chain(&error), "cannot pause");
                }
                self.keep(&guest, &event);
            }
        }
    }

    fn keep(&mut self, guest: &Guest, event: &GuestEvent) {
        self.state = State::Kept;
        let state = match event {
            GuestEvent::DeviceModelDied => ApiState::DmDead,
            GuestEvent::Shutdown(xen::ShutdownReason::Crash) => ApiState::Crashed,
            GuestEvent::Shutdown(_) | GuestEvent::Gone => ApiState::ShutDown,
        };
        self.shared.registry.update(self.key, |entry| entry.state = state);
        self.shared.registry.tell(guest, "preserved", "outrigger destroy ends it");
    }

    fn busy(&mut self, job: Job, replies: Option<Replies>) {
        let state = if job == Job::Destroy { ApiState::Destroying } else { ApiState::ShutDown };
        self.shared.registry.update(self.key, |entry| entry.state = state);
        self.state = State::Busy(job, replies);
    }

    fn destroy_for(&mut self, replies: Replies) {
        match (&self.state, self.guest.clone()) {
            (State::Running | State::Kept, Some(guest)) => self.destroy(&guest, Some(replies)),
            (State::Busy(job, _), _) => self.busy_answer(*job, &replies),
            (_, None) => {}
        }
    }

    fn busy_answer(&self, job: Job, replies: &Replies) {
        let guest = self.guest.as_ref().map_or_else(String::new, |guest| guest.name.clone());
        let failure = Failure::Busy { guest, lifecycle: job.name().to_owned() };
        let _ = replies.try_send(Answer::failure(&failure));
    }

    fn destroy(&mut self, guest: &Guest, replies: Option<Replies>) {
        let toolstack = self.shared.toolstack.clone();
        let domid = guest.domid;
        job::spawn(Job::Destroy, &guest.name, &self.handle, replies.clone(), move |events| {
            toolstack.destroy(domid, events).map(|()| None)
        });
        self.busy(Job::Destroy, replies);
    }

    fn restart(&mut self, guest: &Guest) {
        let toolstack = self.shared.toolstack.clone();
        let domid = guest.domid;
        job::spawn(Job::Restart, &guest.name, &self.handle, None, move |events| {
            toolstack.restart(domid, events).map(Some)
        });
        self.busy(Job::Restart, None);
    }

    /// Keeps the ended guest under another name and makes a new one of its configuration.
    fn rename_restart(&mut self, guest: Guest) {
        // As xl names what it preserves, but with the domid, which no other guest has.
        let name = format!("{}-{}", guest.name, guest.domid);
        if let Err(error) = self.shared.toolstack.rename(guest.domid, &name) {
            tracing::error!(guest = guest.name, error = error.report(), "cannot rename; it is kept as it is");
            return self.keep(&guest, &GuestEvent::Shutdown(xen::ShutdownReason::PowerOff));
        }
        let mut config = guest.config.clone();
        // Two guests cannot have one UUID.
        config.uuid = None;
        let old = Guest { name: name.clone(), ..guest };
        self.shared.registry.update(self.key, |entry| {
            entry.name = name;
            entry.guest = Some(old.clone());
        });
        self.guest = Some(old.clone());
        self.keep(&old, &GuestEvent::Shutdown(xen::ShutdownReason::PowerOff));
        if let Err(failure) = create(&self.shared, config, false, None) {
            self.shared.registry.tell(&old, "create-failed", format!("{failure:?}"));
        }
    }

    fn ended(&mut self, ended: Ended) {
        let State::Busy(job, replies) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        let before = self.guest.take();
        let answer = match ended {
            Ok(Some(guest)) => self.has_guest(guest),
            Ok(None) => {
                if let Some(guest) = &before {
                    self.shared.registry.tell(guest, "destroyed", "");
                }
                Answer::last(&Progress::default())
            }
            Err(error) => {
                tracing::error!(lifecycle = job.name(), error = error.report(), "lifecycle failed");
                self.failed(job, before, &error);
                Answer::failure(&convert::failure(job, &error))
            }
        };
        if let Some(replies) = replies {
            // The client may be slow; nothing here waits for it.
            tokio::spawn(async move { replies.send(answer).await });
        }
    }

    fn has_guest(&mut self, guest: Guest) -> Answer {
        self.shared.registry.update(self.key, |entry| {
            entry.name.clone_from(&guest.name);
            entry.guest = Some(guest.clone());
            entry.state = ApiState::Running;
        });
        self.shared.registry.tell(&guest, "created", "");
        // What happened while nobody looked.
        let _ = self.handle.send(Event::Look);
        let entry = self.shared.registry.find(&guest.domid.to_string());
        self.guest = Some(guest);
        let shown: Option<ApiGuest> =
            entry.ok().and_then(|entry| convert::guest(&self.shared.toolstack, &entry));
        Answer::last(&Progress { guest: shown, ..Progress::default() })
    }

    fn failed(&mut self, job: Job, before: Option<Guest>, error: &toolstack::Error) {
        let Some(guest) = before else { return };
        match job {
            // What is left of it is destroyed again when a client asks or the daemon starts anew.
            Job::Destroy => {
                self.shared.registry.tell(&guest, "destroy-failed", error.to_string());
                self.shared.registry.update(self.key, |entry| entry.state = ApiState::ShutDown);
                self.state = State::Kept;
                self.guest = Some(guest);
            }
            Job::Restart | Job::Create => {
                self.shared.registry.tell(&guest, "create-failed", error.to_string());
                self.shared.registry.tell(&guest, "destroyed", "its restart failed");
            }
        }
    }

    fn request(&mut self, request: Request, replies: Replies) {
        let guest = match (&self.state, &self.guest) {
            (State::Busy(job, _), _) => return self.busy_answer(*job, &replies),
            (_, Some(guest)) => guest.clone(),
            (_, None) => return,
        };
        let toolstack = self.shared.toolstack.clone();
        tokio::task::spawn_blocking(move || {
            let answer = match perform(&toolstack, &guest, request) {
                Ok(Some(via)) => Answer::last(&Via { via }),
                Ok(None) => Answer::last(&serde_json::json!({})),
                Err(error) => Answer::failure(&convert::failed(&error)),
            };
            let _ = replies.blocking_send(answer);
        });
    }
}

/// Does a quick request; the answer says how a guest was asked.
fn perform(
    toolstack: &Toolstack,
    guest: &Guest,
    request: Request,
) -> Result<Option<String>, toolstack::Error> {
    let way = match request {
        Request::Pause => return toolstack.pause(guest.domid).map(|()| None),
        Request::Unpause => return toolstack.unpause(guest.domid).map(|()| None),
        Request::Shutdown => toolstack.shutdown(guest.domid)?,
        Request::Reboot => toolstack.reboot(guest.domid)?,
    };
    Ok(Some(match way {
        ShutdownWay::PvDrivers => "pv".to_owned(),
        ShutdownWay::PowerButton => "acpi".to_owned(),
    }))
}
