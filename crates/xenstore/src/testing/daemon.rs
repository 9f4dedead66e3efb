//! The two programs of Xen that keep xenstore, which the cases tell apart.

use std::str::FromStr;

use crate::wire::ErrorCode;
use crate::{Request, Store, StoreError};

/// A program that keeps xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `xenstored`, in C; the in-process server behaves as it does.
    C,
    /// `oxenstored`, in OCaml.
    OCaml,
}

impl Daemon {
    /// Asks it for the list of its commands: `xenstored` gives one to domain 0 and refuses a guest, `oxenstored` answers
    /// that all is well.
    ///
    /// # Errors
    /// As for [`Store`].
    pub fn of(store: &dyn Store) -> Result<Self, StoreError> {
        match store.request(&Request::control("help")) {
            Ok(answer) if answer == b"OK\0" => Ok(Self::OCaml),
            Ok(_) | Err(StoreError::Refused { code: ErrorCode::Access, .. }) => Ok(Self::C),
            Err(error) => Err(error),
        }
    }
}

impl FromStr for Daemon {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "c" => Ok(Self::C),
            "ocaml" => Ok(Self::OCaml),
            _ => Err(format!("{text:?} is not c or ocaml")),
        }
    }
}
