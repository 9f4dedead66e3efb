use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::JsonError;

/// The most keys that are listed as ignored.
const MAX_IGNORED: usize = 200;
/// The most characters of a key that are shown.
const MAX_KEY: usize = 60;
/// The largest number in a bitmap: more than Xen has CPUs.
const MAX_BIT: i128 = 4095;

/// The members of an object that have not been read yet.
pub(super) struct Fields<'a> {
    /// The object's key with a full stop behind it, empty for the outermost.
    prefix: String,
    members: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(prefix: String, map: &'a Map<String, Value>) -> Self {
        // libxl writes null for a string that there is not.
        let members = map.iter().filter(|(_, value)| !value.is_null());
        Self { prefix, members: members.map(|(key, value)| (key.as_str(), value)).collect() }
    }

    /// Returns an object without members, to stand for a missing one.
    pub(super) fn empty(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), members: BTreeMap::new() }
    }

    /// The path of a key.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The path of the object itself.
    pub(super) fn own(&self) -> String {
        self.prefix.trim_end_matches('.').to_owned()
    }

    fn take<T>(
        &mut self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, JsonError> {
        let Some(value) = self.members.remove(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| JsonError::WrongType { key: self.path(key), wanted })
    }

    /// A string that is not empty.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<&'a str>, JsonError> {
        Ok(self.take(key, "a string", Value::as_str)?.filter(|text| !text.is_empty()))
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<i128>, JsonError> {
        self.take(key, "a whole number", integer)
    }

    /// A number that is not negative.
    pub(super) fn unsigned(&mut self, key: &str) -> Result<Option<u64>, JsonError> {
        let Some(found) = self.number(key)? else { return Ok(None) };
        u64::try_from(found).map(Some).map_err(|_| JsonError::OutOfRange { key: self.path(key), found })
    }

    /// A `libxl_defbool`, which is a string; absent too if it is the default.
    pub(super) fn defbool(&mut self, key: &str) -> Result<Option<bool>, JsonError> {
        let read = |value: &Value| match value.as_str()? {
            "True" => Some(Some(true)),
            "False" => Some(Some(false)),
            "<default>" => Some(None),
            _ => None,
        };
        Ok(self.take(key, "\"True\" or \"False\"", read)?.flatten())
    }

    /// A boolean of JSON.
    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>, JsonError> {
        self.take(key, "true or false", Value::as_bool)
    }

    /// An array; absent if it is empty.
    pub(super) fn array(&mut self, key: &str) -> Result<Option<&'a [Value]>, JsonError> {
        let array = self.take(key, "an array", |value| value.as_array().map(Vec::as_slice))?;
        Ok(array.filter(|array| !array.is_empty()))
    }

    pub(super) fn strings(&mut self, key: &str) -> Result<Vec<&'a str>, JsonError> {
        let path = self.path(key);
        let items = self.array(key)?.unwrap_or_default().iter().enumerate();
        items
            .map(|(at, item)| {
                let wrong = || JsonError::WrongType { key: format!("{path}[{at}]"), wanted: "a string" };
                item.as_str().ok_or_else(wrong)
            })
            .collect()
    }

    /// The numbers of a bitmap's set bits.
    pub(super) fn bitmap(&mut self, key: &str) -> Result<Vec<u16>, JsonError> {
        let path = self.path(key);
        bits(&path, self.array(key)?.unwrap_or_default())
    }

    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, JsonError> {
        let map = self.take(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Self::new(format!("{}{key}.", self.prefix), map)))
    }

    /// The objects of an array.
    pub(super) fn objects(&mut self, key: &str) -> Result<Vec<Self>, JsonError> {
        let path = self.path(key);
        let items = self.array(key)?.unwrap_or_default().iter().enumerate();
        items
            .map(|(at, item)| {
                let wrong = || JsonError::WrongType { key: format!("{path}[{at}]"), wanted: "an object" };
                item.as_object().map(|map| Self::new(format!("{path}[{at}]."), map)).ok_or_else(wrong)
            })
            .collect()
    }

    /// Takes a member that may be an array or an object.
    pub(super) fn any(&mut self, key: &str) -> Option<&'a Value> {
        self.members.remove(key)
    }

    /// The key of a member that begins so, if there is one that says something.
    pub(super) fn beginning_with(&self, start: &str) -> Option<String> {
        let says = |value: &Value| !matches!(value, Value::String(text) if text.is_empty());
        let found = self.members.iter().find(|(key, value)| key.starts_with(start) && says(value));
        found.map(|(key, _)| self.path(&shown(key)))
    }

    /// Lists what was not read.
    pub(super) fn finish(self, ignored: &mut Vec<String>) {
        let room = MAX_IGNORED.saturating_sub(ignored.len());
        ignored.extend(self.members.keys().take(room).map(|key| format!("{}{}", self.prefix, shown(key))));
    }
}

fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// The numbers in an array, each small.
pub(super) fn bits(path: &str, items: &[Value]) -> Result<Vec<u16>, JsonError> {
    let bit = |(at, item): (usize, &Value)| {
        let key = || format!("{path}[{at}]");
        let found =
            integer(item).ok_or_else(|| JsonError::WrongType { key: key(), wanted: "a whole number" })?;
        u16::try_from(found)
            .ok()
            .filter(|_| found <= MAX_BIT)
            .ok_or_else(|| JsonError::OutOfRange { key: key(), found })
    };
    let mut bits = items.iter().enumerate().map(bit).collect::<Result<Vec<u16>, _>>()?;
    bits.sort_unstable();
    bits.dedup();
    Ok(bits)
}

/// A key of any content, fit to be shown.
fn shown(key: &str) -> String {
    key.chars().take(MAX_KEY).map(|c| if c.is_control() { '?' } else { c }).collect()
}
