//! The hand-over of a guest to another host: channels, journals on the disk, disks that both hosts have, the stream.
//!
//! [`migration`] has the two machines, which decide; here is what carries out their effects but for those on the guest,
//! which `lifecycle` does.

mod channel;
mod dest_config;
pub(crate) mod disks;
mod error;
pub(crate) mod fuzz;
mod identity;
mod journals;
mod policy;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod stream;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver as Queue, Sender as Feeder, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use config::Uuid;
use migration::MigrationId;
use migration::record::{ReceiverRecord, Record, SenderRecord};

pub(crate) use channel::Heard;
pub use channel::PeerChannel;
pub(crate) use dest_config::for_receiver;
pub use error::HandoverError;
pub(crate) use identity::{Identity, plain};
pub use journals::MigrationRole;
use journals::is_away;
pub(crate) use journals::{JournalFile, all, next_number, remove_old};
pub(crate) use policy::{Missed, Policy, Round};

use crate::Toolstack;
use crate::error::Cause;
use crate::event::Event;
use crate::operation::StepResult;
use receiver::Renewed;

/// The guests that are being received, each with the way to it for another channel of its sender.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receptions(Arc<Mutex<BTreeMap<MigrationId, Feeder<Renewed>>>>);

/// A guest that is being received, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reception {
    receptions: Receptions,
    id: MigrationId,
}

impl Receptions {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Feeder<Renewed>>> {
        // The map is whole between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest is received from now on.
    pub(crate) fn begin(&self, id: MigrationId) -> (Reception, Queue<Renewed>) {
        let (feeder, queue) = channel();
        self.lock().insert(id, feeder);
        (Reception { receptions: self.clone(), id }, queue)
    }

    /// Whether this guest is being received.
    pub(crate) fn has(&self, id: MigrationId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Passes a channel on to the reception of this guest; gives it back if there is none.
    pub(crate) fn pass_on(&self, id: MigrationId, renewed: Renewed) -> Result<(), Renewed> {
        match self.lock().get(&id) {
            Some(feeder) => feeder.send(renewed).map_err(|lost| lost.0),
            None => Err(renewed),
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.receptions.lock().remove(&self.id);
    }
}

/// Fails if an earlier migration of this guest is not settled, and no operator has decided: another host may have it, or
/// get it.
pub(crate) fn check_settled(ts: &Toolstack, guest: Uuid, name: &str) -> StepResult {
    let found = all(ts)?;
    // Whose it is cannot be known.
    if let Some(cause) = found.unreadable.into_iter().next() {
        return Err(cause);
    }
    for (_, journal, record) in found.journals {
        let about = &journal.about;
        if (about.guest == guest || about.name == name) && is_undecided(&record) {
            let (name, peer) = (about.name.clone(), about.peer.clone());
            return Err(HandoverError::Unsettled { name, peer }.into());
        }
    }
    Ok(())
}

fn is_undecided(record: &Record) -> bool {
    match record {
        Record::Sender(record) => matches!(record, SenderRecord::Start | SenderRecord::Go { .. }),
        Record::Receiver(record) => matches!(record, ReceiverRecord::Open | ReceiverRecord::Committed),
    }
}

/// Fails if this guest, or one of this name, left this host by a migration and has not come back: it may run at the other
/// host, with the same disks.
pub(crate) fn check_here(ts: &Toolstack, guest: Uuid, name: &str) -> StepResult {
    let found = all(ts)?.journals;
    let gone = found.iter().find(|(_, journal, record)| {
        (journal.about.guest == guest || journal.about.name == name) && is_away(&found, journal, record)
    });
    match gone {
        Some((_, journal, _)) => {
            let peer = journal.about.peer.clone();
            Err(HandoverError::Elsewhere { name: name.to_owned(), peer }.into())
        }
        None => Ok(()),
    }
}

/// Forgets that this guest, or one of this name, has left: an operator has said that it does not run there, and it runs
/// here now. The other host needs no answer any more. What fails is only told.
pub(crate) fn forget_moved(ts: &Toolstack, guest: Uuid, name: &str, events: &mut dyn FnMut(Event)) {
    let forget = || {
        let found = all(ts)?.journals;
        found
            .iter()
            .filter(|(_, of, _)| of.about.guest == guest || of.about.name == name)
            .filter(|(_, journal, record)| is_away(&found, journal, record))
            .try_for_each(|(_, journal, _)| journal.remove(ts))
    };
    if let Err(cause) = forget() {
        events(Event::Warning { text: cause.chain() });
    }
}

/// A new identity of a migration.
pub(crate) fn new_id(ts: &Toolstack) -> Result<MigrationId, Cause> {
    let mut id = [0; 16];
    ts.host.random(&mut id)?;
    Ok(MigrationId(id))
}

/// The time by this host's clock: only shown, never compared with another host's.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
