//! The cases, one module a subject.

mod bad_input;
mod daemon;
mod devices;
mod ends;
mod hello;
mod linux;
mod qmp;
mod stock;

use anyhow::Result;

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<()>,
}

impl Case {
    pub(crate) const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, run }
    }
}

/// All cases, quick ones first.
pub(crate) fn all() -> Vec<Case> {
    [
        bad_input::CASES,
        hello::CASES,
        devices::CASES,
        ends::CASES,
        daemon::CASES,
        qmp::CASES,
        stock::CASES,
        linux::CASES,
    ]
    .concat()
}
