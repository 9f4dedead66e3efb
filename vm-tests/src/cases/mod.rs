//! The cases, one module a subject.

mod agent;
mod bad_input;
mod changes;
mod console;
mod daemon;
mod devices;
mod ease;
mod emulated;
mod ends;
mod hello;
mod hostile;
mod hotplug;
mod linux;
mod media;
mod qmp;
mod state;
mod stock;
mod strangers;
mod vchan;
mod xenstored_gone;

use anyhow::Result;

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<()>,
    /// It takes away what every other case needs: it comes last, and says by itself what it leaves.
    pub(crate) is_the_end: bool,
}

impl Case {
    pub(crate) const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, run, is_the_end: false }
    }

    pub(crate) const fn the_end(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, run, is_the_end: true }
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
        strangers::CASES,
        ease::CASES,
        hotplug::CASES,
        media::CASES,
        state::CASES,
        vchan::CASES,
        qmp::CASES,
        hostile::CASES,
        linux::CASES,
        changes::CASES,
        emulated::CASES,
        // The last.
        xenstored_gone::CASES,
    ]
    .concat()
}
