use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// One network interface (`xl-network-configuration(5)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `devid`; the default is the interface's place in the list, from 0. No two interfaces have the same.
    pub devid: u32,
    /// `mac`; absent: see [`Nic::address`].
    pub mac: Option<MacAddr>,
    /// `bridge`; absent: the host's default (`xenbr0`). With a script, it may have VLANs behind colons.
    pub bridge: Option<String>,
    /// `model`: QEMU's name of the emulated NIC; default `rtl8139`. Letters, digits, `-`, `_` and `.` only.
    pub model: String,
    /// `type`: default [`NicKind::Ioemu`].
    pub kind: NicKind,
    /// `script`: the hotplug script in dom0; absent: none is run and the bridge is joined directly.
    pub script: Option<String>,
    /// `vifname`: name of the interface in dom0; absent: `vif<domid>.<devid>`. At most 15 bytes.
    pub vifname: Option<String>,
    /// `ip`: handed to the hotplug script.
    pub ip: Option<String>,
    /// `gatewaydev`, and the older `netdev`: handed to the hotplug script.
    pub gateway_dev: Option<String>,
    /// `backend`: name or number of the backend domain; absent: dom0.
    pub backend: Option<String>,
    /// `rate`: limit on what the guest sends.
    pub rate: Option<Rate>,
    /// `mtu` in bytes, 68 to 65535; absent: the bridge's.
    pub mtu: Option<u32>,
    /// `trusted` (true, the default) or `untrusted`: what the guest's frontend is told of its backend.
    pub trusted: bool,
}

impl Nic {
    /// The default model of xl.cfg.
    pub const DEFAULT_MODEL: &'static str = "rtl8139";

    /// The interface's address: the configured one, or one that depends on the guest and the interface alone, so
    /// that a guest that is created again keeps it.
    #[must_use]
    pub fn address(&self, guest: &Uuid) -> MacAddr {
        self.mac.unwrap_or_else(|| MacAddr::generated(guest, self.devid))
    }
}

/// How an interface is offered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicKind {
    /// Emulated NIC and PV interface.
    Ioemu,
    /// PV interface only.
    Vif,
}

/// A limit on a vif's traffic, as netback takes it (xenstore `rate`: `<bytes>,<microseconds>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes that may pass in an interval.
    pub bytes_per_interval: u64,
    /// Length of an interval in microseconds.
    pub interval_usecs: u32,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Makes the address that an interface without a configured one gets: in Xen's range `00:16:3e`, the same
    /// for the same guest and devid, spread by FNV-1a.
    #[must_use]
    pub fn generated(guest: &Uuid, devid: u32) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in guest.as_bytes().iter().chain(&devid.to_le_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        // The top bit of the fourth byte stays clear, as in libxl: Xen's range is used by halves.
        Self([0x00, 0x16, 0x3e, (a ^ d) & 0x7f, b ^ e, c ^ f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an Ethernet address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacAddrError {
    /// Not six groups of one or two hexadecimal digits with colons between.
    #[error("\"{0}\" is not an Ethernet address (six groups of two hexadecimal digits with colons between)")]
    Syntax(String),
    /// The address is a group's, which no interface may have.
    #[error("{0} is a multicast address, which no interface can have")]
    Multicast(MacAddr),
}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MacAddrError::Syntax(text.chars().take(40).collect());
        let mut bytes = [0_u8; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().ok_or_else(syntax)?;
            if group.is_empty() || group.len() > 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| syntax())?;
        }
        if groups.next().is_some() {
            return Err(syntax());
        }
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 { Err(MacAddrError::Multicast(mac)) } else { Ok(mac) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = MacAddrError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}
