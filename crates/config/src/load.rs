use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use xen_types::Release;

use crate::diagnostic::Diagnostic;
use crate::document::{Document, Value};
use crate::model::GuestConfig;
use crate::parser::{PYTHON_ID, parse, parse_guest};
use crate::source::{SourceFile, Span};
use crate::{guest, keys};

/// The largest file that is read, in bytes.
pub const MAX_FILE_SIZE: u64 = 1 << 20;

/// The most diagnostics that are kept of one file.
pub const MAX_DIAGNOSTICS: usize = 100;
/// The note about those that are not.
const MORE_ID: &str = "config::more";

/// A configuration file that was read: the guest, if there was no error, and what there is to say of the file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file, for rendering the diagnostics.
    pub source: SourceFile,
    /// The guest; absent when there was an error.
    pub config: Option<GuestConfig>,
    /// Errors and warnings, in the file's order: [`MAX_DIAGNOSTICS`] at most, errors before others, and a note about
    /// how many more there are.
    pub diagnostics: Vec<Diagnostic>,
    /// How many were left out.
    omitted: usize,
    /// The keys, and names in `cpuid`, that came after Xen 4.17.
    newer: Vec<Newer>,
}

/// A word of the file that older releases of Xen do not know.
#[derive(Clone, Copy, Debug)]
struct Newer {
    word: &'static str,
    /// What an older xl does with it.
    older: &'static str,
    since: Release,
    span: Span,
}

impl Loaded {
    /// All diagnostics for a person, a blank line between each two; empty when there is none.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let rendered: Vec<String> = self.diagnostics.iter().map(|d| d.render(&self.source, color)).collect();
        rendered.join("\n\n")
    }

    /// Warns of keys that came into the language after this release of Xen.
    pub fn warn_of_newer(&mut self, running: Release) {
        // What is refused anyway, or has no effect, is said once.
        let said: Vec<Option<Span>> = self.diagnostics.iter().map(|d| d.span).collect();
        let is_said = |span: Span| said.iter().flatten().any(|other| other.start == span.start);
        let newer = self.newer.iter().filter(|newer| newer.since > running && !is_said(newer.span));
        self.diagnostics.extend(newer.map(|Newer { word, older, since, span }| {
            Diagnostic::warning("config::newer-key", format!("`{word}` came with Xen {since}"))
                .at(*span)
                .help(format!("Xen {running} is running here, whose own xl would {older} it"))
        }));
        self.sort();
    }

    /// Adds what others have to say of the guest; an error takes the guest away.
    pub fn add(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.diagnostics.extend(diagnostics);
        self.sort();
        if self.errors() > 0 {
            self.config = None;
        }
    }

    /// Where the value of a key stands, or one item of its list.
    #[must_use]
    pub fn place(&self, key: &str, item: Option<usize>) -> Option<Span> {
        let (entries, _) = parse(&self.source).0.entries();
        let value = entries.into_iter().find(|entry| entry.key == key)?.value;
        match (&value, item) {
            (Value::List(list), Some(item)) => list.items.get(item).map(Value::span),
            _ => Some(value.span()),
        }
    }

    /// Sorts the diagnostics and leaves out what is too much.
    fn sort(&mut self) {
        self.diagnostics.retain(|d| d.id != MORE_ID);
        if self.diagnostics.len() > MAX_DIAGNOSTICS {
            self.diagnostics.sort_by_key(|d| (!d.is_error(), d.span.is_none(), d.span));
            self.omitted += self.diagnostics.len() - MAX_DIAGNOSTICS;
            self.diagnostics.truncate(MAX_DIAGNOSTICS);
        }
        self.diagnostics.sort_by_key(|d| (d.span.is_none(), d.span));
        if self.omitted > 0 {
            let message = format!("The file has {} more errors and warnings", self.omitted);
            self.diagnostics.push(Diagnostic::note(MORE_ID, message));
        }
    }

    /// How many of the diagnostics are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.is_error()).count()
    }
}

/// Reads a configuration file. A file that cannot be read is a diagnostic (`config::unreadable`) like any other.
#[must_use]
pub fn load(path: &Path) -> Loaded {
    let name = path.display().to_string();
    match read_bounded(path) {
        Ok(bytes) => from_bytes(name, &bytes, folder_of(path).as_deref()),
        Err(error) => unreadable(&name, &error),
    }
}

/// Reads the bytes of a configuration that is no file, as from standard input: relative paths mean nothing in it.
#[must_use]
pub fn load_bytes(name: &str, bytes: &[u8]) -> Loaded {
    from_bytes(name.to_owned(), bytes, None)
}

/// What there is to say of a configuration that could not be read (`config::unreadable`).
#[must_use]
pub fn unreadable(name: &str, error: &io::Error) -> Loaded {
    let message = format!("The file could not be read: {error}");
    failed(name.to_owned(), Diagnostic::error("config::unreadable", message))
}

fn from_bytes(name: String, bytes: &[u8], folder: Option<&Path>) -> Loaded {
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return failed(
            name,
            Diagnostic::error("config::too-large", format!("The file is larger than {MAX_FILE_SIZE} bytes"))
                .help("a configuration rarely exceeds a few hundred lines; is this the right file?"),
        );
    }
    load_source(SourceFile::from_bytes(name, bytes), folder)
}

/// Reads a configuration that is in memory; `name` is what diagnostics call it. Relative paths in it are understood
/// only if the name is an absolute path, whose directory they then start from.
#[must_use]
pub fn load_str(name: &str, text: &str) -> Loaded {
    load_text(name, text, Path::new(name).parent().filter(|folder| folder.is_absolute()))
}

