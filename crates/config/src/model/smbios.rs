use serde::{Deserialize, Serialize};

/// A string for the tables in which a guest finds out about its machine (`smbios`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmbiosString {
    /// Which one.
    pub field: SmbiosField,
    /// What it says: not empty, and at most [`Self::MAX_SIZE`] bytes.
    pub value: String,
}

impl SmbiosString {
    /// The longest string, in bytes: what hvmloader reads from xenstore at once has room for it.
    pub const MAX_SIZE: usize = 1024;
    /// How many strings of the manufacturer's ([`SmbiosField::Oem`]) there can be.
    pub const MAX_OEM: usize = 99;
}

/// The strings that can be set (`HVM_XS_BIOS_STRINGS` in `xen/include/public/hvm/hvm_xs_strings.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmbiosField {
    /// Who made the firmware.
    BiosVendor,
    /// The firmware's version.
    BiosVersion,
    /// Who made the machine.
    SystemManufacturer,
    /// The machine's name.
    SystemProductName,
    /// The machine's version.
    SystemVersion,
    /// The machine's serial number.
    SystemSerialNumber,
    /// Who made the main board.
    BaseboardManufacturer,
    /// The main board's name.
    BaseboardProductName,
    /// The main board's version.
    BaseboardVersion,
    /// The main board's serial number.
    BaseboardSerialNumber,
    /// The main board's number in an inventory.
    BaseboardAssetTag,
    /// Where in its case the main board is.
    BaseboardLocationInChassis,
    /// Who made the case.
    EnclosureManufacturer,
    /// The case's serial number.
    EnclosureSerialNumber,
    /// The case's number in an inventory.
    EnclosureAssetTag,
    /// Who made the battery.
    BatteryManufacturer,
    /// The battery's name.
    BatteryDeviceName,
    /// Any string of the manufacturer's; there can be several.
    Oem,
}

impl SmbiosField {
    /// All fields with their names in a configuration.
    pub const NAMES: [(&'static str, Self); 18] = [
        ("bios_vendor", Self::BiosVendor),
        ("bios_version", Self::BiosVersion),
        ("system_manufacturer", Self::SystemManufacturer),
        ("system_product_name", Self::SystemProductName),
        ("system_version", Self::SystemVersion),
        ("system_serial_number", Self::SystemSerialNumber),
        ("baseboard_manufacturer", Self::BaseboardManufacturer),
        ("baseboard_product_name", Self::BaseboardProductName),
        ("baseboard_version", Self::BaseboardVersion),
        ("baseboard_serial_number", Self::BaseboardSerialNumber),
        ("baseboard_asset_tag", Self::BaseboardAssetTag),
        ("baseboard_location_in_chassis", Self::BaseboardLocationInChassis),
        ("enclosure_manufacturer", Self::EnclosureManufacturer),
        ("enclosure_serial_number", Self::EnclosureSerialNumber),
        ("enclosure_asset_tag", Self::EnclosureAssetTag),
        ("battery_manufacturer", Self::BatteryManufacturer),
        ("battery_device_name", Self::BatteryDeviceName),
        ("oem", Self::Oem),
    ];

    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|(_, field)| *field == self);
        named.map(|(name, _)| *name).expect("all fields are in the table")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_state_files_have() {
        for (name, field) in SmbiosField::NAMES {
            assert_eq!(serde_json::to_string(&field).unwrap(), format!("\"{name}\""));
            assert_eq!(field.name(), name);
        }
    }
}
