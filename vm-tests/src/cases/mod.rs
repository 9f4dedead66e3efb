//! The cases, one module a subject.

mod agent;
mod bad_input;
mod changes;
mod conformance;
mod console;
mod daemon;
mod devices;
mod dump;
mod ease;
mod emulated;
mod ends;
mod hello;
mod hostile;
mod hotplug;
mod linux;
mod media;
mod migrate;
mod pair;
mod pvh;
mod qmp;
mod save;
mod state;
mod stock;
mod strangers;
mod vchan;
mod xenstored_gone;
mod xl_words;

use anyhow::Result;
use vm_report::{CaseInfo, HostState};

/// One case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<()>,
    /// What it starts from.
    pub(crate) host: HostState,
    /// It takes away what every other case needs, and says by itself what it leaves.
    pub(crate) is_the_end: bool,
    /// It is about the xenstored in C, and runs with that whichever the other cases run with.
    pub(crate) on_c_xenstored: bool,
    /// It takes many minutes, and is run only when cases are chosen by a part of their names.
    pub(crate) is_long: bool,
    /// The first release of Xen that has what it is about; all have it without one.
    pub(crate) since_xen: Option<(u16, u16)>,
    /// It is one of the few that are run on the other Debian's host, too.
    pub(crate) on_each_debian: bool,
}

impl Case {
    /// A case on a host without guests, which has Xen's own tools.
    pub(crate) const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::on(HostState::Tools, name, run)
    }

    /// A case on another host: the idle Linux guest is that of [`crate::harness::idle`], and one of a pair talks to the
    /// other by [`crate::harness::peer`].
    pub(crate) const fn on(host: HostState, name: &'static str, run: fn() -> Result<()>) -> Self {
        Self {
            name,
            run,
            host,
            is_the_end: false,
            on_c_xenstored: false,
            is_long: false,
            since_xen: None,
            on_each_debian: false,
        }
    }

    /// A case after which nothing can run on its host.
    pub(crate) const fn the_end(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { is_the_end: true, ..Self::new(name, run) }
    }

    /// The same, run only when cases are chosen by a part of their names.
    pub(crate) const fn long(self) -> Self {
        Self { is_long: true, ..self }
    }

    /// The same on a host whose xenstore the xenstored in C keeps.
    pub(crate) const fn on_c_xenstored(self) -> Self {
        Self { on_c_xenstored: true, ..self }
    }

    /// The same, left out on hosts with an older Xen than this.
    pub(crate) const fn since_xen(self, major: u16, minor: u16) -> Self {
        Self { since_xen: Some((major, minor)), ..self }
    }

    /// The same, one of the few that are run on the other Debian's host, too.
    pub(crate) const fn on_each_debian(self) -> Self {
        Self { on_each_debian: true, ..self }
    }

    /// What the runner has to know.
    pub(crate) fn info(&self) -> CaseInfo {
        let Self { name, host, is_the_end, on_c_xenstored, is_long, since_xen, on_each_debian, .. } = *self;
        let name = name.to_owned();
        CaseInfo { name, host, is_the_end, on_c_xenstored, is_long, since_xen, on_each_debian }
    }
}

/// The cases of each subject, in the order in which they run.
const SUBJECTS: [&[Case]; 27] = [
    conformance::CASES,
    bad_input::CASES,
    console::CASES,
    hello::CASES,
    pvh::CASES,
    agent::CASES,
    devices::CASES,
    ends::CASES,
    daemon::CASES,
    stock::CASES,
    strangers::CASES,
    ease::CASES,
    xl_words::CASES,
    hotplug::CASES,
    media::CASES,
    save::CASES,
    dump::CASES,
    state::CASES,
    vchan::CASES,
    qmp::CASES,
    hostile::CASES,
    linux::CASES,
    changes::CASES,
    emulated::CASES,
    pair::CASES,
    migrate::CASES,
    xenstored_gone::CASES,
];

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    SUBJECTS.concat()
}