/// The same with relative paths that start from a directory, if there is one.
#[must_use]
pub fn load_text(name: &str, text: &str, folder: Option<&Path>) -> Loaded {
    if text.len() as u64 > MAX_FILE_SIZE {
        let message = format!("The text is larger than {MAX_FILE_SIZE} bytes");
        return failed(name.to_owned(), Diagnostic::error("config::too-large", message));
    }
    load_source(SourceFile::new(name, text), folder)
}

/// The absolute path of the directory that a file is in.
fn folder_of(file: &Path) -> Option<PathBuf> {
    std::path::absolute(file).ok()?.parent().map(Path::to_owned)
}

fn load_source(source: SourceFile, folder: Option<&Path>) -> Loaded {
    let (document, mut diagnostics) = parse_guest(&source);
    if diagnostics.iter().any(|d| d.id == PYTHON_ID) {
        return Loaded { source, config: None, diagnostics, omitted: 0, newer: Vec::new() };
    }
    let broken = diagnostics.iter().any(Diagnostic::is_error);
    let (config, more) = guest::convert(&document, folder);
    diagnostics.extend(more.into_iter().filter(|d| {
        // What a broken line would have said is not missing.
        !(broken && d.span.is_none() && matches!(d.id, "config::missing-key" | guest::NOT_HVM))
    }));
    let config = if diagnostics.iter().any(Diagnostic::is_error) { None } else { config };
    let newer = newer(&document);
    let mut loaded = Loaded { source, config, diagnostics, omitted: 0, newer };
    loaded.sort();
    loaded
}

fn newer(document: &Document) -> Vec<Newer> {
    let keys = document.settings.iter().filter_map(|setting| {
        let key = keys::find(&setting.key)?;
        Some(Newer { word: key.name, older: "ignore", since: key.since?, span: setting.key_span })
    });
    let cpuid = document.settings.iter().filter(|setting| setting.key == "cpuid");
    let features = cpuid.flat_map(|setting| guest::newer_features(&setting.value));
    keys.chain(features.map(|(word, since, span)| Newer { word, older: "refuse", since, span })).collect()
}

/// A file's bytes, one more than is allowed at most, so that a larger file is noticed.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(name: String, diagnostic: Diagnostic) -> Loaded {
    Loaded {
        source: SourceFile::new(name, ""),
        config: None,
        diagnostics: vec![diagnostic],
        omitted: 0,
        newer: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_diagnostics_are_kept_and_every_error_before_warnings() {
        let unknown: String = (0..300).map(|at| format!("frobnicate_{at} = 1\n")).collect();
        let mut loaded = load_str("g.cfg", &format!("type = 'hvm'\nname = 'g'\n{unknown}memory = 'x'\n"));
        assert_eq!(loaded.diagnostics.len(), MAX_DIAGNOSTICS + 1);
        assert_eq!((loaded.errors(), loaded.config.is_none()), (1, true));
        let last = |loaded: &Loaded| loaded.diagnostics.last().map(|d| d.message.clone());
        assert_eq!(last(&loaded).as_deref(), Some("The file has 201 more errors and warnings"));
        loaded.add([Diagnostic::error("config::conflict", "Another error")]);
        assert_eq!((loaded.errors(), loaded.diagnostics.len()), (2, MAX_DIAGNOSTICS + 1));
        assert_eq!(last(&loaded).as_deref(), Some("The file has 202 more errors and warnings"));
    }

    #[test]
    fn a_key_that_is_newer_than_the_running_xen_is_named() {
        let text = "type = 'hvm'\nname = 'g'\nmemory = 64\nhvm_pirq = 1\n";
        let warnings = |minor| {
            let mut loaded = load_str("g.cfg", text);
            loaded.warn_of_newer(Release::new(4, minor));
            assert_eq!(loaded.config.map(|config| config.platform.hvm_pirq), Some(Some(true)));
            loaded.diagnostics.iter().map(|d| d.one_line(&loaded.source)).collect::<Vec<_>>()
        };
        let warning = "g.cfg:4:1: warning[config::newer-key]: `hvm_pirq` came with Xen 4.19";
        assert_eq!(warnings(17), [warning]);
        assert!(warnings(19).is_empty());
    }

    #[test]
    fn a_cpuid_name_that_is_newer_than_the_running_xen_is_named() {
        let text = "type = 'hvm'\nname = 'g'\nmemory = 64\ncpuid = 'host,avx=0,xfd=0,lam=x,tsa-sq-no=1'\n";
        let loaded = load_str("g.cfg", text);
        let leaves = loaded.config.as_ref().expect("a guest").platform.cpuid.leaves.clone();
        assert!(leaves.iter().any(|leaf| (leaf.leaf, leaf.subleaf) == (0xd, Some(1))), "{leaves:?}");
        let word_18 = leaves.iter().find(|leaf| leaf.leaf == 0x8000_0021).expect("the last word of the set");
        let expected = Some(format!("{}1x", "x".repeat(30)));
        assert_eq!(word_18.registers, [None, None, expected, None]);
        for (minor, words) in [(17, &["xfd", "lam"][..]), (20, &["lam"]), (21, &[])] {
            let mut loaded = loaded.clone();
            loaded.warn_of_newer(Release::new(4, minor));
            let said: Vec<_> = loaded.diagnostics.iter().map(|d| d.message.clone()).collect();
            let all = words.iter().all(|word| said.iter().any(|text| text.contains(&format!("`{word}`"))));
            assert!(all && said.len() == words.len(), "{minor}: {said:?}");
        }
    }
}
