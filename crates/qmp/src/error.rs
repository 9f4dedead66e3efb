use std::fmt;

use thiserror::Error;

use crate::decode::DecodeError;

/// What kind of error QEMU answered with (`QapiErrorClass` in QEMU's `qapi/error.json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// `GenericError`: the description is all there is.
    Generic,
    /// `CommandNotFound`: no such command, or not now.
    CommandNotFound,
    /// `DeviceNotActive`: the device has no medium, or is not in the state that the command needs.
    DeviceNotActive,
    /// `DeviceNotFound`: no such device.
    DeviceNotFound,
    /// Any other.
    Other(String),
}

impl ErrorClass {
    /// The class of this name; at most 64 characters of an unknown one are kept.
    #[must_use]
    pub fn of(name: &str) -> Self {
        match name {
            "GenericError" => Self::Generic,
            "CommandNotFound" => Self::CommandNotFound,
            "DeviceNotActive" => Self::DeviceNotActive,
            "DeviceNotFound" => Self::DeviceNotFound,
            other => Self::Other(harmless(other, 64)),
        }
    }

    /// Its name in the protocol.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Generic => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a QMP command failed, or an event was not received.
#[derive(Debug, Error)]
pub enum QmpError {
    /// QEMU refused.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// The kind of error.
        class: ErrorClass,
        /// What QEMU said, control characters taken out.
        description: String,
    },
    /// There is no session with the device model.
    #[error("QEMU cannot execute {command}: {why}")]
    NoSession {
        /// The command.
        command: String,
        /// Why there is none.
        why: String,
    },
    /// The session was lost before the answer: whether the command was executed is not known.
    #[error(
        "The session with QEMU was lost during {command} ({why}); check whether it was executed before you \
         repeat it"
    )]
    Lost {
        /// The command, or what was waited for.
        command: String,
        /// Why it was lost.
        why: String,
    },
    /// No answer in time.
    #[error(
        "QEMU did not answer {command} in time; OUTRIGGER_TIME_SCALE extends the deadline on a slow machine"
    )]
    Timeout {
        /// The command.
        command: String,
    },
    /// No event in time.
    #[error("QEMU did not send {event} in time")]
    NoEvent {
        /// What was waited for.
        event: String,
    },
    /// The answer is not of the command's type.
    #[error("QEMU's answer to {command} is invalid")]
    BadAnswer {
        /// The command.
        command: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The request cannot be written.
    #[error("{command} cannot be sent")]
    BadRequest {
        /// The command.
        command: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The bytes received are not QMP.
    #[error("QEMU sent something that is not QMP")]
    Decode(#[from] DecodeError),
}

impl QmpError {
    /// Whether QEMU refused with this class.
    #[must_use]
    pub fn is_refused_as(&self, wanted: &ErrorClass) -> bool {
        matches!(self, Self::Refused { class, .. } if class == wanted)
    }
}

/// Whether a character could make a line look like another one: control characters, those that change the direction of
/// text or have no width, and separators of lines.
#[must_use]
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text of QEMU's making as one harmless line of at most `limit` characters.
#[must_use]
pub fn harmless(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if is_deceptive(c) { ' ' } else { c })
        .take(limit)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_pretend_to_be_another() {
        assert_eq!(harmless("a\u{202e}b\u{200b}c\n\u{feff}Grün 你好", 99), "a b c  Grün 你好");
    }
}
