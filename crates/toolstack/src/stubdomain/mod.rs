//! The stubdomain: a PV or PVH domain with Linux, the agent and QEMU. It is made, built and started without regard to how its
//! guest came to be, or, without a target, before there is one.
//!
//! ```text
//!   prepare ──▶ Prepared ──make──▶ Made ──build──▶ Built ──start──▶ Running ──await_device_model──▶ QEMU runs
//!                                   └── set_target, at any time before QEMU is wanted
//! ```

mod build;
mod image;
mod make;
mod nodes;
mod prepare;
mod start;
mod state;
mod target;

pub(crate) use build::{Built, build};
pub(crate) use make::{Made, Spec, make};
pub(crate) use nodes::{arguments, details};
pub(crate) use prepare::Prepared;
pub(crate) use start::{Running, await_device_model, last_log_lines, start};
pub(crate) use state::{
    Begin, DeviceModel, can_start_early, check_places, check_state, cont, load_state, processors, start_qemu,
    stop, take_state, take_stopped_state,
};
pub(crate) use target::{introduce_target, set_target, write_target};
