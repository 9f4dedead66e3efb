//! The five QMP commands that a snapshot needs. QEMU here is our own child, not a stubdomain's.

use serde_json::{Value, json};

/// What a monitor line means.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply {
    /// The command with this id succeeded, with its return value.
    Done(u64, Value),
    /// The command with this id failed.
    Failed(u64, String),
    /// A greeting or an event: nothing that anybody waits for.
    Other,
}

/// Reads one line of the monitor.
pub(crate) fn parse(line: &str) -> Reply {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return Reply::Other };
    let Some(id) = value.get("id").and_then(Value::as_u64) else { return Reply::Other };
    if let Some(error) = value.get("error") {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("no description");
        return Reply::Failed(id, text.to_owned());
    }
    Reply::Done(id, value.get("return").cloned().unwrap_or(Value::Null))
}

/// Writes one command as a line.
pub(crate) fn command(id: u64, name: &str, arguments: &Value) -> String {
    let mut command = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        command["arguments"] = arguments.clone();
    }
    format!("{command}\n")
}

/// The capability that leaves shared memory out of the migration stream.
pub(crate) fn ignore_shared() -> Value {
    json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_from_events() {
        assert_eq!(
            parse(r#"{"return": {"status": "completed"}, "id": 4}"#),
            Reply::Done(4, json!({"status": "completed"}))
        );
        assert_eq!(
            parse(r#"{"id": 5, "error": {"class": "GenericError", "desc": "no"}}"#),
            Reply::Failed(5, "no".to_owned())
        );
        assert_eq!(parse(r#"{"event": "STOP", "timestamp": {}}"#), Reply::Other);
        assert_eq!(parse("not json"), Reply::Other);
    }

    #[test]
    fn command_without_arguments_has_none() {
        assert_eq!(command(1, "stop", &Value::Null), "{\"execute\":\"stop\",\"id\":1}\n");
    }
}
