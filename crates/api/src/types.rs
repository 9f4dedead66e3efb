//! The types of the interface `io.outrigger`, as its definition names them.

use serde::{Deserialize, Serialize};
use xen_types::{DomId, KiB};

pub use crate::parameters::{
    BlockAttach, BlockDetach, CdEject, CdInsert, ConfigUpdate, CreateParameters, DumpParameters,
    GuestParameter, MemSet, MigrateParameters, NetworkAttach, NetworkDetach, NetworkSetBridge,
    RebootParameters, ReceiveParameters, Rename, ResolveKind, ResolveParameters, RestoreParameters,
    SaveParameters, Sysrq, TriggerKind, TriggerParameters, VcpuPin, VcpuSet,
};
pub use crate::processors::{DomainVcpus, HostCpu, HostNode, Topology, Vcpu, Vcpus};
pub use crate::refusal::{ERRORS, Refusal};

/// The state of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is being created.
    Creating,
    /// Runs, or waits for an event.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Suspended, in memory.
    Suspended,
    /// Ended and preserved.
    ShutDown,
    /// Ended; it is created again now, or after a delay if it ended soon after its last start.
    Restarting,
    /// Crashed and preserved.
    Crashed,
    /// Its device model died, and the guest was preserved.
    DmDead,
    /// It is being destroyed.
    Destroying,
    /// It is being sent to another host.
    Migrating,
    /// Suspended: another host has to say whether it has the guest.
    Unresolved,
}

impl State {
    /// The word for tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::ShutDown => "shut-down",
            Self::Restarting => "restarting",
            Self::Crashed => "crashed",
            Self::DmDead => "dm-dead",
            Self::Destroying => "destroying",
            Self::Migrating => "migrating",
            Self::Unresolved => "unresolved",
        }
    }
}

/// A guest, with its stubdomain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Name, unique on the host.
    pub name: String,
    /// UUID in its usual text form.
    pub uuid: String,
    /// The guest's domid.
    pub domid: DomId,
    /// The domid of the stubdomain with its QEMU; absent when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stub_domid: Option<DomId>,
    /// The stubdomain's UUID in its usual text form; absent when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stub_uuid: Option<String>,
    /// Its state.
    pub state: State,
    /// Memory that the guest holds now.
    pub memory_kib: KiB,
    /// Memory that its stubdomain holds now.
    pub stub_memory_kib: KiB,
    /// Online vCPUs.
    pub vcpus: u32,
    /// CPU time used by the guest, in nanoseconds.
    pub cpu_time_ns: u64,
    /// CPU time used by its stubdomain, in nanoseconds.
    pub stub_cpu_time_ns: u64,
    /// Number of serial ports.
    pub serials: u8,
    /// What `xl list` shows of its domain beside the usual; absent when the domain is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
}

/// What `xl list` shows of a guest's domain beside the usual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Its state in the letters of `xl list`.
    pub flags: String,
    /// Why it has shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its CPU pool.
    pub pool: String,
    /// Its XSM label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The NUMA nodes that its memory comes from first.
    pub nodes: Vec<u32>,
    /// When it was started, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
}

/// Where a guest's QMP is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpSocket {
    /// The path of the unix socket.
    pub socket: String,
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has begun.
    Started,
    /// It has succeeded.
    Done,
    /// It has failed; the steps before it are being undone.
    Failed,
    /// It was undone.
    Undone,
}

/// One step of a lifecycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The lifecycle's name, such as `create`.
    pub lifecycle: String,
    /// From 0.
    pub index: u32,
    /// Number of steps in this lifecycle.
    pub count: u32,
    /// What names the step to programs, within its lifecycle; it stays the same. Empty from older daemons.
    #[serde(default)]
    pub id: String,
    /// What the step does, for people.
    pub name: String,
    /// Its outcome.
    pub outcome: Outcome,
    /// Its duration in milliseconds, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub millis: Option<f64>,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Outrigger's version.
    pub version: String,
    /// Xen's version, such as `4.17.7`.
    pub xen_version: String,
    /// Xen's guest kinds (`xen_caps` of `xl info`).
    pub xen_caps: String,
    /// The processor's capabilities (`virt_caps` of `xl info`).
    pub virt_caps: String,
    /// All memory of the host.
    pub total_memory_kib: KiB,
    /// Memory that no domain holds.
    pub free_memory_kib: KiB,
    /// Physical processors.
    pub cpus: u32,
    /// The directory of the stubdomain's image.
    pub image: String,
    /// Whether the image exists.
    pub image_present: bool,
    /// Number of guests that the daemon manages.
    pub guests: u32,
}

/// An event of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The guest's name.
    pub name: String,
    /// Its UUID in its usual text form.
    #[serde(default)]
    pub uuid: String,
    /// Its domid at that time.
    pub domid: DomId,
    /// One word such as `created`, `powered-off`, `dm-died`.
    pub kind: String,
    /// Details, for people.
    pub detail: String,
}

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name, as the guest sees it.
    pub vdev: String,
    /// Its number in xenstore.
    pub devid: u32,
    /// Whether it is a CD drive.
    pub cdrom: bool,
    /// Whether the guest may write.
    pub writable: bool,
    /// The file or block device; empty for a drive without a medium.
    pub source: String,
    /// The stubdomain's disk behind QEMU's drive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulated_by: Option<String>,
    /// The state of the guest's end (`enum xenbus_state`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u64>,
    /// Its event channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_channel: Option<u64>,
    /// Its ring's grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_ref: Option<u64>,
    /// The backend's directory in xenstore.
    pub backend: String,
}

