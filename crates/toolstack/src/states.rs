//! How the state of a guest's device model gets out of a stubdomain and into one.

use std::time::Duration;

use crate::domain::Domain;
use crate::error::Cause;
use crate::operation::StepResult;

/// The largest state of a device model that is taken, in bytes. An emulated e1000 has 200 KB; nothing that can be
/// configured comes near this.
pub const STATE_LIMIT: usize = 16 << 20;

/// Moves states of device models through the consoles 1 and 2 of their stubdomains.
pub trait DeviceStates: Send + Sync {
    /// Takes the stream of console 1, then has QEMU asked to write its state by `ask`, and gives what has come back. The
    /// stubdomain is hostile: it is bounded to [`STATE_LIMIT`].
    ///
    /// # Errors
    /// When the console cannot be had, `ask` fails, nothing comes for `patience`, or what comes is damaged or too long.
    fn receive(
        &self,
        stub: Domain,
        patience: Duration,
        ask: &mut dyn FnMut() -> StepResult,
    ) -> Result<Vec<u8>, Cause>;

    /// Sends a state into console 2, and returns when the stubdomain has taken all of it.
    ///
    /// # Errors
    /// When the console cannot be had, or nothing is taken for `patience`.
    fn send(&self, stub: Domain, state: &[u8], patience: Duration) -> StepResult;
}

/// Moves none, until a daemon gives others.
#[derive(Debug)]
pub(crate) struct NoStates;

impl DeviceStates for NoStates {
    fn receive(&self, _: Domain, _: Duration, _: &mut dyn FnMut() -> StepResult) -> Result<Vec<u8>, Cause> {
        Err(none())
    }

    fn send(&self, _: Domain, _: &[u8], _: Duration) -> StepResult {
        Err(none())
    }
}

fn none() -> Cause {
    let (what, why) =
        ("Transferring the state of QEMU's devices".to_owned(), "there is no console daemon".to_owned());
    Cause::Unsupported { what, why }
}
