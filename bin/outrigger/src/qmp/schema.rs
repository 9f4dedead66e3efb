//! QEMU's own description of its commands, for completion.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Commands with their arguments and the values that those may have.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    commands: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entity {
    name: String,
    meta_type: String,
    #[serde(default)]
    arg_type: Option<String>,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    values: Vec<String>,
}

/// An enumeration's members are objects too since QEMU 6.2, without types; an alternate's have no names.
#[derive(Deserialize)]
struct Member {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

impl Schema {
    /// Reads the answer to `query-qmp-schema`; what cannot be read is left out.
    pub(crate) fn read(answer: &str) -> Self {
        let entities: Vec<Entity> = serde_json::from_str(answer).unwrap_or_default();
        let by_name: BTreeMap<&str, &Entity> =
            entities.iter().map(|entity| (entity.name.as_str(), entity)).collect();
        let values = |kind: &Option<String>| match kind.as_deref() {
            Some("bool") => vec!["true".to_owned(), "false".to_owned()],
            Some(kind) => by_name.get(kind).map(|entity| entity.values.clone()).unwrap_or_default(),
            None => Vec::new(),
        };
        let arguments = |entity: &Entity| {
            let object = entity.arg_type.as_deref().and_then(|name| by_name.get(name));
            object
                .into_iter()
                .flat_map(|object| &object.members)
                .map(|member| (member.name.clone(), values(&member.kind)))
                .collect()
        };
        let commands = entities
            .iter()
            .filter(|entity| entity.meta_type == "command")
            .map(|entity| (entity.name.clone(), arguments(entity)))
            .collect();
        Self { commands }
    }

    /// What the last word of a line could become, and where that word begins.
    pub(crate) fn complete(&self, line: &str) -> (usize, Vec<String>) {
        let start = line.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let word = line.get(start..).unwrap_or_default();
        let mut before = line.get(..start).unwrap_or_default().split_whitespace();
        let starting = |word: &str, all: &mut dyn Iterator<Item = String>| {
            all.filter(|candidate| candidate.starts_with(word)).collect::<Vec<_>>()
        };
        let Some(command) = before.next() else {
            return (start, starting(word, &mut self.commands.keys().cloned()));
        };
        let Some(arguments) = self.commands.get(command) else { return (start, Vec::new()) };
        match word.split_once('=') {
            Some((name, value)) => {
                let values = arguments.get(name).cloned().unwrap_or_default();
                (start + name.len() + 1, starting(value, &mut values.into_iter()))
            }
            None => {
                let given: Vec<_> =
                    before.filter_map(|word| word.split_once('=')).map(|(name, _)| name).collect();
                let left = arguments.keys().filter(|name| !given.contains(&name.as_str()));
                (start, starting(word, &mut left.map(|name| format!("{name}="))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"[
        {"name": "screendump", "ret-type": "0", "meta-type": "command", "arg-type": "5"},
        {"name": "stop", "ret-type": "0", "meta-type": "command", "arg-type": "0"},
        {"name": "STOP", "meta-type": "event", "arg-type": "0"},
        {"name": "0", "members": [], "meta-type": "object"},
        {"name": "5", "members": [{"name": "filename", "type": "str"}, {"name": "format", "type": "6", "default": null},
            {"name": "head", "type": "bool"}], "meta-type": "object"},
        {"name": "7", "members": [{"type": "str"}, {"type": "6"}], "meta-type": "alternate"},
        {"name": "6", "members": [{"name": "ppm"}, {"name": "png"}], "values": ["ppm", "png"], "meta-type": "enum"}]"#;

    #[test]
    fn commands_arguments_and_values_are_completed() {
        let schema = Schema::read(ANSWER);
        for (line, start, found) in [
            ("", 0, vec!["screendump", "stop"]),
            ("st", 0, vec!["stop"]),
            ("STO", 0, vec![]),
            ("screendump f", 11, vec!["filename=", "format="]),
            ("screendump filename=x f", 22, vec!["format="]),
            ("screendump format=p", 18, vec!["ppm", "png"]),
            ("screendump head=", 16, vec!["true", "false"]),
            ("nothing f", 8, vec![]),
        ] {
            assert_eq!(
                schema.complete(line),
                (start, found.into_iter().map(str::to_owned).collect()),
                "{line}"
            );
        }
    }
}
