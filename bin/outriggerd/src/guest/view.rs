//! What others see of a guest.

use api::types::{Refusal, State};
use toolstack::Guest;

/// What a guest's driver has published of it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Its name.
    pub(crate) name: String,
    /// The guest; absent until its create has ended.
    pub(crate) guest: Option<Guest>,
    /// What it does, as far as Xen does not say it.
    pub(crate) state: State,
    /// The job in progress.
    pub(crate) job: Option<&'static str>,
}

impl View {
    /// The refusal that names the job in progress.
    pub(crate) fn busy(&self) -> Refusal {
        let lifecycle = self.job.unwrap_or("another request").to_owned();
        Refusal::Busy { guest: self.name.clone(), lifecycle }
    }
}
