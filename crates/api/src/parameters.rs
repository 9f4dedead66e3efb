//! The parameters of the methods of `io.outrigger`.

use serde::{Deserialize, Serialize};
use xen_types::KiB;

/// Parameters of `Create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateParameters {
    /// The text of the xl.cfg file.
    pub config: String,
    /// The file's absolute path.
    pub path: String,
    /// Whether the guest stays paused.
    #[serde(default)]
    pub paused: bool,
    /// Whether it is created although it was migrated to another host.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of the calls that name one guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestParameter {
    /// A name, a uuid or a domid.
    pub guest: String,
}

/// Parameters of `Reboot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RebootParameters {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// A guest without PV drivers is reset.
    #[serde(default)]
    pub reset: bool,
}

/// Parameters of `BlockAttach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockAttach {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The disk, in the format of `xl-disk-configuration(5)`.
    pub disk: String,
}

/// Parameters of `BlockDetach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockDetach {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The disk's name or number.
    pub vdev: String,
    /// Detach without asking the guest.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `CdInsert`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CdInsert {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The drive's name or number.
    pub vdev: String,
    /// The absolute path of a raw image or a block device.
    pub file: String,
    /// Open the tray even if the guest has locked it.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `CdEject`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CdEject {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The drive's name or number.
    pub vdev: String,
    /// Open the tray even if the guest has locked it.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `NetworkAttach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkAttach {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The interface, in the format of `xl-network-configuration(5)`.
    pub vif: String,
}

/// Parameters of `NetworkDetach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkDetach {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The interface's number or address.
    pub nic: String,
    /// Detach without asking the guest.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `NetworkSetBridge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkSetBridge {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The interface's number or address.
    pub nic: String,
    /// The bridge.
    pub bridge: String,
}

/// Parameters of `VcpuSet`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuSet {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The number of vCPUs.
    pub vcpus: u32,
}

/// Parameters of `VcpuPin`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuPin {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The vCPU; all of them if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// The CPUs that it may run on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<String>,
    /// The CPUs that it runs on if they are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<String>,
    /// `vm.cpumask` and `vm.hvm.cpumask` of xl.conf do not count.
    #[serde(default)]
    pub ignore_masks: bool,
}

/// Parameters of `MemSet` and `MemMax`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemSet {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// How much memory, video memory included.
    pub memory_kib: KiB,
}

/// Parameters of `ConfigUpdate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigUpdate {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The text of the xl.cfg file.
    pub config: String,
    /// The file's absolute path.
    pub path: String,
}

/// Parameters of `Rename`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rename {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The new name.
    pub name: String,
}

/// What `Trigger` sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerKind {
    /// The power button.
    Power,
    /// The sleep button.
    Sleep,
    /// A non-maskable interrupt.
    Nmi,
    /// A reset.
    Reset,
    /// An INIT.
    Init,
    /// What wakes a guest that sleeps.
    S3resume,
}

/// Parameters of `Trigger`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TriggerParameters {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// What to send.
    pub trigger: TriggerKind,
    /// The vCPU to send it to.
    #[serde(default)]
    pub vcpu: u32,
}

/// Parameters of `Sysrq`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sysrq {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The key, one character.
    pub key: String,
}

/// Parameters of `Save`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaveParameters {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The absolute path of the file, or of a named pipe.
    pub path: String,
    /// The guest goes on at once.
    #[serde(default)]
    pub checkpoint: bool,
    /// The guest stays, paused.
    #[serde(default)]
    pub paused: bool,
}

/// Parameters of `DumpCore`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpParameters {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The absolute path of the file.
    pub path: String,
    /// The guest runs meanwhile.
    #[serde(default)]
    pub live: bool,
}

/// Parameters of `Restore`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreParameters {
    /// The absolute path of the file, or of a named pipe.
    pub path: String,
    /// Another name than the guest was saved under; empty for the same.
    #[serde(default)]
    pub name: String,
    /// Restore it although a disk was written to after the save.
    #[serde(default)]
    pub force: bool,
    /// The guest stays paused.
    #[serde(default)]
    pub paused: bool,
}

/// Parameters of `Migrate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MigrateParameters {
    /// A name, a uuid or a domid.
    pub guest: String,
    /// The absolute path of the socket on which the client listens.
    pub channel: String,
    /// The other host, for people.
    pub host: String,
    /// The guest runs while most of its memory is sent.
    #[serde(default)]
    pub live: bool,
    /// For how many milliseconds the guest may be suspended; 0 for the default.
    #[serde(default)]
    pub max_downtime_ms: u64,
    /// How many bytes a second are sent at most; 0 for any number.
    #[serde(default)]
    pub bandwidth: u64,
    /// The memory is compressed.
    #[serde(default)]
    pub compress: bool,
    /// The text of a file that replaces the guest's configuration at the other host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_config: Option<String>,
    /// That file's absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_path: Option<String>,
}

/// Parameters of `MigrateReceive`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiveParameters {
    /// The absolute path of the socket on which the client listens.
    pub channel: String,
}

/// How `MigrateResolve` settles a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolveKind {
    /// The receiver says.
    #[default]
    Ask,
    /// A line that the receiver has printed says.
    Answer,
    /// The receiver's host is off.
    AssumeReceiverDead,
    /// The sender's host is off.
    AssumeSenderDead,
}

/// Parameters of `MigrateResolve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolveParameters {
    /// A name or a uuid.
    pub guest: String,
    /// The absolute path of the socket on which the client listens; empty without one.
    #[serde(default)]
    pub channel: String,
    /// In which way.
    #[serde(default)]
    pub how: ResolveKind,
    /// The receiver's line, with [`ResolveKind::Answer`].
    #[serde(default)]
    pub answer: String,
    /// Who decides, with the assumptions.
    #[serde(default)]
    pub operator: String,
}
