//! What clients ask a guest's driver for.

use api::types::{Progress, Via};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use toolstack::{Guest, GuestId, ShutdownWay, Signal, Toolstack};

use super::names::Reservation;
use crate::refusal::{self, JobError};
use crate::reply::{Answer, Replies};

/// How much of a picture goes into one reply, in bytes.
const PART: usize = 1 << 20;

/// A request with the channel of its answers.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What is asked for.
    pub(crate) request: Request,
    /// Who waits for the answers.
    pub(crate) replies: Replies,
}

/// A request.
#[derive(Debug)]
pub(crate) enum Request {
    /// Destroy the guest.
    Destroy,
    /// Change it.
    Change(Change),
    /// Take a screenshot.
    Screenshot,
    /// Do something that needs no job.
    Quick(Quick),
}

/// Requests that need no job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quick {
    /// Pause the guest.
    Pause,
    /// Unpause it.
    Unpause,
    /// Ask it to power off.
    Shutdown,
    /// Ask it to reboot.
    Reboot,
    /// Signal its virtual hardware, at this vCPU.
    Trigger(Signal, u32),
    /// Send a magic SysRq key.
    Sysrq(char),
}

/// The toolstack's operation on the guest.
pub(crate) type Work =
    dyn FnOnce(&Toolstack, GuestId, &mut dyn FnMut(toolstack::Event)) -> Result<Guest, JobError> + Send;

/// A change of a guest.
pub(crate) struct Change {
    /// Its name, as steps and errors carry it.
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) work: Box<Work>,
    /// The guest's name after it, which no other guest can take meanwhile.
    pub(crate) new_name: Option<Reservation>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Executes a quick request. Blocks on Xen and xenstore.
pub(crate) fn perform(toolstack: &Toolstack, guest: &Guest, request: Quick) -> Answer {
    let id = guest.id();
    let done = |result: Result<(), toolstack::Error>| result.map(|()| Answer::last(&serde_json::json!({})));
    let asked = |result: Result<ShutdownWay, toolstack::Error>| {
        result.map(|way| {
            let via = match way {
                ShutdownWay::PvDrivers => "pv".to_owned(),
                ShutdownWay::PowerButton => "acpi".to_owned(),
            };
            Answer::last(&Via { via })
        })
    };
    let outcome = match request {
        Quick::Pause => done(toolstack.pause(id)),
        Quick::Unpause => done(toolstack.unpause(id)),
        Quick::Trigger(signal, vcpu) => done(toolstack.trigger(id, signal, vcpu)),
        Quick::Sysrq(key) => done(toolstack.sysrq(id, key)),
        Quick::Shutdown => asked(toolstack.shutdown(id)),
        Quick::Reboot => asked(toolstack.reboot(id)),
    };
    outcome.unwrap_or_else(|error| Answer::refusal(&refusal::of(&guest.name, &error)))
}

/// Takes a screenshot, which goes to the client in parts. Blocks on QEMU and on the client.
pub(crate) fn screenshot(
    toolstack: &Toolstack,
    id: GuestId,
    events: &mut dyn FnMut(toolstack::Event),
    replies: &Replies,
) -> Result<(), JobError> {
    let png = toolstack.screenshot(id, events)?;
    for part in png.chunks(PART) {
        let data = Some(BASE64_STANDARD.encode(part));
        // A client that has gone wants no picture.
        let _ = replies.blocking_send(Answer::more(&Progress { data, ..Progress::default() }));
    }
    Ok(())
}
