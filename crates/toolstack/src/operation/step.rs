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
    pub(super) is_entry: bool,
    pub(super) mark: Option<Mark>,
    pub(super) may_fail: bool,
}

/// What a step is to the whole operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Only forward from here.
    PointOfNoReturn,
    /// From here on a peer decides.
    Peer,
}

impl<C: ?Sized> Step<C> {
    /// Makes a step without an undo. `id` names it to programs, for ever, and once in its list: words of lower-case
    /// letters with hyphens between them. `label` tells people what it does, and may change.
    #[must_use]
    pub const fn new(id: &'static str, label: &'static str, run: fn(&mut C) -> StepResult) -> Self {
        Self { id, label, run, undo: None, is_entry: false, mark: None, may_fail: false }
    }

    /// Gives the step the function that puts back what it did.
    #[must_use]
    pub const fn undo(mut self, undo: fn(&mut C) -> StepResult) -> Self {
        self.undo = Some(undo);
        self
    }

    /// The step makes the operation's entry in the journal. The entry is withdrawn when everything else is undone: as
    /// long as something is left, it can be found.
    #[must_use]
    pub const fn entry(mut self) -> Self {
        self.is_entry = true;
        self
    }

    /// From this step on there is only forward.
    #[must_use]
    pub const fn point_of_no_return(mut self) -> Self {
        self.mark = Some(Mark::PointOfNoReturn);
        self
    }

    /// From this step until the point of no return a peer decides: a failure or an interruption is neither undone nor
    /// continued, and the guest stays locked until the peer has answered.
    #[must_use]
    pub const fn peer_decides(mut self) -> Self {
        self.mark = Some(Mark::Peer);
        self
    }

    /// Beyond the point of no return, the operation is complete also when this step fails.
    #[must_use]
    pub const fn may_fail(mut self) -> Self {
        self.may_fail = true;
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
