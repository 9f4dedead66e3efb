//! Every lifecycle on the simulated host, with a failure at every point: nothing may be left behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot make its world has failed")]

mod change;
mod create;
mod destroy;
mod disks;
mod dump;
mod emulated;
mod fault;
mod files;
mod half_undone;
mod histories;
mod hostile;
mod identity;
mod killed;
mod migrate;
mod processors;
mod qemu;
mod recover;
mod save;
mod strangers;
mod world;
