//! The xl.cfg language and its typed form, with diagnostics that point at the line.
//!
//! [`load()`] and [`load_str`] turn a file in the language of xl.cfg(5) into a [`GuestConfig`]: every default is
//! filled in, every unit is a type, and what the rest of the project cannot honour was refused here. The crate
//! knows nothing of Xen's interfaces and does no I/O but to read the one file that it is asked for.
//!
//! ```
//! let loaded = config::load_str("hello.cfg", "type = 'hvm'\nname = 'hello'\nmemmory = 64\n");
//! assert!(loaded.config.is_none());
//! let error = &loaded.diagnostics[0];
//! assert_eq!(error.one_line(&loaded.source), "hello.cfg:3:1: error[config::unknown-key]: `memmory` is not a key");
//! assert_eq!(error.help[0], "did you mean `memory`?");
//! ```
//!
//! Underneath, [`parse`] gives the language alone: a [`Document`] of settings with the span of everything, also for
//! files with errors in them. [`keys`] says what becomes of each key.
#![forbid(unsafe_code)]

mod bare;
mod diagnostic;
mod document;
pub mod foreign;
mod guest;
mod host;
pub mod keys;
mod lexer;
mod load;
pub mod model;
mod number;
mod parser;
mod reader;
mod report;
mod single;
mod source;
mod text;
mod units;
mod write;

pub use diagnostic::{Diagnostic, Label, Severity};
pub use document::{Atom, Document, Entry, List, Operator, Setting, Value};
pub use host::{HostDefaults, HostRefusal, LoadedHost, load_host, load_host_str};
pub use load::{Loaded, MAX_DIAGNOSTICS, MAX_FILE_SIZE, load, load_bytes, load_str, load_text, unreadable};
pub use model::{
    Access, Action, Affinity, Altp2m, Boot, Channel, ChannelConnection, Clock, CpuSet, CpuSetError,
    CpuidLeaf, CpuidPolicy, DeviceModel, DeviceModelCrashAction, Disk, DiskController, DiskFormat, DiskKind,
    DiskSource, Display, Firmware, FirmwareKind, GrantLimits, GuestConfig, Lifecycle, MacAddr, MacAddrError,
    Nic, NicKind, Platform, QmpTransport, Rate, SecurityLabels, SerialOutput, SmbiosField, SmbiosString,
    StubdomainKind, TimerMode, TscMode, Usb, UsbController, Vdev, VdevBus, VendorDevice, Vga, Viridian,
    ViridianGroup,
};
pub use parser::{MAX_DEPTH, MAX_VALUES, parse};
pub use report::{Related, Report};
pub use single::{LoadedDevice, check_name, device_name, load_disk, load_nic};
pub use source::{Position, SourceFile, Span};
pub use text::Text;
pub use uuid::Uuid;
pub use write::write;
