//! A disk's string cut into its parameters.

use super::{bad, refused};
use crate::document::Atom;
use crate::reader::{Reader, choices};
use crate::source::Span;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) span: Span,
}

/// The parameters of a disk as they were given.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) target: Option<Word>,
    pub(super) format: Option<Word>,
    pub(super) vdev: Option<Word>,
    pub(super) script: Option<Word>,
    pub(super) backend: Option<Word>,
    pub(super) backend_type: Option<Word>,
    pub(super) specification: Option<Word>,
    pub(super) cdrom: bool,
    pub(super) read_only: bool,
    pub(super) discard: Option<bool>,
    pub(super) direct_io_safe: bool,
    pub(super) trusted: bool,
    /// The format was given as that of an ISO image, which the language does not name.
    pub(super) iso: Option<Span>,
}

/// Words that are known. Only the good ones are recommended: the others are refused, or have no effect.
struct Words {
    good: &'static [&'static str],
    other: &'static [&'static str],
}

const FORMATS: Words = Words { good: &["raw", "empty"], other: &["qcow", "qcow2", "vhd", "qed"] };
const BACKENDS: Words = Words { good: &["phy"], other: &["qdisk", "tap", "standalone"] };
const SPECIFICATIONS: Words = Words { good: &["xen"], other: &["virtio"] };
const KEYS: &[&str] = &[
    "target",
    "format",
    "vdev",
    "access",
    "devtype",
    "cdrom",
    "backend",
    "backendtype",
    "specification",
    "script",
    "direct-io-safe",
    "discard",
    "no-discard",
    "trusted",
    "untrusted",
];
/// Old prefixes of the target that say its format.
const FORMAT_PREFIXES: &[&str] = &["raw", "qcow", "qcow2", "vhd"];
/// Old prefixes that name a script.
const SCRIPT_PREFIXES: &[&str] = &["iscsi", "nbd", "enbd", "drbd"];
/// Old prefixes that mean nothing any more.
const IDLE_PREFIXES: &[&str] = &["tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy"];

/// Cuts the string up; absent when it is broken, which was reported then.
pub(super) fn parse(atom: &Atom, reader: &mut Reader<'_>) -> Option<Spec> {
    let mut parser = Parser {
        atom,
        text: atom.text.as_str(),
        at: 0,
        had_prefix: false,
        access_set: false,
        failed: false,
        reader,
        spec: Spec {
            target: None,
            format: None,
            vdev: None,
            script: None,
            backend: None,
            backend_type: None,
            specification: None,
            cdrom: false,
            read_only: false,
            discard: None,
            direct_io_safe: false,
            trusted: true,
            iso: None,
        },
    };
    while parser.step() {}
    (!parser.failed).then_some(parser.spec)
}

struct Parser<'a, 'r, 'e> {
    atom: &'a Atom,
    text: &'a str,
    at: usize,
    /// An old prefix was there, so that no positional parameter is the format.
    had_prefix: bool,
    access_set: bool,
    failed: bool,
    reader: &'r mut Reader<'e>,
    spec: Spec,
}

impl<'a> Parser<'a, '_, '_> {
    /// Takes one parameter; false at the end.
    fn step(&mut self) -> bool {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n']).len();
        self.at += blanks;
        let rest = rest.get(blanks..).unwrap_or_default();
        if rest.is_empty() {
            return false;
        }
        if let Some(value) = rest.strip_prefix("target=") {
            self.target(value);
            return false;
        }
        if let Some(go_on) = self.prefix(rest) {
            return go_on;
        }
        let comma = rest.find(',').unwrap_or(rest.len());
        let start = self.at;
        // Blanks at the end of a parameter mean nothing; xl keeps them, and finds no file or device of that name.
        let item = rest.get(..comma).unwrap_or_default().trim_end_matches([' ', '\t', '\n']);
        self.at += comma + 1;
        match item.split_once('=') {
            Some((key, value)) => self.named(key, value, start),
            None => self.positional(item, start),
        }
    }

    fn word(&self, text: &str, start: usize) -> Word {
        Word { text: text.to_owned(), span: self.atom.text.span(start..start + text.len()) }
    }

    fn fail(&mut self, message: impl Into<String>, span: Span) {
        self.failed = true;
        self.reader.push(bad(message, span));
    }

    /// `target=` takes all that follows, except that one comma at the very end is dropped.
    fn target(&mut self, value: &str) {
        let start = self.at + "target=".len();
        let word = self.word(value.strip_suffix(',').unwrap_or(value), start);
        self.set_once("target", word, |spec| &mut spec.target);
    }

