//! Files of other releases: missing keys get their defaults where there are any, unknown keys are preserved.

use std::sync::OnceLock;

use config::GuestConfig;
use serde_json::{Value, json};

use super::{FORM, GuestRecord};

/// A minimal configuration, with one device for each list whose elements are filled in.
const LEAST: &str =
    "type = 'hvm'\nname = 'guest'\nmemory = 16\ndisk = ['/dev/null,raw,xvda,w']\nvif = ['bridge=xenbr0']";

/// Keys of a configuration that are not filled in: a guest without one of them would be another guest.
const REQUIRED: [&str; 7] = ["name", "memory", "max_memory", "vcpus", "max_vcpus", "disks", "nics"];
/// The same for a disk.
const REQUIRED_OF_DISK: [&str; 5] = ["vdev", "source", "format", "access", "kind"];
/// The same for a network interface. A missing `mac`, `bridge` or `script` is absent as in a configuration file.
const REQUIRED_OF_NIC: [&str; 3] = ["devid", "model", "kind"];

/// A file as it was read, and the part of it that this release understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    file: Value,
    understood: Value,
}

impl GuestRecord {
    /// Reads a record; keys that its release did not know get their defaults. Fails when a key without a default is
    /// missing.
    pub(super) fn from_value(mut file: Value) -> Result<Self, serde_json::Error> {
        upgrade(&mut file);
        for key in ["config", "next_config"] {
            if let Some(config) = file.get_mut(key).filter(|config| !config.is_null()) {
                fill_config(config)?;
            }
        }
        let mut record: Self = serde_json::from_value(file.clone())?;
        record.stored = Stored { understood: serde_json::to_value(&record)?, file };
        Ok(record)
    }

    /// Whether the file that it was read from records a boot.
    pub(crate) fn has_stored_boot(&self) -> bool {
        self.stored.file.get("boot").is_some_and(|boot| !boot.is_null())
    }

    /// The file's text, including the keys that only another release knows.
    pub(crate) fn to_text(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        keep_unknown(&mut value, &self.stored.file, &self.stored.understood);
        serde_json::to_vec_pretty(&value)
    }
}

/// Replaces the phase and the change of the first form by the operation that they stand for.
fn upgrade(file: &mut Value) {
    let Value::Object(file) = file else { return };
    if file.get("form").and_then(Value::as_u64) != Some(1) {
        return;
    }
    file.insert("form".to_owned(), json!(FORM));
    let (phase, change) = (file.remove("phase"), file.remove("change"));
    let operation = match (phase.as_ref().and_then(Value::as_str), change) {
        (Some("creating"), _) => json!({"kind": {"create": {"paused": false}}, "cursor": cursor("back")}),
        (Some("destroying"), _) => json!({"kind": "destroy", "cursor": cursor("forward")}),
        (Some("running"), None | Some(Value::Null)) => Value::Null,
        (Some("running"), Some(mut change)) => {
            let devices = change.as_object_mut().into_iter().flat_map(|change| change.values_mut());
            let mut released = devices.filter_map(|device| device.as_object_mut()?.remove("let_go"));
            let is_released = released.any(|value| value == json!(true));
            json!({"kind": change, "cursor": cursor(if is_released { "forward" } else { "back" })})
        }
        // Not understood, so that the file is not read.
        (phase, _) => json!({"kind": phase, "cursor": {}}),
    };
    file.insert("operation".to_owned(), operation);
}

/// A cursor that names no step: the first form did not.
fn cursor(way: &str) -> Value {
    json!({"step": "", "way": way})
}

/// The values of missing keys.
struct Defaults {
    config: Value,
    disk: Value,
    nic: Value,
}

impl Defaults {
    fn new() -> Result<Self, serde_json::Error> {
        let least = config::load_str("defaults", LEAST).config.expect("a test reads it");
        let [disk, nic] = [serde_json::to_value(&least.disks)?, serde_json::to_value(&least.nics)?];
        let least = GuestConfig { disks: Vec::new(), nics: Vec::new(), ..least };
        let config = without(&serde_json::to_value(&least)?, &REQUIRED);
        // `bridge`: absent is the default.
        let nic = without(&without(&nic[0], &REQUIRED_OF_NIC), &["bridge"]);
        Ok(Self { config, disk: without(&disk[0], &REQUIRED_OF_DISK), nic })
    }
}

