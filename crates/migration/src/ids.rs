use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The text is not an identity: 32 hexadecimal digits.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not an identity of 32 hexadecimal digits")]
pub struct IdError {
    text: String,
}

macro_rules! hex {
    ($name:ident, $bytes:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { text: text.chars().take(80).collect() };
                let digits: Vec<u8> = text
                    .chars()
                    .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
                    .collect::<Option<_>>()
                    .ok_or_else(error)?;
                let mut pairs =
                    digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit));
                let mut bytes = [0; $bytes];
                bytes.iter_mut().zip(&mut pairs).for_each(|(byte, pair)| *byte = pair);
                if digits.len() != 2 * $bytes {
                    return Err(error());
                }
                Ok(Self(bytes))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
    };
}

/// The identity of one migration: random, chosen by the sender, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MigrationId(pub [u8; 16]);

/// The identity of a host's journal: random, made with the journal. A reinstalled host has another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct JournalId(pub [u8; 16]);

/// The digest of a stream: XXH3 with 128 bits. It finds what was damaged or left out on the way. Who could change the
/// bytes on purpose could change the digest too: that is what `ssh` is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(pub [u8; 16]);

hex!(MigrationId, 16);
hex!(JournalId, 16);
hex!(Digest, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = MigrationId([0x0f; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let digest = Digest([0xa5; 16]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in ["", "0f", "zz0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0", "é"]
        {
            assert!(text.parse::<MigrationId>().is_err(), "{text}");
        }
    }
}
