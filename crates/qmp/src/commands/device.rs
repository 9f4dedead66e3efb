use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Nothing, commands};
use crate::monitor::Command;

commands! {
    /// Asks for the removal of a device; `DEVICE_DELETED` reports it.
    DeviceDel = "device_del" -> Nothing {
        /// The device.
        id: String,
    }
    /// Removes a network backend.
    NetdevDel = "netdev_del" -> Nothing {
        /// The backend.
        id: String,
    }
    /// Asks for the PCI buses.
    QueryPci = "query-pci" -> Vec<PciBus> {}
    /// Asks for what is below an object.
    QomList = "qom-list" -> Vec<QomProperty> {
        /// The object's path.
        path: String,
    }
    /// Asks for the value of an object's property.
    QomGet = "qom-get" -> Value {
        /// The object's path.
        path: String,
        /// The property.
        property: String,
    }
    /// Asks for processors that are there or can be added.
    QueryHotpluggableCpus = "query-hotpluggable-cpus" -> Vec<HotpluggableCpu> {}
}

/// Adds a device; its arguments depend on the driver.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd(pub Map<String, Value>);

impl Command for DeviceAdd {
    const NAME: &'static str = "device_add";
    type Answer = Nothing;
}

/// Adds a network backend; its arguments depend on the kind.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct NetdevAdd(pub Map<String, Value>);

impl Command for NetdevAdd {
    const NAME: &'static str = "netdev_add";
    type Answer = Nothing;
}

/// A PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PciBus {
    /// Its number.
    pub bus: u32,
    /// What is on it.
    pub devices: Vec<PciDevice>,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PciDevice {
    /// Its bus.
    pub bus: u32,
    /// Its slot.
    pub slot: u32,
    /// Its function.
    pub function: u32,
    /// Its id in QEMU; empty without one.
    #[serde(default)]
    pub qdev_id: String,
    /// What kind of device it says that it is.
    #[serde(default)]
    pub class_info: PciClass,
    /// Its regions of memory and ports.
    #[serde(default)]
    pub regions: Vec<PciRegion>,
}

/// A region of a PCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct PciRegion {
    /// Its number.
    pub bar: u32,
    /// Where it is; negative if it is nowhere.
    pub address: i64,
}

/// The class of a PCI device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PciClass {
    /// Base class and subclass: 0x0200 of an Ethernet card.
    #[serde(default)]
    pub class: u32,
}

/// A property of an object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A processor that is there or can be added.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HotpluggableCpu {
    /// The driver for `device_add`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The arguments for `device_add` that tell where it is.
    pub props: Map<String, Value>,
    /// The object's path when it is there.
    #[serde(default)]
    pub qom_path: Option<String>,
}
