//! One setting stretches every deadline: `OUTRIGGER_TIME_SCALE`.

use std::time::Duration;

use crate::HostError;

/// The factor by which every deadline of a run is multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeScale(f64);

impl TimeScale {
    /// The environment variable that holds the factor.
    pub const VARIABLE: &'static str = "OUTRIGGER_TIME_SCALE";

    /// Reads the factor from the environment; 1 when it is not set.
    ///
    /// # Errors
    /// [`HostError::Setting`] when it is no number between 0.1 and 100.
    pub fn from_env() -> Result<Self, HostError> {
        match std::env::var(Self::VARIABLE) {
            Ok(value) => Self::parse(&value),
            Err(_) => Ok(Self(1.0)),
        }
    }

    fn parse(value: &str) -> Result<Self, HostError> {
        match value.trim().parse::<f64>() {
            Ok(factor) if (0.1..=100.0).contains(&factor) => Ok(Self(factor)),
            _ => Err(HostError::Setting {
                name: Self::VARIABLE,
                value: value.to_owned(),
                reason: "a number from 0.1 to 100 is expected",
            }),
        }
    }

    /// A multiple of this one, for deadlines shorter or longer than others.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self((self.0 * factor).clamp(0.01, 100.0))
    }

    /// Stretches a duration.
    #[must_use]
    pub fn of(self, duration: Duration) -> Duration {
        duration.mul_f64(self.0)
    }
}

impl core::fmt::Display for TimeScale {
    /// Writes the factor as the environment variable takes it.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

impl Default for TimeScale {
    fn default() -> Self {
        Self(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_multiplies_durations() {
        let scale = TimeScale::parse("2.5").unwrap();
        assert_eq!(scale.of(Duration::from_secs(4)), Duration::from_secs(10));
    }

    #[test]
    fn scale_refuses_nonsense() {
        for bad in ["", "fast", "0", "-1", "inf", "NaN", "1000"] {
            assert!(TimeScale::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
