//! A step of an operation.

use crate::error::Cause;

/// The result of a step or of its undo.
pub type StepResult = Result<(), Cause>;

/// One named step of an operation over the context `C`.
///
/// A step does one thing that can be named to a person. Its undo puts back what the step did, looks at what was really
/// done rather than at what should have been (a step may fail half-way), and does nothing when nothing was.
pub struct Step<C: ?Sized> {
    id: &'static str,
    label: &'static str,
    pub(super) run: fn(&mut C) -> StepResult,
    pub(super) undo: Option<fn(&mut C) -> StepResult>,
    pub(super) is_record: bool,
    pub(super) is_point_of_no_return: bool,
}

impl<C: ?Sized> Step<C> {
    /// Makes a step without an undo. `id` names it to programs, for ever, and once in its list: words of lower-case
    /// letters with hyphens between them. `label` tells people what it does, and may change.
    #[must_use]
    pub const fn new(id: &'static str, label: &'static str, run: fn(&mut C) -> StepResult) -> Self {
        Self { id, label, run, undo: None, is_record: false, is_point_of_no_return: false }
    }

    /// Gives the step the function that puts back what it did.
    #[must_use]
    pub const fn undo(mut self, undo: fn(&mut C) -> StepResult) -> Self {
        self.undo = Some(undo);
        self
    }

    /// The step writes down what the others are about to do. Its undo, which removes that, is run only when nothing else
    /// is left: what stays can then still be found.
    #[must_use]
    pub const fn record(mut self, undo: fn(&mut C) -> StepResult) -> Self {
        self.undo = Some(undo);
        self.is_record = true;
        self
    }

    /// From this step on there is only forward.
    #[must_use]
    pub const fn point_of_no_return(mut self) -> Self {
        self.is_point_of_no_return = true;
        self
    }

    /// What names it to programs.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        self.id
    }

    /// What tells people what it does.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        self.label
    }
}

impl<C: ?Sized> Clone for Step<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ?Sized> Copy for Step<C> {}
