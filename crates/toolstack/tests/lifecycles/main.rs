//! Every lifecycle on the simulated host, with a failure at every point: nothing may be left behind.

mod create;
mod destroy;
mod fault;
mod recover;
mod world;