/// A copy of an object without these keys.
fn without(value: &Value, keys: &[&str]) -> Value {
    let mut value = value.clone();
    if let Value::Object(value) = &mut value {
        value.retain(|key, _| !keys.contains(&key.as_str()));
    }
    value
}

/// Adds the missing keys to a configuration.
fn fill_config(config: &mut Value) -> Result<(), serde_json::Error> {
    static DEFAULTS: OnceLock<Defaults> = OnceLock::new();
    let defaults = match DEFAULTS.get() {
        Some(defaults) => defaults,
        None => {
            let made = Defaults::new()?;
            DEFAULTS.get_or_init(|| made)
        }
    };
    fill(config, &defaults.config);
    for (list, element) in [("disks", &defaults.disk), ("nics", &defaults.nic)] {
        for device in config.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            fill_flat(device, element);
        }
    }
    Ok(())
}

fn fill(value: &mut Value, defaults: &Value) {
    let (Value::Object(value), Value::Object(defaults)) = (value, defaults) else { return };
    for (key, default) in defaults {
        match value.get_mut(key) {
            Some(value) => fill(value, default),
            None => {
                value.insert(key.clone(), default.clone());
            }
        }
    }
}

/// The same for an element of a list, without descending into its values: some of them are enums.
fn fill_flat(value: &mut Value, defaults: &Value) {
    let (Value::Object(value), Value::Object(defaults)) = (value, defaults) else { return };
    for (key, default) in defaults {
        value.entry(key).or_insert_with(|| default.clone());
    }
}

