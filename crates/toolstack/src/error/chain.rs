//! The words of causes.

use std::error::Error as _;

use stubdom_abi::AgentExit;

use super::Cause;

impl Cause {
    /// Says which device of the configuration it is about.
    #[must_use]
    pub fn about(self, device: impl Into<String>) -> Self {
        Self::Device { device: device.into(), source: Box::new(self) }
    }

    /// The error with all its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

pub(super) fn ended(reason: Option<xen::ShutdownReason>) -> String {
    reason.map_or_else(|| "is gone".to_owned(), |reason| format!("has ended ({reason})"))
}

pub(super) fn because(exit: Option<&AgentExit>) -> String {
    exit.map(|exit| format!(": {exit}")).unwrap_or_default()
}

pub(super) fn said(error: Option<&str>) -> String {
    error.map(|error| format!("; its driver reports: {error}")).unwrap_or_default()
}
