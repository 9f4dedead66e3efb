//! What clients ask a guest's driver for.

use std::time::{Duration, Instant};

use api::types::{Progress, Via};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use toolstack::{Guest, GuestId, ShutdownWay, Signal, Toolstack, WithoutDrivers};

use super::job::Ended;
use super::names::Reservation;
use super::resolve::Resolving;
use crate::refusal::{self, JobError};
use crate::reply::{Answer, Replies};

/// How long a client may take to read a picture.
const SENDING: Duration = Duration::from_secs(30);
/// How much of a picture goes into one reply, in bytes.
const PART: usize = 1 << 20;

/// The name of the change that sends a guest to another host.
pub(crate) const MIGRATE: &str = "migrate";

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
    /// Settle a migration of it.
    Resolve(Resolving),
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
    /// Ask it to reboot; what is done if it has no PV drivers.
    Reboot(WithoutDrivers),
    /// Signal its virtual hardware, at this vCPU.
    Trigger(Signal, u32),
    /// Wake it.
    Wake,
    /// Send a magic SysRq key.
    Sysrq(char),
}

/// The toolstack's operation on the guest; returns the guest, unless it is destroyed.
pub(crate) type Work = dyn FnOnce(&Toolstack, GuestId, &mut dyn FnMut(toolstack::Event)) -> Ended + Send;

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
                ShutdownWay::Reset => "reset".to_owned(),
            };
            Answer::last(&Via { via })
        })
    };
    let outcome = match request {
        Quick::Pause => done(toolstack.pause(id)),
        Quick::Unpause => done(toolstack.unpause(id)),
        Quick::Trigger(signal, vcpu) => done(toolstack.trigger(id, signal, vcpu)),
        Quick::Wake => done(toolstack.wake(id)),
        Quick::Sysrq(key) => done(toolstack.sysrq(id, key)),
        Quick::Shutdown => asked(toolstack.shutdown(id)),
        Quick::Reboot(without) => asked(toolstack.reboot(id, without)),
    };
    outcome.unwrap_or_else(|error| Answer::refusal(&refusal::of(&guest.name, &error)))
}

/// The client did not read.
#[derive(Debug)]
struct Late;

/// Sends an answer, and waits at most this long for the client. One that has gone wants none.
fn send(runtime: &Handle, replies: &Replies, answer: Answer, patience: Duration) -> Result<(), Late> {
    match runtime.block_on(replies.send_timeout(answer, patience)) {
        Err(SendTimeoutError::Timeout(_)) => Err(Late),
        Ok(()) | Err(SendTimeoutError::Closed(_)) => Ok(()),
    }
}

/// Takes a screenshot, which goes to the client in parts. Blocks on QEMU and on the client; a client that does not read
/// holds up the next screenshot, so it has to read this one in time.
pub(crate) fn screenshot(
    toolstack: &Toolstack,
    id: GuestId,
    events: &mut dyn FnMut(toolstack::Event),
    (runtime, replies): (&Handle, &Replies),
) -> Result<(), JobError> {
    let screenshot = toolstack.screenshot(id, events)?;
    let deadline = Instant::now() + SENDING;
    for part in screenshot.png.chunks(PART) {
        let data = Some(BASE64_STANDARD.encode(part));
        let part = Answer::more(&Progress { data, ..Progress::default() });
        let left = deadline.saturating_duration_since(Instant::now());
        send(runtime, replies, part, left).map_err(|Late| JobError::SlowClient { guest: id })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn client_that_does_not_read_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let handle = runtime.handle().clone();
        let (replies, answers) = mpsc::channel(1);
        let part = || Answer::more(&Progress::default());
        // As the daemon: a job's thread, and an event loop on another one.
        let job = std::thread::spawn(move || {
            assert!(send(&handle, &replies, part(), Duration::from_secs(60)).is_ok());
            let late = send(&handle, &replies, part(), Duration::from_millis(10)).is_err();
            drop(answers);
            let gone = send(&handle, &replies, part(), Duration::from_secs(60)).is_ok();
            (late, gone)
        });
        let ended = async {
            while !job.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        runtime.block_on(ended);
        assert_eq!(job.join().unwrap(), (true, true));
    }
}