/// Puts back the keys of the file that this release did not understand.
fn keep_unknown(value: &mut Value, file: &Value, understood: &Value) {
    match (value, file, understood) {
        (Value::Object(value), Value::Object(file), Value::Object(understood)) => {
            for (key, old) in file {
                match (value.get_mut(key), understood.get(key)) {
                    (Some(value), Some(understood)) => keep_unknown(value, old, understood),
                    (None, None) => {
                        value.insert(key.clone(), old.clone());
                    }
                    // It was removed or added.
                    _ => {}
                }
            }
        }
        (Value::Array(values), Value::Array(file), Value::Array(understood)) => {
            let same_length = values.len() == understood.len();
            for (index, value) in values.iter_mut().enumerate() {
                // A moved element is matched by the part that was understood, a changed one by its position.
                let place = understood.iter().position(|old| *old == *value);
                let place = place.or_else(|| same_length.then_some(index));
                let old = place.and_then(|place| Some((file.get(place)?, understood.get(place)?)));
                if let Some((file, understood)) = old {
                    keep_unknown(value, file, understood);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dom0::BootId;
    use config::Uuid;

    fn record(config: &str) -> GuestRecord {
        let config = config::load_str("t.cfg", config).config.unwrap();
        GuestRecord::new(&config, BootId(Uuid::from_u128(3)), Uuid::from_u128(1), Uuid::from_u128(2))
    }

    #[test]
    fn a_complete_configuration_is_unchanged() {
        let every = include_str!("../../../config/tests/corpus/every-used-key.cfg");
        for text in [LEAST, every] {
            let value = serde_json::to_value(record(text)).unwrap();
            let mut filled = value.clone();
            fill_config(&mut filled["config"]).unwrap();
            assert_eq!(filled, value);
        }
    }

    #[test]
    fn missing_keys_get_their_defaults() {
        let whole = record(LEAST);
        let mut value = serde_json::to_value(&whole).unwrap();
        let keys: Vec<String> = value["config"].as_object().unwrap().keys().cloned().collect();
        for key in keys.iter().filter(|key| !REQUIRED.contains(&key.as_str())) {
            value["config"].as_object_mut().unwrap().remove(key);
            let read = GuestRecord::from_value(value.clone()).unwrap();
            let least = config::load_str("t", "type='hvm'\nname='guest'\nmemory=16").config.unwrap();
            assert_eq!(
                serde_json::to_value(&read.config).unwrap()[key],
                serde_json::to_value(&least).unwrap()[key],
                "{key}"
            );
        }
        for key in ["boot", "domid", "stub_domid", "loops", "ports", "scripts", "operation"] {
            value.as_object_mut().unwrap().remove(key);
        }
        value["config"]["disks"][0].as_object_mut().unwrap().remove("trusted");
        let read = GuestRecord::from_value(value).unwrap();
        assert_eq!((read.boot, read.domid, read.config.disks), (None, None, whole.config.disks));
    }

    #[test]
    fn a_file_without_a_key_that_has_no_default_is_not_read() {
        let whole = serde_json::to_value(record(LEAST)).unwrap();
        let lists: [(&str, &[&str]); 3] =
            [("", &REQUIRED), ("/disks/0", &REQUIRED_OF_DISK), ("/nics/0", &REQUIRED_OF_NIC)];
        for (place, keys) in lists {
            for key in keys {
                let mut value = whole.clone();
                let part = value.pointer_mut(&format!("/config{place}")).unwrap();
                assert!(part.as_object_mut().unwrap().remove(*key).is_some(), "{place} {key}");
                let error = GuestRecord::from_value(value).unwrap_err().to_string();
                assert!(error.contains(&format!("missing field `{key}`")), "{place} {key}: {error}");
            }
        }
        // As in a configuration file without these keys.
        let mut value = whole;
        for key in ["mac", "bridge", "script", "trusted"] {
            value["config"]["nics"][0].as_object_mut().unwrap().remove(key);
        }
        let least = config::load_str("t", &LEAST.replace("bridge=xenbr0", "")).config.unwrap();
        assert_eq!(GuestRecord::from_value(value).unwrap().config.nics, least.nics);
    }

    #[test]
    fn phase_and_change_of_the_first_form_become_the_operation() {
        let check = |phase: &str, change: Value, kind: Value, way: &str| {
            let mut value = serde_json::to_value(record(LEAST)).unwrap();
            value["form"] = json!(1);
            value.as_object_mut().unwrap().remove("operation");
            value["phase"] = json!(phase);
            value["change"] = change;
            let read = GuestRecord::from_value(value).unwrap();
            let written: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
            assert_eq!((written.get("phase"), written.get("change")), (None, None));
            assert_eq!(written["form"], json!(2));
            assert_eq!(written["operation"]["kind"], kind);
            assert_eq!(written["operation"]["cursor"], json!({"step": "", "way": way}));
        };
        let vdev = serde_json::to_value(config::device_name("hda").unwrap()).unwrap();
        let detach = |let_go: bool| json!({"detach-disk": {"vdev": vdev, "let_go": let_go}});
        let detached = json!({"detach-disk": {"vdev": vdev}});
        check("creating", Value::Null, json!({"create": {"paused": false}}), "back");
        check("destroying", detach(false), json!("destroy"), "forward");
        check("running", detach(false), detached.clone(), "back");
        check("running", detach(true), detached, "forward");
        check("running", json!({"move-nic": {"devid": 3}}), json!({"move-nic": {"devid": 3}}), "back");
        let mut value = serde_json::to_value(record(LEAST)).unwrap();
        (value["form"], value["phase"]) = (json!(1), json!("later"));
        GuestRecord::from_value(value).unwrap_err();
    }

    #[test]
    fn unknown_keys_are_preserved_through_changes() {
        let mut value =
            serde_json::to_value(record(&LEAST.replace("xvda,w'", "xvda,w','/b,raw,xvdb,w'"))).unwrap();
        value["later"] = json!({"a": [1, 2]});
        value["config"]["platform"]["later"] = json!(true);
        value["config"]["disks"][0]["later"] = json!("first");
        value["config"]["disks"][1]["later"] = json!("second");
        let mut read = GuestRecord::from_value(value).unwrap();
        read.name = "other".to_owned();
        read.config.disks[1].direct_io_safe = true;
        let text: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
        assert_eq!((&text["later"], &text["name"]), (&json!({"a": [1, 2]}), &json!("other")));
        assert_eq!(text["config"]["platform"]["later"], json!(true));
        assert_eq!(text["config"]["disks"][1]["later"], json!("second"));
        read.config.disks.remove(0);
        let text: Value = serde_json::from_slice(&read.to_text().unwrap()).unwrap();
        assert_eq!(text["config"]["disks"].as_array().unwrap().len(), 1);
        assert_ne!(text["config"]["disks"][0]["later"], json!("first"));
    }
}
