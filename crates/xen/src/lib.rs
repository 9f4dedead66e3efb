//! Safe handles on the hypervisor: domains, event channels, grants, foreign memory, domain building; real and
//! simulated.
//!
//! [`Hypervisor`] is what a toolstack asks of Xen. [`RealHypervisor`] asks libxenctrl and libxenguest;
//! [`SimHypervisor`] keeps domains in memory, refuses what Xen refuses, and fails where a test wants it to. Both pass
//! the same conformance tests (module and feature `testing`).
//!
//! [`EventChannels`], [`GrantTable`] and [`GrantAllocator`] need the kernel's device files only: a program that wants
//! nothing else turns the default feature `libxenctrl` off and is not linked with Xen's libraries.

mod build;
mod cpuid;
mod device;
mod domain;
mod error;
mod event;
#[cfg(feature = "libxenctrl")]
mod foreign;
mod grant;
mod hypervisor;
mod memory;
mod page;
mod param;
mod processors;
#[cfg(feature = "libxenctrl")]
mod real;
pub mod release;
mod sim;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use build::{Blob, Channel, GuestMemory, HvmBuild, HvmBuilt, KernelBuild, KernelBuilt, Placed};
pub use cpuid::{CpuidBits, CpuidBitsError, CpuidLeaf, CpuidPolicy};
pub use domain::{
    Altp2m, CpuMap, DomainInfo, DomainKind, DomainSpec, DomainState, HostCapabilities, HostInfo, ResumeWay,
    ShutdownReason, Trigger, TscMode, VersionInfo,
};
pub use error::{Abandoned, Refusal, Result, XenError};
pub use event::{EventChannels, Virq};
#[cfg(feature = "libxenctrl")]
pub use foreign::ForeignMemory;
pub use grant::{GrantAllocator, GrantMapping, GrantTable, GrantedPages, MAX_PAGES, OnUnmap};
pub use hypervisor::Hypervisor;
pub use memory::{Cancel, DumpCore, Precopy, RestoreMemory, SaveEvents, SaveMemory, Verdict};
pub use nix::errno::Errno;
pub use page::{Access, SharedPages};
pub use param::{HvmParam, Viridian};
pub use processors::{HostCpu, HostNode, Processors, Topology, VcpuInfo};
#[cfg(feature = "libxenctrl")]
pub use real::{RealHypervisor, memory_stream_helper};
pub use sim::{Operation, SimHypervisor};
