//! Messages as clients get them. Each is one line: a line break between two values of QEMU's becomes a space.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::commands::Version;
use crate::error::ErrorClass;

pub(super) fn greeting(version: &Version, oob: bool) -> String {
    let capabilities: &[&str] = if oob { &["oob"] } else { &[] };
    format!("{}\r\n", json!({"QMP": {"version": version, "capabilities": capabilities}}))
}

/// JSON without line breaks. In checked JSON they stand between values only.
fn one_line(json: &str) -> Cow<'_, str> {
    match json.contains(['\n', '\r']) {
        true => Cow::Owned(json.replace(['\n', '\r'], " ")),
        false => Cow::Borrowed(json),
    }
}

fn with_id(member: &str, value: &str, id: Option<&str>) -> String {
    let value = one_line(value);
    match id {
        Some(id) => format!("{{\"{member}\":{value},\"id\":{}}}\r\n", one_line(id)),
        None => format!("{{\"{member}\":{value}}}\r\n"),
    }
}

pub(super) fn answer(value: &str, id: Option<&str>) -> String {
    with_id("return", value, id)
}

pub(super) fn error(class: &ErrorClass, description: &str, id: Option<&str>) -> String {
    with_id("error", &json!({"class": class.name(), "desc": description}).to_string(), id)
}

/// An event, `data` as it is written.
pub(super) fn event(name: &str, data: Option<&str>, (seconds, micros): (i64, i64)) -> Arc<str> {
    let data = data.map(|data| format!(",\"data\":{}", one_line(data))).unwrap_or_default();
    format!(
        "{{\"event\":\"{name}\"{data},\"timestamp\":{{\"seconds\":{seconds},\"microseconds\":{micros}}}}}\r\n"
    )
    .into()
}

/// An event of ours, now.
pub(super) fn own_event(name: &str, data: &Value) -> Arc<str> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(0);
    event(name, Some(&data.to_string()), (seconds, now.subsec_micros().into()))
}
