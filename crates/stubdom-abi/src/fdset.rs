use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// The opaque text of the set of descriptors that holds a CD drive's medium: `stub-devid:<devid>`.
///
/// The toolstack finds the set by this text when it changes the medium; `devid` is the number of the PV disk in
/// the stubdomain (`/local/domain/<stub>/device/vbd/<devid>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StubDevid(pub u32);

/// The text is not the mark of a CD drive's descriptors.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{0}\" is not \"stub-devid:\" and the decimal number of a PV disk")]
pub struct StubDevidError(String);

impl fmt::Display for StubDevid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stub-devid:{}", self.0)
    }
}

impl FromStr for StubDevid {
    type Err = StubDevidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("stub-devid:")
            .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Self)
            .ok_or_else(|| StubDevidError(crate::harmless(text.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_parses_back_and_nothing_else_does() {
        assert_eq!(StubDevid(51728).to_string().parse(), Ok(StubDevid(51728)));
        for bad in ["", "stub-devid:", "stub-devid:+1", "stub-devid: 1", "stub-devid:4294967296", "devid:1"] {
            assert!(bad.parse::<StubDevid>().is_err(), "{bad:?} was accepted");
        }
    }
}
