use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// One that a newer version knows.
            #[serde(other)]
            Other,
        }

        impl $name {
            /// Returns all that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant,)* Self::Other];

            /// Returns the number in messages.
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other => 255,
                }
            }

            /// Returns the one with a number in messages.
            pub fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                    Self::Other => "for a reason that this version does not know",
                })
            }
        }
    };
}

reasons! {
    /// Why a migration was aborted.
    Reason {
        /// A user cancelled it.
        Cancelled = 1, "cancelled";
        /// The peer was too slow, or silent.
        TimedOut = 2, "timed out";
        /// The channel broke.
        ConnectionLost = 3, "the connection was lost";
        /// The guest ended at the sender before the point of no return.
        GuestEnded = 4, "the guest ended";
        /// The guest cannot be suspended.
        SuspendFailed = 5, "the guest did not suspend";
        /// The guest cannot be saved.
        SaveFailed = 6, "the guest could not be saved";
        /// A journal cannot be written.
        JournalFailed = 7, "a journal could not be written";
        /// A daemon was restarted before the point of no return.
        DaemonRestarted = 8, "a daemon was restarted";
        /// The receiver refused the guest.
        Refused = 9, "the receiver refused the guest";
        /// The receiver has this guest, or an unfinished migration of it.
        Busy = 10, "the receiver already has this guest or an unfinished migration of it";
        /// The guest's domains cannot be built at the receiver.
        BuildFailed = 11, "the receiver could not build the guest";
        /// The guest cannot be loaded at the receiver.
        LoadFailed = 12, "the receiver could not load the guest";
        /// The receiver cannot use the disks.
        ArmFailed = 13, "the receiver could not take over the disks";
        /// The incoming copy was destroyed before the receiver committed.
        CopyDestroyed = 14, "the incoming copy was destroyed";
        /// The receiver has loaded something else than was sent.
        DigestMismatch = 15, "the receiver loaded something else than was sent";
        /// The sender asked for an end before the receiver had committed.
        Settled = 16, "the sender ended it";
        /// The receiver never got the offer.
        NeverOffered = 17, "the receiver never got the offer";
        /// Sender and receiver have no version in common.
        VersionMismatch = 18, "the hosts' versions do not fit";
        /// The receiver's disks are not the sender's.
        DisksDiffer = 19, "the receiver has other disks";
    }
}

reasons! {
    /// Why a guest ended after the receiver had committed.
    Ended {
        /// It powered itself off.
        PoweredOff = 1, "powered off";
        /// It crashed.
        Crashed = 2, "crashed";
        /// It was destroyed.
        Destroyed = 3, "destroyed";
        /// Its host was rebooted.
        HostRebooted = 4, "host rebooted";
    }
}

/// What became of a guest that the receiver committed to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It runs, or did when this was sent.
    Running,
    /// It has ended.
    Ended(Ended),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("runs"),
            Self::Ended(why) => write!(f, "ended: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_of_one_reason() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), *reason);
        }
        for ended in Ended::ALL {
            assert_eq!(Ended::from_code(ended.code()), *ended);
        }
        assert_eq!(Reason::from_code(200), Reason::Other);
    }

    #[test]
    fn a_newer_reason_is_read() {
        assert_eq!(serde_json::from_str::<Reason>("\"moon-full\"").unwrap(), Reason::Other);
    }
}
