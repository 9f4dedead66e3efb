//! Entrances for the fuzz targets: readers of foreign bytes that are nobody's interface.

use std::path::Path;

use config::Uuid;
use serde_json::Value;

use crate::dom0::SimHost;
use crate::paths::Paths;
use crate::query::redraw;
use crate::record::{Found, GuestRecord};

/// Reads a state file of any bytes, under the name that its guest has.
///
/// # Panics
/// When a record does not come back as it was written: the fuzz target has found something.
pub fn state_file(bytes: &[u8]) {
    let value: Option<Value> = serde_json::from_slice(bytes).ok();
    let named = value.as_ref().and_then(|value| value.get("uuid")?.as_str()?.parse().ok());
    let path = GuestRecord::path(&Paths::default(), named.unwrap_or(Uuid::from_u128(1)));
    match read(&path, bytes) {
        Found::Nothing => panic!("the file is there"),
        Found::Unreadable(file) => {
            assert!(!file.cause.to_string().is_empty());
            assert!(file.path == path && file.uuid.is_some());
        }
        Found::Read(record) => {
            let _ = (record.phase(), record.stub_name(), record.is_preserved());
            let _: Vec<_> = record.ports.iter().map(crate::PortRecord::vif).collect();
            let text = record.to_text().expect("what was read can be written");
            let Found::Read(again) = read(&path, &text) else { panic!("what was written can be read") };
            // It may have been of an older form.
            let text = again.to_text().expect("what was read can be written");
            let Found::Read(third) = read(&path, &text) else { panic!("what was written can be read") };
            assert_eq!(again, third);
            let _ = record.guest();
        }
    }
}

fn read(path: &Path, bytes: &[u8]) -> Found {
    let host = SimHost::new();
    host.put_file(path, bytes);
    GuestRecord::load(&host, path)
}

/// Reads a picture of any bytes and encodes it again; returns the PNG if it is one.
#[must_use]
pub fn picture(bytes: &[u8]) -> Option<Vec<u8>> {
    redraw(bytes).ok()
}

/// Receives a guest's stream from another host, which sends what these bytes say (`handover/fuzz.rs`).
///
/// # Panics
/// When a proper stream is not received as it was sent, or more than was sent: the fuzz target has found something.
pub fn stream(bytes: &[u8]) {
    crate::handover::fuzz::run(bytes);
}
