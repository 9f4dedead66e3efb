//! Lifecycles of guests and their stubdomains as named steps, each with its undo.
//!
//! [`Toolstack`] makes and destroys HVM guests whose QEMU runs in a Linux stubdomain. Each lifecycle is a list of
//! steps that one engine runs ([`operation`]); what fails at step N undoes N to 1. Everything it changes outside its own
//! memory goes through three edges, each of which has a simulation: the hypervisor ([`xen::Hypervisor`]), xenstore
//! ([`xenstore::Xenstore`]) and dom0 ([`dom0::HostDevices`]).
//!
//! `ARCHITECTURE.md` has the rooms: `lifecycle` composes `guest`, `stubdomain` and `device`, which do not know it.
//!
//! The calls block, `create` for many seconds: a daemon runs each guest's on a thread of its own. No state is kept in
//! memory between calls; what cannot be read back from Xen and xenstore is in a small file for each guest
//! (`record`), so that the successor of a killed daemon loses no guest and leaves nothing behind
//! ([`Toolstack::recover`]).
//!
//! The xenstore tree is the one that libxl of Xen 4.17 writes (`tools/libs/light`), so that stock tools can list,
//! inspect and destroy our guests.
#![forbid(unsafe_code)]

mod batch;
mod cancel;
mod deadlines;
mod device;
pub mod dom0;
mod domain;
mod error;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod guest;
mod handover;
mod lifecycle;
mod monitors;
mod nodes;
pub mod operation;
mod paths;
mod phase;
mod query;
mod record;
mod saved;
mod states;
mod stubdomain;
mod wait;

use std::sync::{Arc, Mutex};

use config::{GuestConfig, Uuid};
use xen::Hypervisor;
use xen_types::DomId;
use xenstore::Xenstore;

pub use deadlines::Deadlines;
pub use device::Detach;
pub use dom0 as host;
use dom0::HostDevices;
pub use domain::{Domain, GuestId};
pub use error::{Cause, DiskUser, Failure, ToolstackError, ToolstackError as Error, UndoFailure};
pub use event::Event;
pub use handover::{HandoverError, MigrationRole, PeerChannel};
pub use lifecycle::{
    CreateOptions, Decision, EndedWithHost, GuestEvent, Incoming, IncomingGuest, MigrateOptions,
    MigrationInfo, Pins, Recovered, Resolve, ResolveOutcome, RestoreOptions, ShutdownWay, Signal, Unfinished,
    WhileDumped, WithoutDrivers, decide,
};
pub use monitors::{Left, Monitors};
use operation::Faults;
pub use operation::{AfterSave, Pinned, Turn};
pub use paths::Paths;
pub use phase::Phase;
pub use query::{
    ChannelEntry, DiskEntry, DomainEntry, DomainVcpus, GuestInfo, Link, Listing, NicEntry, Screenshot,
};
pub use record::{
    DiskRecord, EmulatedDisk, GuestRecord, LoopRecord, PortRecord, ScriptRecord, UnreadableRecord,
};
pub use saved::Saved;
pub use states::{DeviceStates, STATE_LIMIT};

/// Makes, changes and destroys guests. Cheap to clone; all clones do the same.
#[derive(Clone)]
pub struct Toolstack {
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) xenstore: Xenstore,
    pub(crate) host: Arc<dyn HostDevices>,
    pub(crate) paths: Paths,
    pub(crate) deadlines: Deadlines,
    pub(crate) faults: Faults,
    pub(crate) monitors: Arc<dyn Monitors>,
    pub(crate) states: Arc<dyn DeviceStates>,
    pub(crate) cancels: cancel::Cancels,
    pub(crate) receptions: handover::Receptions,
    /// Locked while a disk is being claimed.
    pub(crate) disks: Arc<Mutex<()>>,
    pub(crate) screens: Arc<query::Turns>,
}

/// A guest that runs, with its stubdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its UUID, which identifies it everywhere.
    pub uuid: Uuid,
    /// Its stubdomain's UUID.
    pub stub_uuid: Uuid,
    /// Its name.
    pub name: String,
    /// The domid of its domain, for display only: code that acts on the domain finds it by UUID.
    pub domid: DomId,
    /// The domid of its stubdomain, for display only.
    pub stub_domid: DomId,
    /// Its configuration.
    pub config: GuestConfig,
}

impl Guest {
    /// Its identity.
    #[must_use]
    pub const fn id(&self) -> GuestId {
        GuestId(self.uuid)
    }
}

impl Toolstack {
    /// Makes a toolstack of its three edges, with the usual paths and deadlines.
    #[must_use]
    pub fn new(hypervisor: Arc<dyn Hypervisor>, xenstore: Xenstore, host: Arc<dyn HostDevices>) -> Self {
        Self {
            hypervisor,
            xenstore,
            host,
            paths: Paths::default(),
            deadlines: Deadlines::from_environment(),
            faults: Faults::none(),
            monitors: Arc::new(monitors::NoMonitors),
            states: Arc::new(states::NoStates),
            cancels: cancel::Cancels::default(),
            receptions: handover::Receptions::default(),
            disks: Arc::default(),
            screens: Arc::default(),
        }
    }

    /// The same with other paths.
    #[must_use]
    pub fn with_paths(mut self, paths: Paths) -> Self {
        self.paths = paths;
        self
    }

    /// The same with other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The deadlines in use.
    #[must_use]
    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// The same with faults injected at steps, for tests.
    #[must_use]
    pub fn with_faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// The same with sessions to device models.
    #[must_use]
    pub fn with_monitors(mut self, monitors: Arc<dyn Monitors>) -> Self {
        self.monitors = monitors;
        self
    }

    /// The same with a way for states of device models.
    #[must_use]
    pub fn with_states(mut self, states: Arc<dyn DeviceStates>) -> Self {
        self.states = states;
        self
    }

    /// Gives up the save of this guest that is in progress, from any thread; returns whether there is one that can be
    /// given up: its file does not have its name yet. It fails then, mostly with [`Cause::Cancelled`], and the guest runs
    /// on.
    #[must_use]
    pub fn cancel(&self, guest: GuestId) -> bool {
        self.cancels.cancel(guest)
    }

    /// Where things live in dom0.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The hypervisor that is used.
    #[must_use]
    pub fn hypervisor(&self) -> &Arc<dyn Hypervisor> {
        &self.hypervisor
    }

    /// dom0, as far as it is neither Xen nor xenstore.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn HostDevices> {
        &self.host
    }

    /// The connection to xenstore that is used.
    #[must_use]
    pub fn xenstore(&self) -> &Xenstore {
        &self.xenstore
    }
}
