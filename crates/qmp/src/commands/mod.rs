//! The commands that the toolstack uses, with the types of their answers.
//!
//! Names and members are QEMU's (`qapi/*.json`, 7.2 to 10). A member that QEMU may leave out is an `Option`; those that
//! nothing here needs are left out; a new value of an enumeration never makes an answer unreadable, because
//! enumerations are strings.

mod block;
mod device;
mod machine;
mod state;

pub use block::*;
pub use device::*;
pub use machine::*;
pub use state::*;

use serde::{Deserialize, Serialize};

/// What a command gives back that only has to succeed: an object, whatever is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// Declares commands: name, answer, arguments.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $wire:literal -> $answer:ty {
        $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)?
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Command for $name {
            const NAME: &'static str = $wire;
            type Answer = $answer;
        }
    )*};
}
pub(crate) use commands;

#[cfg(test)]
mod tests;
