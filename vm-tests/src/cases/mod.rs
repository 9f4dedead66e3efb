//! The cases, one module a subject.

mod agent;
mod bad_input;
mod console;
mod daemon;
mod devices;
mod ends;
mod hello;
mod hotplug;
mod linux;
mod qmp;
mod stock;
mod vchan;

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
        console::CASES,
        hello::CASES,
        agent::CASES,
        devices::CASES,
        ends::CASES,
        daemon::CASES,
        stock::CASES,
        hotplug::CASES,
        vchan::CASES,
        qmp::CASES,
        linux::CASES,
    ]
    .concat()
}
