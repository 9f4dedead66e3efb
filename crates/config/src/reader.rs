//! Typed access to a document's entries: every complaint about a value's kind or range is made here.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Entry, List, Value};
use crate::number::{self, NumberError};
use crate::source::Span;
use crate::units;

pub(crate) struct Reader<'a> {
    entries: HashMap<&'a str, &'a Entry>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Keys that were asked for, so that a test can hold the table of keys against them.
    pub(crate) asked: HashSet<&'static str>,
    /// The directory of the file, if it is known.
    folder: Option<PathBuf>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(entries: &'a [Entry]) -> Self {
        let entries = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        Self { entries, diagnostics: Vec::new(), asked: HashSet::new(), folder: None }
    }

    /// Says in which directory the file is.
    pub(crate) fn in_folder(self, folder: Option<&Path>) -> Self {
        Self { folder: folder.map(Path::to_owned), ..self }
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(crate) fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.asked.insert(key);
        self.entries.get(key).copied()
    }

    /// Where the key's value stands; the key must have been found before.
    pub(crate) fn value_span(&mut self, key: &'static str) -> Span {
        self.entry(key).map(|entry| entry.value.span()).unwrap_or_default()
    }

    pub(crate) fn atom(&mut self, key: &'static str) -> Option<&'a Atom> {
        match &self.entry(key)?.value {
            Value::Atom(atom) => Some(atom),
            Value::List(list) => {
                let message = format!("`{key}` takes a single value, not a list");
                self.push(Diagnostic::error("config::wrong-type", message).at(list.span));
                None
            }
        }
    }

    pub(crate) fn list(&mut self, key: &'static str) -> Option<&'a List> {
        match &self.entry(key)?.value {
            Value::List(list) => Some(list),
            Value::Atom(atom) => {
                let message = format!("`{key}` takes a list, not a single value");
                let help = format!("put it in brackets: `{key} = [ \"{}\" ]`", atom.text.as_str());
                self.push(Diagnostic::error("config::wrong-type", message).at(atom.span).help(help));
                None
            }
        }
    }

    /// The items of a list of single values.
    pub(crate) fn strings(&mut self, key: &'static str) -> Option<Vec<&'a Atom>> {
        let list = self.list(key)?;
        let mut atoms = Vec::with_capacity(list.items.len());
        for item in &list.items {
            match item {
                Value::Atom(atom) => atoms.push(atom),
                Value::List(inner) => {
                    let message = format!("`{key}` is a list of strings, not of lists");
                    self.push(Diagnostic::error("config::wrong-type", message).at(inner.span));
                }
            }
        }
        Some(atoms)
    }

    /// The items of a list of single values, or the one value.
    pub(crate) fn one_or_more(&mut self, key: &'static str) -> Option<Vec<&'a Atom>> {
        match &self.entry(key)?.value {
            Value::Atom(atom) => Some(vec![atom]),
            Value::List(_) => self.strings(key),
        }
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Option<String> {
        self.atom(key).map(|atom| atom.text.as_str().to_owned())
    }

    /// A string that says something; an empty one is an error.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        let atom = self.atom(key)?;
        let text = atom.text.as_str();
        if text.is_empty() {
            let message = format!("`{key}` is empty");
            self.push(
                Diagnostic::error("config::empty", message)
                    .at(atom.span)
                    .help("remove the line to get the default"),
            );
            return None;
        }
        Some(text.to_owned())
    }

    /// An absolute path. A relative one is taken to be beside the file, if it is known where that is.
    pub(crate) fn path(&mut self, key: &'static str) -> Option<String> {
        let path = self.text(key)?;
        if path.starts_with('/') {
            return Some(path);
        }
        let span = self.value_span(key);
        let Some(absolute) = self.folder.as_deref().and_then(|folder| beside(folder, &path)) else {
            let message = format!("`{key}` needs an absolute path");
            self.push(
                Diagnostic::error("config::relative-path", message)
                    .at(span)
                    .help("the guest is created by a daemon, which does not know the directory of this file"),
            );
            return None;
        };
        let message = format!("`{key}` is a relative path; `{absolute}` is used, beside this file");
        self.push(
            Diagnostic::warning("config::relative-path", message)
                .at(span)
                .help("xl resolves it against its working directory; write an absolute path"),
        );
        Some(absolute)
    }

    /// An absolute path, or the name of a file in Xen's firmware directory, which has no slash.
    pub(crate) fn firmware_path(&mut self, key: &'static str) -> Option<String> {
        let is_name = self.atom(key).is_some_and(|atom| {
            let text = atom.text.as_str();
            !text.is_empty() && !text.contains('/') && text != "." && text != ".."
        });
        if is_name {
            return self.string(key);
        }
        let path = self.text(key)?;
        if path.starts_with('/') {
            return Some(path);
        }
        // libxl takes it to be below Xen's firmware directory, of which only files are known here.
        let span = self.value_span(key);
        let message = format!("`{key}` needs an absolute path or the name of a file");
        self.push(
            Diagnostic::error("config::relative-path", message)
                .at(span)
                .help("a name without a slash is looked for in Xen's firmware directory"),
        );
        None
    }

    pub(crate) fn number(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let entry = self.entry(key)?;
        let atom = self.atom(key)?;
        if entry.appended {
            let message = format!("`+=` cannot change the number `{key}`");
            self.push(Diagnostic::error("config::wrong-type", message).at(entry.key_span).help("use `=`"));
            return None;
        }
        let error = match number::parse(atom.text.as_str()) {
            Ok(value) if range.contains(&value) => return Some(value),
            Ok(_) | Err(NumberError::TooLarge) => Diagnostic::error(
                "config::out-of-range",
                format!("`{key}` must be from {} to {}", range.start(), range.end()),
            ),
            Err(NumberError::NotANumber) => {
                let problem = Diagnostic::error("config::not-a-number", format!("`{key}` takes a number"));
                match units::help(key, atom.text.as_str()) {
                    Some(help) => problem.help(help),
                    None => problem,
                }
            }
        };
        self.push(error.at(atom.span));
        None
    }

    pub(crate) fn u32(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.number(key, i64::from(*range.start())..=i64::from(*range.end()))?;
        u32::try_from(value).ok()
    }

    /// xl's booleans: 0, or any other number.
    pub(crate) fn bool(&mut self, key: &'static str) -> Option<bool> {
        let before = self.diagnostics.len();
        let value = self.number(key, i64::MIN..=i64::MAX);
        if let Some(last) = self.diagnostics.get_mut(before..).and_then(<[_]>::last_mut)
            && last.id == "config::not-a-number"
        {
            last.help.push("write `0` for no and `1` for yes".to_owned());
        }
        value.map(|number| number != 0)
    }

    /// One of several words.
    pub(crate) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.word_or_refused(key, words, |_| true)
    }

    /// One of several words, of which some are refused later and not recommended here.
    pub(crate) fn word_or_refused<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        is_good: impl Fn(T) -> bool,
    ) -> Option<T> {
        let atom = self.atom(key)?;
        let text = atom.text.as_str();
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let good = words.iter().filter(|(_, value)| is_good(*value));
        let names: Vec<&str> = good.map(|(word, _)| *word).collect();
        let message = format!("`{key}` has no value \"{text}\"");
        self.push(
            Diagnostic::error("config::unknown-value", message).at(atom.span).help(choices(text, &names)),
        );
        None
    }

    /// Complains of a value that is understood and is not supported.
    pub(crate) fn refuse(&mut self, key: &'static str, span: Span, why: &str) {
        self.push(refusal(key, span, why));
    }
}

/// Says which words would have been right, the nearest first if one is near.
pub(crate) fn choices(wrong: &str, words: &[&str]) -> String {
    let all = match words {
        [only] => format!("he only value is `{only}`"),
        _ => format!("he values are `{}`", words.join("`, `")),
    };
    match nearest(wrong, words) {
        Some(word) if words.len() == 1 => format!("did you mean `{word}`?"),
        Some(word) => format!("did you mean `{word}`? T{all}"),
        None => format!("t{all}"),
    }
}

/// The word that was meant: the same in other letters, a slip of the finger away, or its beginning.
pub(crate) fn nearest<'w>(wrong: &str, words: &[&'w str]) -> Option<&'w str> {
    let wrong = wrong.to_ascii_lowercase();
    let length = wrong.chars().count();
    let slip = words
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&wrong, word), *word))
        // Two letters of which one is right name nothing.
        .filter(|(distance, _)| *distance <= 2 && 2 * distance < length.max(1) + 1)
        .min_by_key(|(distance, _)| *distance);
    let mut longer = words.iter().filter(|word| length >= 2 && word.starts_with(&wrong));
    match (slip, longer.next(), longer.next()) {
        (Some((0 | 1, word)), ..) | (_, Some(&word), None) | (Some((_, word)), ..) => Some(word),
        _ => None,
    }
}

pub(crate) fn refusal(key: &str, span: Span, why: &str) -> Diagnostic {
    Diagnostic::error("config::refused", format!("`{key}` is not supported")).at(span).help(why)
}

/// The absolute path of a file in a directory, without `.` and `..` where they mean nothing.
fn beside(folder: &Path, relative: &str) -> Option<String> {
    let mut path = folder.to_owned();
    for component in Path::new(relative).components() {
        match component {
            // What is above a symbolic link is known to the kernel alone.
            Component::ParentDir | Component::Normal(_) => path.push(component),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path.into_os_string().into_string().ok()
}
