use std::collections::HashSet;
use std::fmt::Write as _;

use config::GuestConfig;

use super::error::JsonError;

/// A text in the language of xl.cfg(5) that knows which key of the JSON each line came from.
#[derive(Default)]
pub(super) struct Lines {
    text: String,
    origins: Vec<String>,
    keys: HashSet<&'static str>,
}

impl Lines {
    /// Adds a setting; the first value of a key counts.
    pub(super) fn set(&mut self, key: &'static str, value: &str, origin: String) {
        if self.keys.insert(key) {
            self.push(&format!("{key} = {}", quoted(value)), origin);
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, value: bool, origin: String) {
        self.set(key, if value { "1" } else { "0" }, origin);
    }

    /// Adds a list of strings, each with its origin, unless it is empty.
    pub(super) fn list(&mut self, key: &'static str, items: Vec<(String, String)>) {
        if items.is_empty() || !self.keys.insert(key) {
            return;
        }
        self.push(&format!("{key} = ["), String::new());
        for (value, origin) in items {
            self.push(&format!("{},", quoted(&value)), origin);
        }
        self.push("]", String::new());
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    fn push(&mut self, line: &str, origin: String) {
        self.text.push_str(line);
        self.text.push('\n');
        self.origins.push(origin);
    }

    /// Reads the text as a configuration.
    pub(super) fn load(&self) -> Result<(GuestConfig, Vec<String>), JsonError> {
        let loaded = config::load_str("libxl-json", &self.text);
        let more = loaded.errors().saturating_sub(1);
        let first = loaded.diagnostics.iter().find(|diagnostic| diagnostic.is_error());
        match (first, loaded.config) {
            (None, Some(config)) => {
                let warnings = loaded.diagnostics.into_iter().map(|diagnostic| diagnostic.message);
                Ok((config, warnings.collect()))
            }
            (first, _) => {
                let origin = first.and_then(|first| first.position(&loaded.source)).and_then(|position| {
                    self.origins.get(position.line.checked_sub(1)?).filter(|origin| !origin.is_empty())
                });
                let mut reason = first.map_or_else(String::new, |first| first.message.clone());
                for help in first.iter().flat_map(|first| &first.help) {
                    let _ = write!(reason, "; {help}");
                }
                let (key, id) = (origin.cloned().unwrap_or_default(), first.map_or("", |first| first.id));
                Err(JsonError::Refused { key, id, reason, more })
            }
        }
    }
}

/// A string as xl's language has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
