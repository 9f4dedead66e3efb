/// How far a guest's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being created.
    Creating,
    /// It runs, or has ended and waits for what is to be done.
    Running,
    /// It is being destroyed.
    Destroying,
}
