//! What a handler gives back, and how it becomes varlink replies.

use api::frame::{self, FrameError, Reply};
use api::types::Failure;
use serde::Serialize;
use serde_json::json;

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
    pub(crate) fn failure(failure: &Failure) -> Self {
        // The enum is encoded as its short name and its parameters.
        match serde_json::to_value(failure) {
            Ok(mut tagged) => {
                let name = tagged["error"].as_str().unwrap_or("Failed").to_owned();
                Self::error(&format!("{}.{name}", api::INTERFACE_NAME), &tagged["parameters"].take())
            }
            Err(error) => Self::unencodable(&FrameError::Malformed(error)),
        }
    }

    /// An error by its full name.
    pub(crate) fn error<T: Serialize>(name: &str, parameters: &T) -> Self {
        Self::Last(Reply {
            error: Some(name.to_owned()),
            parameters: frame::parameters(parameters).ok(),
            continues: false,
        })
    }

    /// `org.varlink.service.InvalidParameter`.
    pub(crate) fn invalid_parameter(why: &FrameError) -> Self {
        let text = match why {
            FrameError::Malformed(source) => source.to_string(),
            other => other.to_string(),
        };
        Self::error("org.varlink.service.InvalidParameter", &json!({ "parameter": text }))
    }

    fn unencodable(error: &FrameError) -> Self {
        tracing::error!(%error, "an answer could not be encoded");
        Self::Last(Reply {
            error: Some(format!("{}.Failed", api::INTERFACE_NAME)),
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
        let (reply, last) = Answer::failure(&Failure::NoSuchGuest { guest: "hello".into() }).into_reply();
        assert!(last);
        assert_eq!(reply.error.as_deref(), Some("io.outrigger.NoSuchGuest"));
        assert_eq!(reply.parameters.unwrap().get(), r#"{"guest":"hello"}"#);
    }
}
