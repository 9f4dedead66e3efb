use core::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $raw);

        impl $name {
            /// The number as Xen's interfaces take it.
            #[must_use]
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// An event channel's port number within one domain (`evtchn_port_t`, `xen/include/public/event_channel.h`).
    EventPort(u32)
}
number! {
    /// A grant reference: the index of an entry in the granting domain's grant table (`grant_ref_t`,
    /// `xen/include/public/grant_table.h`).
    GrantRef(u32)
}
number! {
    /// A guest frame number: a domain's own count of its 4 KiB pages (`xen_pfn_t`).
    Gfn(u64)
}