    /// An old prefix, `phy:` and the like. Says whether to go on, when there was one.
    fn prefix(&mut self, rest: &str) -> Option<bool> {
        let (name, after) = rest.split_once(':')?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return None;
        }
        let word = self.word(name, self.at);
        if FORMAT_PREFIXES.contains(&name) {
            self.set_format(word);
        } else if SCRIPT_PREFIXES.contains(&name) {
            let script = Word { text: format!("block-{name}"), span: word.span };
            self.set_once("script", script, |spec| &mut spec.script);
        } else if !IDLE_PREFIXES.contains(&name) {
            // `xvda:cdrom` is a positional parameter, `foo:/path` is a mistake.
            let starts_path =
                after.chars().next().is_none_or(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit());
            let is_prefix = starts_path && name.starts_with(|c: char| c.is_ascii_lowercase());
            if is_prefix {
                self.fail(format!("`{name}:` is not a prefix of a disk's target"), word.span);
                return Some(false);
            }
            return None;
        }
        self.had_prefix = true;
        self.at += name.len() + 1;
        Some(true)
    }

    fn positional(&mut self, item: &'a str, start: usize) -> bool {
        match item {
            "cdrom" => self.spec.cdrom = true,
            "direct-io-safe" => self.spec.direct_io_safe = true,
            "discard" => self.spec.discard = Some(true),
            "no-discard" => self.spec.discard = Some(false),
            "trusted" => self.spec.trusted = true,
            "untrusted" => self.spec.trusted = false,
            "colo" => self.refuse_colo("colo", start),
            "no-colo" => {}
            _ if self.failed => {}
            _ => return self.next_position(item, start),
        }
        true
    }

    fn next_position(&mut self, item: &'a str, start: usize) -> bool {
        let word = self.word(item, start);
        if self.spec.target.is_none() {
            self.spec.target = Some(word);
        } else if !self.had_prefix && self.spec.format.is_none() {
            let no_target = self.spec.target.as_ref().is_some_and(|target| target.text.is_empty());
            if no_target && self.vdev_and_type(item, start) {
                self.spec.format = Some(Word { text: "empty".to_owned(), span: word.span });
            } else {
                self.set_format(word);
            }
        } else if self.spec.vdev.is_none() {
            if !self.vdev_and_type(item, start) {
                self.spec.vdev = Some(word);
            }
        } else if !self.access_set {
            self.access_set = true;
            self.set_access(&word);
        } else {
            self.fail("The disk has more than four parameters without a name", word.span);
            return false;
        }
        true
    }

    /// The old `hdc:cdrom`.
    fn vdev_and_type(&mut self, item: &str, start: usize) -> bool {
        let Some((vdev, kind)) = item.rsplit_once(':') else { return false };
        let word = self.word(vdev, start);
        self.set_once("vdev", word, |spec| &mut spec.vdev);
        match kind {
            "cdrom" => self.spec.cdrom = true,
            "disk" => self.spec.cdrom = false,
            _ => {
                let span = self.word(kind, start + vdev.len() + 1).span;
                self.fail(format!("`{kind}` is not a type of disk; it is `cdrom` or `disk`"), span);
            }
        }
        true
    }

    fn named(&mut self, key: &str, value: &str, start: usize) -> bool {
        let word = self.word(value, start + key.len() + 1);
        match key {
            "format" => self.set_format(word),
            "vdev" => self.set_once("vdev", word, |spec| &mut spec.vdev),
            "script" => self.set_once("script", word, |spec| &mut spec.script),
            "backend" => self.set_once("backend", word, |spec| &mut spec.backend),
            "backendtype" => self.one_of("backendtype", word, &BACKENDS, |spec| &mut spec.backend_type),
            "specification" => {
                self.one_of("specification", word, &SPECIFICATIONS, |spec| &mut spec.specification);
            }
            "access" => self.set_access(&word),
            "devtype" => match value {
                "cdrom" => self.spec.cdrom = true,
                "disk" => self.spec.cdrom = false,
                _ => self
                    .fail(format!("`devtype` has no value \"{value}\"; it is `cdrom` or `disk`"), word.span),
            },
            "colo-host" | "colo-port" | "colo-export" | "active-disk" | "hidden-disk" => {
                self.refuse_colo(key, start);
            }
            _ => {
                let span = self.word(key, start).span;
                self.failed = true;
                self.reader.push(
                    bad(format!("`{key}` is not a parameter of a disk"), span)
                        .help(choices(key, KEYS))
                        .help("write a target that contains `=` or `,` last, as `target=…`"),
                );
                return false;
            }
        }
        true
    }

    fn refuse_colo(&mut self, key: &str, start: usize) {
        self.failed = true;
        let span = self.word(key, start).span;
        self.reader.push(refused(format!("`{key}` is not supported"), span, "COLO is not supported"));
    }

    /// Sets a value that may be set only once; an empty one does not count.
    fn set_once(&mut self, what: &str, word: Word, slot: fn(&mut Spec) -> &mut Option<Word>) {
        let place = slot(&mut self.spec);
        if let Some(old) = place.as_ref().filter(|old| !old.text.is_empty()) {
            let first = old.span;
            self.twice(what, word.span, first);
            return;
        }
        *place = Some(word);
    }

    /// Sets one of several words; saying the same again is no mistake.
    fn one_of(&mut self, what: &str, word: Word, words: &Words, slot: fn(&mut Spec) -> &mut Option<Word>) {
        if !words.good.iter().chain(words.other).any(|known| *known == word.text) {
            self.failed = true;
            let problem = bad(format!("`{what}` has no value \"{}\"", word.text), word.span);
            self.reader.push(problem.help(choices(&word.text, words.good)));
            return;
        }
        let place = slot(&mut self.spec);
        if let Some(old) = place.as_ref().filter(|old| old.text != word.text) {
            let first = old.span;
            self.twice(what, word.span, first);
            return;
        }
        *place = Some(word);
    }

    fn twice(&mut self, what: &str, span: Span, first: Span) {
        self.failed = true;
        self.reader
            .push(bad(format!("The disk's {what} is given twice"), span).also(first, "the first time"));
    }

    fn set_format(&mut self, word: Word) {
        if word.text.eq_ignore_ascii_case("iso") {
            self.spec.iso = Some(word.span);
            return self.set_format(Word { text: "raw".to_owned(), span: word.span });
        }
        let text = if word.text.is_empty() { "raw".to_owned() } else { word.text };
        self.one_of("format", Word { text, span: word.span }, &FORMATS, |spec| &mut spec.format);
    }

    fn set_access(&mut self, word: &Word) {
        match word.text.as_str() {
            "r" | "ro" => self.spec.read_only = true,
            "rw" | "w" | "" => self.spec.read_only = false,
            _ => {
                let message =
                    format!("`{}` is not a kind of access; it is `rw`, `w`, `ro` or `r`", word.text);
                self.fail(message, word.span);
            }
        }
    }
}
