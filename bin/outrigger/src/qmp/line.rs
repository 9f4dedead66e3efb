//! What a person types: a command, then arguments as `name=value`, or as one JSON object.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

/// A command with its arguments as JSON, if there are any.
#[derive(Debug, PartialEq)]
pub(crate) struct Typed {
    pub(crate) command: String,
    pub(crate) arguments: Option<String>,
}

/// Reads words as a command.
pub(crate) fn words<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Typed> {
    let Some(command) = words.next() else { bail!("The command is missing") };
    let words: Vec<_> = words.collect();
    let arguments = match words.as_slice() {
        [] => None,
        [first, ..] if first.starts_with('{') => Some(object(&words.join(" "))?),
        _ => Some(Value::Object(pairs(&words)?).to_string()),
    };
    Ok(Typed { command: command.to_owned(), arguments })
}

/// Reads a line as a command.
pub(crate) fn line(text: &str) -> Result<Typed> {
    let text = text.trim();
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.starts_with('{') {
        return Ok(Typed { command: command.to_owned(), arguments: Some(object(rest)?) });
    }
    words(std::iter::once(command).chain(rest.split_whitespace()))
}

fn object(text: &str) -> Result<String> {
    let map: Map<String, Value> =
        serde_json::from_str(text).context("The arguments are not a JSON object")?;
    Ok(Value::Object(map).to_string())
}

fn pairs(words: &[&str]) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            bail!("\"{word}\" is not an argument; write name=value, or all arguments as one JSON object");
        };
        // What is JSON is meant as JSON: numbers, true, false, quoted text; all else is text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        insert(&mut map, name, value)?;
    }
    Ok(map)
}

/// Puts a value in; a name with dots reaches into objects, as in QEMU's own options.
fn insert(map: &mut Map<String, Value>, name: &str, value: Value) -> Result<()> {
    let taken = match name.split_once('.') {
        None => map.insert(name.to_owned(), value).is_some(),
        Some((outer, inner)) => {
            let inside = map.entry(outer).or_insert_with(|| Value::Object(Map::new()));
            match inside {
                Value::Object(inside) => return insert(inside, inner, value),
                _ => true,
            }
        }
    };
    if taken {
        bail!("The argument {name} is given twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, command: &str, arguments: Option<&str>) {
        let expected = Typed { command: command.to_owned(), arguments: arguments.map(str::to_owned) };
        assert_eq!(line(text).unwrap(), expected);
    }

    #[test]
    fn arguments_are_read_as_they_are_meant() {
        check("query-status", "query-status", None);
        check(
            " send-key keys=[{\"type\":\"qcode\",\"data\":\"a\"}] hold-time=5 ",
            "send-key",
            Some(r#"{"hold-time":5,"keys":[{"data":"a","type":"qcode"}]}"#),
        );
        check("x a.b=1 a.c=on", "x", Some(r#"{"a":{"b":1,"c":"on"}}"#));
        check("x {\"a\": \"b  c\"}", "x", Some(r#"{"a":"b  c"}"#));
        assert!(line("x y").is_err() && line("x a=1 a=2").is_err() && line("x {").is_err());
    }
}
