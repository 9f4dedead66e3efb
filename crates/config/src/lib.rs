//! The xl.cfg language and its typed form, with diagnostics that point at the line.
//!
//! [`load`] and [`load_str`] turn a file in the language of xl.cfg(5) into a [`GuestConfig`]: every default is
//! filled in, every unit is a type, and what the rest of the project cannot honour was refused here. The crate
//! knows nothing of Xen's interfaces and does no I/O but to read the one file that it is asked for.
#![forbid(unsafe_code)]

pub mod model;

pub use model::{
    Access, Action, Altp2m, Boot, Clock, CpuidLeaf, CpuidPolicy, DeviceModel, DeviceModelCrashAction, Disk,
    DiskController, DiskFormat, DiskKind, DiskSource, Display, Firmware, FirmwareKind, GrantLimits,
    GuestConfig, Lifecycle, MacAddr, MacAddrError, Nic, NicKind, Platform, Rate, SecurityLabels,
    SerialOutput, TimerMode, TscMode, Usb, UsbController, Vdev, VdevBus, VendorDevice, Vga, Viridian,
    ViridianGroup,
};
pub use uuid::Uuid;
