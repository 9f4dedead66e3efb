//! Answers of methods, and how they become varlink replies.

use api::INTERFACE_NAME;
use api::call::{CallError, SERVICE_NAME};
use api::frame::{self, FrameError, Reply};
use api::types::{Progress, Refusal};
use config::Diagnostic;
use serde::Serialize;
use tokio::sync::mpsc;

/// The channel of a call's answers.
pub(crate) type Replies = mpsc::Sender<Answer>;

/// The longest line about a configuration, in characters: a file may have a key of a megabyte.
const MAX_LINE: usize = 1000;

/// Tells a client what there is to say of the configuration that it has sent; `line` makes one of a diagnostic.
pub(crate) fn tell_warnings(
    replies: &Replies,
    diagnostics: &[Diagnostic],
    line: impl Fn(&Diagnostic) -> String,
) {
    let lines = diagnostics.iter().map(|diagnostic| short(&line(diagnostic)));
    let config_warnings: Vec<String> = lines.collect();
    if !config_warnings.is_empty() {
        // A client that does not read misses them.
        let _ = replies.try_send(Answer::more(&Progress { config_warnings, ..Progress::default() }));
    }
}

/// The beginning of a line.
pub(crate) fn short(line: &str) -> String {
    line.chars().take(MAX_LINE).collect()
}

/// One reply to a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// More will follow.
    Continue(Reply),
    /// The last one.
    Last(Reply),
}

impl Answer {
    /// A reply after which more will follow.
    pub(crate) fn more<T: Serialize>(value: &T) -> Self {
        match frame::parameters(value) {
            Ok(parameters) => {
                Self::Continue(Reply { error: None, parameters: Some(parameters), continues: true })
            }
            Err(error) => Self::unencodable(&error),
        }
    }

    /// The last reply.
    pub(crate) fn last<T: Serialize>(value: &T) -> Self {
        match frame::parameters(value) {
            Ok(parameters) => {
                Self::Last(Reply { error: None, parameters: Some(parameters), continues: false })
            }
            Err(error) => Self::unencodable(&error),
        }
    }

    /// An error of `io.outrigger`.
    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        Self::tagged(INTERFACE_NAME, refusal)
    }

    /// An error of `org.varlink.service`.
    pub(crate) fn call_error(error: &CallError) -> Self {
        Self::tagged(SERVICE_NAME, error)
    }

    /// An error whose enum is encoded as its short name and its parameters.
    fn tagged<T: Serialize>(interface: &str, error: &T) -> Self {
        match serde_json::to_value(error) {
            Ok(mut tagged) => {
                let name = tagged["error"].as_str().unwrap_or("Failed").to_owned();
                Self::Last(Reply {
                    error: Some(format!("{interface}.{name}")),
                    parameters: frame::parameters(&tagged["parameters"].take()).ok(),
                    continues: false,
                })
            }
            Err(error) => Self::unencodable(&FrameError::Malformed(error)),
        }
    }

    fn unencodable(error: &FrameError) -> Self {
        tracing::error!(%error, "an answer could not be encoded");
        Self::Last(Reply {
            error: Some(format!("{INTERFACE_NAME}.Failed")),
            parameters: None,
            continues: false,
        })
    }

    /// The reply, and whether it is the last.
    pub(crate) fn into_reply(self) -> (Reply, bool) {
        match self {
            Self::Continue(reply) => (reply, false),
            Self::Last(reply) => (reply, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_becomes_an_error_of_the_interface_with_its_parameters() {
        let (reply, last) = Answer::refusal(&Refusal::NoSuchGuest { guest: "hello".into() }).into_reply();
        assert!(last);
        assert_eq!(reply.error.as_deref(), Some("io.outrigger.NoSuchGuest"));
        assert_eq!(reply.parameters.unwrap().get(), r#"{"guest":"hello"}"#);
    }
}
