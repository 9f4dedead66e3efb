//! What is said of words that are not of the language: a value without quotes, a key with a hyphen, Python.

use crate::diagnostic::Diagnostic;
use crate::keys::{self, Treatment};
use crate::source::Span;
use crate::{foreign, units};

/// What belongs at a place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A key, at the beginning of a line.
    Key,
    /// `=` or `+=`.
    AfterKey,
    /// A value.
    Value,
    /// The end of a line, or whatever may follow a value in a list.
    End,
}

/// A mistake and how many bytes of the file belong to it.
pub(crate) struct Mistake {
    pub(crate) diagnostic: Diagnostic,
    pub(crate) length: usize,
}

/// Whether a value that is not in quotes goes on behind its first `length` bytes, which alone would be a word of the
/// language.
pub(crate) fn goes_on(rest: &str, length: usize) -> bool {
    rest.as_bytes().get(length).is_some_and(|b| b.is_ascii_alphanumeric() || b"_-./:@%(+*".contains(b))
        // `a+=` is a mistake of another kind.
        && !rest.get(length..).is_some_and(|behind| behind.starts_with("+="))
}

/// The mistake that is at `at`, where `rest` begins; `key` is the line's key.
pub(crate) fn mistake(place: Place, key: &str, rest: &str, at: usize) -> Mistake {
    let first = rest.chars().next().unwrap_or_default();
    match (place, first) {
        (Place::Key, 'A'..='Z') => upper_case_key(rest, at),
        (Place::AfterKey, ':') => colon(key, rest, at),
        (Place::AfterKey, '-') => hyphen(key, rest, at),
        (Place::Value, _) if first.is_ascii_alphanumeric() || matches!(first, '-' | '/' | '.') => {
            value(key, rest, at)
        }
        _ => unexpected(first, rest, at),
    }
}

/// A length up to the first of these characters, at least one character long.
fn until(rest: &str, ends: &[char]) -> usize {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    rest.find(ends).unwrap_or(rest.len()).max(first)
}

fn syntax(message: impl Into<String>, at: usize, length: usize) -> Mistake {
    Mistake {
        diagnostic: Diagnostic::error("config::syntax", message).at(Span::new(at, at + length)),
        length,
    }
}

impl Mistake {
    fn help(self, help: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.help(help), ..self }
    }
}

fn upper_case_key(rest: &str, at: usize) -> Mistake {
    let length = until(rest, &[' ', '\t', '\n', '=', ';']);
    let word = rest.get(..length).unwrap_or_default();
    let lower = word.to_ascii_lowercase();
    let mistake = syntax("Keys are written in lower case", at, length);
    if keys::find(&lower).is_some() {
        mistake.help(format!("write `{lower}`"))
    } else {
        mistake.help("xl cannot read this line either; remove it")
    }
}

fn colon(key: &str, rest: &str, at: usize) -> Mistake {
    let line = rest.get(..until(rest, &['\n', '#'])).unwrap_or_default();
    let value = line.trim_start_matches(':').trim();
    let length = line.trim_end().len();
    let mistake = syntax("A key is followed by `=`, not by `:`", at, 1);
    let mistake = Mistake { length, ..mistake };
    if value.is_empty() { mistake } else { mistake.help(format!("write `{key} = {value}`")) }
}

fn hyphen(key: &str, rest: &str, at: usize) -> Mistake {
    let length = until(rest, &[' ', '\t', '\n', '=', '+', ';', '#']);
    let word = rest.get(..length).unwrap_or_default();
    let name = format!("{key}{word}").replace('-', "_");
    let span = Span::new(at.saturating_sub(key.len()), at + length);
    let diagnostic = Diagnostic::error("config::syntax", "A key cannot contain a hyphen").at(span);
    let no_effect = foreign::find(&name).is_some()
        || keys::find(&name).is_some_and(|key| matches!(key.treatment, Treatment::NoEffect { .. }));
    let help = if no_effect {
        format!("remove the line; `{name}` has no effect either")
    } else if keys::find(&name).is_some() {
        format!("write `{name}`")
    } else {
        "a key consists of lower-case letters, digits, `_` and `.`".to_owned()
    };
    Mistake { diagnostic: diagnostic.help(help), length }
}

/// A value that needs quotes, or that is something of Python's.
fn value(key: &str, rest: &str, at: usize) -> Mistake {
    let length = until(rest, &[' ', '\t', '\n', ',', ']', ';', '#', '\'', '"', '[']);
    let word = rest.get(..length).unwrap_or_default();
    if word.contains('(') {
        let length = until(rest, &['\n', '#']);
        return Mistake { length, ..syntax("Expressions are not supported", at, word.len()) }
            .help("write the result of the expression");
    }
    if let Some(help) = units::help(key, word) {
        return syntax("Numbers are written without a unit", at, length).help(help);
    }
    let help = match word {
        "True" => "write `1`".to_owned(),
        "False" => "write `0`".to_owned(),
        "None" => "remove the line to get the default".to_owned(),
        _ if units::is_number(key) => units::NUMBER_HELP.to_owned(),
        _ => format!("write a string in quotes: `\"{word}\"`"),
    };
    syntax(format!("`{word}` is not a value"), at, length).help(help)
}

fn unexpected(first: char, rest: &str, at: usize) -> Mistake {
    // Everything up to a blank is one mistake, as in libxlu.
    let length = until(rest, &[' ', '\t', '\n']);
    let message = format!("`{}` is not expected here", first.escape_debug());
    let span = Span::new(at, at + first.len_utf8());
    let diagnostic = Diagnostic::error("config::unexpected-character", message).at(span);
    let diagnostic = if matches!(first, '(' | ')' | '.' | ':' | '+' | '-' | '%' | '*' | '{' | '}') {
        diagnostic
            .help("values are numbers, strings in quotes and lists in brackets; Python is not supported")
    } else {
        diagnostic
    };
    Mistake { diagnostic, length }
}
