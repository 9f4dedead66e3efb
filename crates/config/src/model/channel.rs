use serde::{Deserialize, Serialize};

/// A channel (`channel`): a PV console of the guest's, beside its first, that programs on either side find by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// `name`: what a program in the guest looks for; 1 to 64 letters, digits and `._-`, not only digits.
    pub name: String,
    /// `connection` and `path`: what it ends at in dom0.
    pub connection: ChannelConnection,
}

/// Where a channel ends in dom0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelConnection {
    /// `connection=pty`: a pseudo-terminal.
    Pty,
    /// `connection=socket`: a unix socket at this path, which the console daemon makes.
    Socket(String),
}
