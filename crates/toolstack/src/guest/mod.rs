//! The guest's own domain: prepared, made, built. It knows nothing of a stubdomain.
//!
//! ```text
//!   prepare ──▶ Prepared ──make──▶ Made ──build──▶ Built ──▶ runs ◀──suspend, resume──▶ suspended
//! ```

mod build;
pub(crate) mod identity;
mod live;
mod make;
mod nodes;
mod params;
mod prepare;
pub(crate) mod suspend;

pub(crate) use build::{Built, Source, build};
pub(crate) use live::Live;
pub(crate) use make::{Made, Spec, make};
pub(crate) use nodes::{Generation, details, memory_target, write_generation_id};
pub(crate) use prepare::Prepared;
