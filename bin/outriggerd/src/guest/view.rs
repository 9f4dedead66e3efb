//! What others see of a guest.

use api::types::{Refusal, State};
use toolstack::{Guest, GuestId};

/// A guest whose create has failed, and of which something could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incomplete {
    /// Its identity, which its state file has.
    pub(crate) id: GuestId,
    /// The failure.
    pub(crate) problem: String,
}

/// What a guest's driver has published of it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Its name.
    pub(crate) name: String,
    /// The guest; absent until its create has ended.
    pub(crate) guest: Option<Guest>,
    /// What is left of it instead, if its create has failed.
    pub(crate) incomplete: Option<Incomplete>,
    /// What it does, as far as Xen does not say it.
    pub(crate) state: State,
    /// The job in progress.
    pub(crate) job: Option<&'static str>,
}

impl View {
    /// The refusal that names the job in progress, or says that there is only a part of the guest.
    pub(crate) fn busy(&self) -> Refusal {
        if let (Some(incomplete), None) = (&self.incomplete, self.job) {
            let message = format!(
                "Guest {} was not created, and something of it is left; `outrigger destroy {}` removes that: {}",
                self.name, self.name, incomplete.problem
            );
            return Refusal::NotRunning { guest: self.name.clone(), message };
        }
        let lifecycle = self.job.unwrap_or("another request").to_owned();
        Refusal::Busy { guest: self.name.clone(), lifecycle }
    }
}