/// A network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its number.
    pub devid: u32,
    /// Its address.
    pub mac: String,
    /// The bridge that it joins.
    pub bridge: String,
    /// The model of its emulated NIC, if it has one.
    pub model: String,
    /// Whether QEMU emulates a NIC for it.
    pub emulated: bool,
    /// The state of the guest's end (`enum xenbus_state`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u64>,
    /// Its event channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_channel: Option<u64>,
    /// Its sending ring's grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_ring_ref: Option<u64>,
    /// Its receiving ring's grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_ring_ref: Option<u64>,
    /// The backend's directory in xenstore.
    pub backend: String,
}

/// A channel of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Its number among the guest's PV consoles.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// `pty`, or the path of a socket.
    pub connection: String,
    /// The state of the guest's end (`enum xenbus_state`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u64>,
    /// Its event channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_channel: Option<u64>,
    /// Its ring's grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_ref: Option<u64>,
    /// The backend's directory in xenstore.
    pub backend: String,
}

/// The reply of `ChannelList`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channels {
    /// In the configuration's order.
    pub channels: Vec<Channel>,
}

/// The reply of `BlockList`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disks {
    /// In the configuration's order.
    pub disks: Vec<Disk>,
}

/// The reply of `NetworkList`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nics {
    /// In the configuration's order.
    pub nics: Vec<Nic>,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Pages of 4 KiB that are done.
    pub done: u64,
    /// All pages.
    pub total: u64,
}

/// A round of a live migration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// From 0.
    pub number: u32,
    /// Pages of 4 KiB that are still to be sent.
    pub dirty: u64,
    /// Pages sent a second in the round before; 0 in the first one.
    pub rate: u64,
    /// How long the guest would be suspended if this were the last round, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
}

/// What became of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// For people.
    pub state: String,
    /// The line for the other host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The guest's memory is lost: it was started anew, or may be created anew here if there is none.
    pub boots: bool,
}

/// Which side of a migration a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The guest came from it.
    Sender,
    /// The guest went to it.
    Receiver,
}

impl Role {
    /// The word for tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        }
    }
}

/// A migration that a host's journal has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// What names it on both hosts.
    pub id: String,
    /// The guest's UUID in its usual text form.
    pub guest: String,
    /// The guest's name.
    pub name: String,
    /// The other host.
    pub peer: String,
    /// Which side this host is.
    pub role: Role,
    /// How far it is, for people.
    pub state: String,
    /// Whether it waits for the other host or for an operator.
    pub unresolved: bool,
    /// For how many milliseconds the guest stood still, as far as this host knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_still_ms: Option<u64>,
}

/// The reply of `Migrations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Migrations {
    /// All of them.
    pub migrations: Vec<Migration>,
}

/// A reply of `Create`, `Destroy` and the methods that change a guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// A step, in every reply but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// How far that step has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// The round of a live migration that begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<Round>,
    /// For how many milliseconds a guest stood still that runs at the other host now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_still_ms: Option<u64>,
    /// A warning for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What there is to say of the configuration that was sent, a line each; before all steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config_warnings: Vec<String>,
    /// A part of what was asked for, in base64, in the replies of `Screenshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What became of a migration, in the last reply of `MigrateResolve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// The guest, in the last reply of `Create`, `Restore`, `MigrateReceive` and `MigrateResolve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
}

/// The reply of `List`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guests {
    /// By domid.
    pub guests: Vec<Guest>,
    /// What is left of guests that were not created.
    #[serde(default)]
    pub incomplete: Vec<Incomplete>,
    /// State files that this release cannot read; their guests are left alone.
    #[serde(default)]
    pub unreadable: Vec<Unreadable>,
}

/// What is left of a guest whose create has failed and could not be undone completely.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The guest's name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The failure.
    pub problem: String,
}

/// A state file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The file.
    pub file: String,
    /// The guest's UUID, if the file or its name contains it.
    pub uuid: Option<String>,
    /// The guest's name, if the file contains it.
    pub name: Option<String>,
    /// The last domid of the guest's domain, if the file contains it.
    pub domid: Option<DomId>,
    /// Why it cannot be read, and what to do.
    pub problem: String,
}

/// The reply of `Get`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneGuest {
    /// The guest.
    pub guest: Guest,
}

/// The reply of `Inspect`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// The guest.
    pub guest: Guest,
    /// The effective configuration.
    pub config: serde_json::Value,
    /// QEMU's arguments as passed to the stubdomain.
    pub qemu_argv: Vec<String>,
    /// What the agent in the stubdomain reports; untrusted text, already bounded and printable.
    pub agent: serde_json::Value,
}

/// The reply of `Shutdown` and `Reboot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Via {
    /// `pv` or `acpi`.
    pub via: String,
}

/// The reply of `HostInfo`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Info {
    /// The host.
    pub info: HostInfo,
}

/// A reply of `Monitor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Monitored {
    /// What happened.
    pub event: Event,
}
