use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Identifies a domain: 0 to 0x7fef (`DOMID_FIRST_RESERVED` in `xen/include/public/xen.h` is 0x7ff0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct DomId(u16);

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// The first number that Xen keeps for itself and never gives to a domain.
    pub const FIRST_RESERVED: u16 = 0x7ff0;
    /// The last number that Xen gives to a domain.
    pub const LAST: Self = Self(Self::FIRST_RESERVED - 1);

    /// Makes a domid of a number that is below [`Self::FIRST_RESERVED`].
    ///
    /// # Errors
    /// When the number is reserved by Xen.
    pub const fn new(raw: u16) -> Result<Self, DomIdError> {
        if raw < Self::FIRST_RESERVED { Ok(Self(raw)) } else { Err(DomIdError::Reserved(raw)) }
    }

    /// The number as Xen's interfaces take it.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DomId {
    type Err = DomIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Only plain decimal: `u16::from_str` would also take a leading `+`.
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(DomIdError::NotANumber(text.chars().take(16).collect()));
        }
        let raw = text.parse::<u16>().map_err(|_| DomIdError::NotANumber(text.chars().take(16).collect()))?;
        Self::new(raw)
    }
}

impl TryFrom<u16> for DomId {
    type Error = DomIdError;

    fn try_from(raw: u16) -> Result<Self, Self::Error> {
        Self::new(raw)
    }
}

impl From<DomId> for u16 {
    fn from(id: DomId) -> Self {
        id.0
    }
}

/// Why a number or a text is not a domid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DomIdError {
    /// Xen keeps this number for itself.
    #[error("Domid {0} is reserved by Xen (a domain's is below {first})", first = DomId::FIRST_RESERVED)]
    Reserved(u16),
    /// The text is not a decimal number of 16 bits.
    #[error("\"{0}\" is not a domid (a decimal number below {first})", first = DomId::FIRST_RESERVED)]
    NotANumber(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_numbers_are_refused() {
        assert_eq!(DomId::new(0x7ff0), Err(DomIdError::Reserved(0x7ff0)));
        assert_eq!(DomId::new(0x7fef).map(DomId::get), Ok(0x7fef));
    }

    #[test]
    fn only_plain_decimal_text_parses() {
        assert_eq!("17".parse::<DomId>().map(DomId::get), Ok(17));
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "65536", "32752"] {
            assert!(bad.parse::<DomId>().is_err(), "{bad:?} was accepted");
        }
    }
}
