use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The physical CPUs that a guest's vCPUs may run on (`cpus`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    /// Every CPU.
    #[default]
    Any,
    /// The same CPUs for every vCPU.
    All(CpuSet),
    /// A set for each of the first vCPUs; the others may run on every CPU.
    Each(Vec<CpuSet>),
}

impl Affinity {
    /// Where this vCPU may run; `None`: on every CPU.
    #[must_use]
    pub fn of(&self, vcpu: u32) -> Option<&CpuSet> {
        match self {
            Self::Any => None,
            Self::All(cpus) => Some(cpus),
            Self::Each(sets) => sets.get(usize::try_from(vcpu).ok()?),
        }
    }
}

/// Physical CPUs by number, at least one, written as `cpus` is: `0-3,6`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet(BTreeSet<u16>);

/// Why a text is no set of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CpuSetError {
    /// A part of it is no number and no range.
    #[error("\"{0}\" is neither a CPU's number nor a range like 0-3")]
    NotANumber(String),
    /// A number is larger than Xen's largest.
    #[error("CPU {0} does not exist; Xen numbers CPUs from 0 to {max}", max = CpuSet::MAX)]
    TooLarge(u64),
    /// A range ends before it starts.
    #[error("the range {0} ends before it starts")]
    Backwards(String),
    /// It names NUMA nodes.
    #[error("selecting CPUs by NUMA node is not supported yet")]
    Nodes,
    /// No CPU is left.
    #[error("it leaves no CPU to run on")]
    Empty,
}

impl CpuSet {
    /// The largest number: Debian's Xen is built for 512 CPUs (`CONFIG_NR_CPUS`).
    pub const MAX: u16 = 511;

    /// The CPUs that are in both sets; absent if there is none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let both: BTreeSet<u16> = self.0.intersection(&other.0).copied().collect();
        (!both.is_empty()).then_some(Self(both))
    }

    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    /// Reads `all`, numbers and ranges, parted by commas; each `^` takes away again what earlier parts gave.
    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let part = part.trim();
            let (taken_away, what) = match part.strip_prefix('^') {
                Some(rest) => (true, rest),
                None => (false, part),
            };
            for cpu in range(what)? {
                if taken_away {
                    cpus.remove(&cpu);
                } else {
                    cpus.insert(cpu);
                }
            }
        }
        if cpus.is_empty() { Err(CpuSetError::Empty) } else { Ok(Self(cpus)) }
    }
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, CpuSetError> {
    if text == "all" {
        return Ok(0..=CpuSet::MAX);
    }
    if text.starts_with("node:") || text.starts_with("nodes:") {
        return Err(CpuSetError::Nodes);
    }
    let number = |digits: &str| -> Result<u16, CpuSetError> {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number {
            return Err(CpuSetError::NotANumber(text.to_owned()));
        }
        let value = digits.parse().unwrap_or(u64::MAX);
        u16::try_from(value).ok().filter(|cpu| *cpu <= CpuSet::MAX).ok_or(CpuSetError::TooLarge(value))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err(CpuSetError::Backwards(text.to_owned())) } else { Ok(first..=last) }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<u16> = self.iter().collect();
        for (at, run) in cpus.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for CpuSet {
    type Error = CpuSetError;

    fn try_from(text: String) -> Result<Self, CpuSetError> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(cpus: CpuSet) -> Self {
        cpus.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Result<String, CpuSetError> {
        text.parse::<CpuSet>().map(|cpus| cpus.to_string())
    }

    #[test]
    fn sets_are_read_as_xl_does() {
        for (text, cpus) in [
            ("1", "1"),
            ("0-3,5,^1", "0,2-3,5"),
            ("^1,0-3", "0-3"),
            ("3,2,1", "1-3"),
            ("all", "0-511"),
            ("all,^0", "1-511"),
            (" 4 , 6", "4,6"),
        ] {
            assert_eq!(written(text).as_deref(), Ok(cpus), "{text:?}");
        }
    }

    #[test]
    fn wrong_sets_say_why() {
        for (text, error) in [
            ("", CpuSetError::NotANumber(String::new())),
            ("1,", CpuSetError::NotANumber(String::new())),
            ("two", CpuSetError::NotANumber("two".to_owned())),
            ("1-", CpuSetError::NotANumber("1-".to_owned())),
            ("+1", CpuSetError::NotANumber("+1".to_owned())),
            ("512", CpuSetError::TooLarge(512)),
            ("99999999999999999999", CpuSetError::TooLarge(u64::MAX)),
            ("3-1", CpuSetError::Backwards("3-1".to_owned())),
            ("nodes:0", CpuSetError::Nodes),
            ("1,^1", CpuSetError::Empty),
        ] {
            assert_eq!(written(text), Err(error), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(cpus in proptest::collection::btree_set(0..=CpuSet::MAX, 1..40)) {
            let set = CpuSet(cpus);
            proptest::prop_assert_eq!(set.to_string().parse(), Ok(set));
        }
    }
}
