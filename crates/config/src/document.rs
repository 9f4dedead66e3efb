use std::collections::HashMap;

use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::text::Text;

/// A configuration file as it is written: its settings in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The settings, in the file's order.
    pub settings: Vec<Setting>,
}

/// One `key = value` or `key += value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// `=` or `+=`.
    pub operator: Operator,
    /// The value.
    pub value: Value,
}

/// How a setting changes its key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`: the value is this one.
    Assign,
    /// `+=`: this one is added to the value that the key has; strings are joined, lists continued.
    Append,
}

/// A value: the language has no other two kinds, numbers are strings without quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string or a number.
    Atom(Atom),
    /// A list of values.
    List(List),
}

/// A string or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atom {
    /// What it says, without quotes and escapes.
    pub text: Text,
    /// Where it stands, quotes included.
    pub span: Span,
    /// Whether it had quotes.
    pub quoted: bool,
}

/// A list of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The items.
    pub items: Vec<Value>,
    /// Where it stands, brackets included.
    pub span: Span,
}

impl Value {
    /// Where the value stands.
    #[must_use]
    pub fn span(&self) -> Span {
        match self {
            Self::Atom(atom) => atom.span,
            Self::List(list) => list.span,
        }
    }
}

/// A key with the value that all its settings together give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the last setting's key stands.
    pub key_span: Span,
    /// The value.
    pub value: Value,
    /// The last setting was a `+=`. Numbers do not take it.
    pub appended: bool,
}

impl Document {
    /// Puts the settings together, in order of each key's last one: `=` replaces, with a warning when it hides an
    /// earlier value, and `+=` adds.
    #[must_use]
    pub fn entries(&self) -> (Vec<Entry>, Vec<Diagnostic>) {
        let mut entries: Vec<Entry> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        let mut diagnostics = Vec::new();
        for setting in &self.settings {
            let appended = setting.operator == Operator::Append;
            let Some(&at) = index.get(setting.key.as_str()) else {
                index.insert(&setting.key, entries.len());
                entries.push(Entry {
                    key: setting.key.clone(),
                    key_span: setting.key_span,
                    value: setting.value.clone(),
                    appended,
                });
                continue;
            };
            let Some(entry) = entries.get_mut(at) else { continue };
            if appended {
                diagnostics.extend(add(entry, setting));
            } else {
                diagnostics.push(repeated(entry, setting));
                entry.value = setting.value.clone();
            }
            entry.key_span = setting.key_span;
            entry.appended = appended;
        }
        (entries, diagnostics)
    }
}

fn add(entry: &mut Entry, setting: &Setting) -> Option<Diagnostic> {
    match (&mut entry.value, &setting.value) {
        (Value::Atom(old), Value::Atom(new)) => {
            old.text.append(&new.text);
            old.span = new.span;
            old.quoted |= new.quoted;
            None
        }
        (Value::List(old), Value::List(new)) => {
            old.items.extend(new.items.iter().cloned());
            old.span = new.span;
            None
        }
        (old, new) => Some(
            Diagnostic::error(
                "config::wrong-type",
                format!("`+=` cannot add a {} to a {}", kind(new), kind(old)),
            )
            .at(new.span())
            .also(old.span(), format!("`{}` has this {} so far", entry.key, kind(old))),
        ),
    }
}

fn repeated(entry: &Entry, setting: &Setting) -> Diagnostic {
    Diagnostic::warning(
        "config::repeated-key",
        format!("`{}` is set more than once; the last one counts", entry.key),
    )
    .at_with(setting.key_span, "this one counts")
    .also(entry.key_span, "this one has no effect")
    .help("remove one of them, or use `+=` to add to the value")
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Atom(atom) if atom.quoted => "string",
        Value::Atom(_) => "number",
        Value::List(_) => "list",
    }
}
