//! Faults that tests inject.

use std::collections::BTreeSet;

use super::step::StepResult;
use crate::error::Cause;

/// On which side of a step an injected fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Instead of the step.
    Before,
    /// When the step has done its work.
    After,
}

/// The steps (by id) that shall fail, and on which side.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    at: BTreeSet<(String, Side)>,
}

impl Faults {
    /// No faults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at the step `id`.
    #[must_use]
    pub fn at(mut self, id: &str, side: Side) -> Self {
        self.at.insert((id.to_owned(), side));
        self
    }

    pub(super) fn strike(&self, id: &str, side: Side) -> StepResult {
        if self.at.is_empty() || !self.at.contains(&(id.to_owned(), side)) {
            return Ok(());
        }
        Err(Cause::Injected { step: id.to_owned() })
    }
}
