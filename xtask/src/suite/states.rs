//! The hosts that cases start from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use testhost::{Accel, Host, Job, Machine, Preparation, Put, Request, TimeScale, Xenstored};
use vm_report::places::{DEBIAN_STUBDOM, DISC_DISK, HOSTILE_STUB, LINUX_DISK, POWER_DISK};
use vm_report::{CaseInfo, GUEST_CPUS, HostState, MIGRATIONS};

use crate::binaries::{self, Profile, Xen};
use crate::host::{self, BuildOptions};
use crate::releases::DebianOptions;
use crate::view::View;
use crate::{emulator, guest, workspace};

/// As the unit tests were built: nothing is compiled again, and arithmetic that overflows is found.
const PROFILE: Profile = Profile::Dev;
/// What a preparation may take, before scaling: more than a Linux guest's creation and boot may.
const PREPARATION_LIMIT: Duration = Duration::from_secs(600);
/// Where the conformance suite of the ground crates go in dom0.
const CONFORMANCE: [(&str, &str); 2] =
    [("xenstore", "/usr/bin/xenstore-conformance"), ("xen", "/usr/bin/xen-conformance")];

/// The host that a group of cases needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// What it is prepared for.
    pub(super) state: HostState,
    /// Whether the xenstored in C keeps xenstore in its dom0, whichever the suite runs with.
    pub(super) on_c_xenstored: bool,
}

impl Kind {
    /// What a case needs.
    pub(super) fn of(case: &CaseInfo) -> Self {
        Self { state: case.host, on_c_xenstored: case.on_c_xenstored }
    }
}

/// The built hosts, and what is done to them before cases run.
pub(super) struct Hosts {
    /// One without any daemon.
    pub(super) bare: Host,
    daemons: Host,
    /// One with Xen's own tools.
    pub(super) tools: Host,
    /// The program of the cases as it lists them here.
    pub(super) cases: PathBuf,
    /// The usual machine.
    machine: Machine,
    files: Preparation,
    linux: Preparation,
    scale: TimeScale,
}

impl Hosts {
    /// Builds all that goes into them. Deadlines are stretched by `scale`.
    pub(super) fn build(
        scale: TimeScale,
        accel: Accel,
        xenstored: Xenstored,
        debian: DebianOptions,
        view: &mut View,
    ) -> Result<Self> {
        let xen = Xen::of(&debian.store()?, debian.host().xen())?;
        // This machine need not be able to run what dom0 runs.
        let cases = binaries::program("vm-tests", PROFILE, &Xen::Installed)?;
        let programs = programs(&xen)?;
        let build = |bare, with_xen_tools, view: &mut View| {
            let options = BuildOptions { bare, with_xen_tools, debian, ..BuildOptions::default() };
            host::built(&options, &programs, view)
        };
        let (bare, daemons) = (build(true, false, view)?, build(false, false, view)?);
        let tools = build(false, true, view)?;
        let machine = Machine { xenstored, ..emulator::machine(accel, view)? }.stretched(scale);
        let files = Preparation::new("files", "#!/bin/sh\n", files(debian, view)?, PREPARATION_LIMIT)?;
        let script = format!("#!/bin/sh\n{}exec vm-tests prepare-linux\n", exports(&machine, scale));
        let linux = Preparation::new("linux", &script, Vec::new(), PREPARATION_LIMIT)?;
        Ok(Self { bare, daemons, tools, cases, machine, files, linux, scale })
    }

    /// The factor of all deadlines.
    pub(super) fn scale(&self) -> TimeScale {
        self.scale
    }

    /// The usual machine, with its emulator, and with the daemons' deadlines stretched.
    pub(super) fn machine(&self) -> Machine {
        self.machine.clone()
    }

    /// What a script for dom0 says before it starts `vm-tests`.
    pub(super) fn exports(&self) -> String {
        let times = std::env::var(MIGRATIONS).ok().and_then(|times| times.parse::<u32>().ok());
        let times = times.map(|times| format!("export {MIGRATIONS}={times}\n"));
        exports(&self.machine, self.scale) + &times.unwrap_or_default()
    }

    /// What such a host is built of.
    pub(super) fn host(&self, state: HostState) -> &Host {
        match state {
            HostState::Bare => &self.bare,
            HostState::Daemons => &self.daemons,
            HostState::Tools | HostState::LinuxGuest | HostState::Pair => &self.tools,
        }
    }

    /// A run of a script on a copy of a group's host, or on each of a pair.
    pub(super) fn request(&self, kind: Kind, script: &Path, limit: Duration, logs: PathBuf) -> Request {
        let preparations = match kind.state {
            HostState::Bare | HostState::Daemons => Vec::new(),
            HostState::Tools | HostState::Pair => vec![self.files.clone()],
            HostState::LinuxGuest => vec![self.files.clone(), self.linux.clone()],
        };
        let mut machine = self.machine();
        if kind.on_c_xenstored {
            machine.xenstored = Xenstored::C;
        }
        Request {
            machine,
            preparations,
            job: Job::Script(script.to_owned()),
            puts: Vec::new(),
            timeout: Some(limit),
            fresh: false,
            logs,
            scale: self.scale,
        }
    }
}

fn exports(machine: &Machine, scale: TimeScale) -> String {
    let pinned =
        if machine.guests_may_run_anywhere() { String::new() } else { format!("export {GUEST_CPUS}=1\n") };
    format!("export {}={scale}\n{pinned}", TimeScale::VARIABLE)
}

/// What runs in dom0 besides the product: the program of the cases, and the conformance suite.
fn programs(xen: &Xen) -> Result<Vec<Put>> {
    let source = binaries::program("vm-tests", PROFILE, xen)?;
    let mut puts = vec![Put { source, target: "/usr/bin/vm-tests".into() }];
    for (package, target) in CONFORMANCE {
        let source = binaries::example(package, &format!("{package}-conformance"), PROFILE, xen)?;
        puts.push(Put { source, target: target.into() });
    }
    Ok(puts)
}

/// What cases find in dom0's `/root`.
fn files(debian: DebianOptions, view: &mut View) -> Result<Vec<Put>> {
    let linux = guest::linux_disk(view)?;
    let [power, disc] = ["power.img", "disc.img"].map(|name| workspace::kept("guests").join(name));
    testguest::power_disk(&power)?;
    testguest::disc_disk(&disc)?;
    let debian = guest::debian_stubdom(&debian.image_store()?, view)?;
    Ok(vec![
        Put { source: linux, target: LINUX_DISK.into() },
        Put { source: power, target: POWER_DISK.into() },
        Put { source: disc, target: DISC_DISK.into() },
        guest::console()?,
        Put { source: binaries::hostile_stub()?, target: HOSTILE_STUB.into() },
        Put { source: debian, target: DEBIAN_STUBDOM.into() },
    ])
}
