//! The list of known excesses, `xtask/tidy.txt`. It may only shrink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Excess, Finding, Kind};

/// Where the list is.
const FILE: &str = "xtask/tidy.txt";
/// What the file begins with.
const HEAD: &str = "\
# What cargo xtask tidy accepts although it is over a limit. Do not add to this list: make it shorter.
# After an improvement, cargo xtask tidy --bless lowers the numbers and removes the lines that are not needed any more.
#
# file LINES PATH
# function LINES PATH NAME
# circle PATH PATH …             files of one crate that use each other
";

/// A line of the list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    kind: Kind,
    key: String,
    /// Lines; of a circle the number of its files.
    ceiling: usize,
    /// The line's number in the file.
    line: usize,
}

impl Entry {
    fn parse(number: usize, line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        let (kind, ceiling, key) = match kind {
            "circle" => (Kind::Circle, rest.split(' ').count(), rest),
            "file" | "function" => {
                let (ceiling, key) = rest.split_once(' ')?;
                let kind = if kind == "file" { Kind::File } else { Kind::Function };
                (kind, ceiling.parse().ok()?, key)
            }
            _ => return None,
        };
        Some(Self { kind, key: key.to_owned(), ceiling, line: number })
    }

    /// Whether the entry is about this excess, if it has got worse or better meanwhile, too.
    fn names(&self, excess: &Excess) -> bool {
        self.kind == excess.kind
            && match self.kind {
                Kind::File | Kind::Function => self.key == excess.key,
                Kind::Circle => parts(&excess.key).is_subset(&parts(&self.key)),
            }
    }
}

fn parts(key: &str) -> BTreeSet<&str> {
    key.split(' ').collect()
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Allowed(Vec<Entry>);

impl Allowed {
    /// Reads the list.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(FILE)).with_context(|| format!("Cannot read {FILE}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let entries = lines.map(|(number, line)| {
            Entry::parse(number, line)
                .with_context(|| format!("{FILE}:{number}: this line has no known form"))
        });
        Ok(Self(entries.collect::<Result<_>>()?))
    }

    /// Writes the list.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        fs::write(root.join(FILE), self.text()).with_context(|| format!("Cannot write {FILE}"))
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for Entry { kind, key, ceiling, .. } in &self.0 {
            let _ = match kind {
                Kind::File => writeln!(text, "file {ceiling} {key}"),
                Kind::Function => writeln!(text, "function {ceiling} {key}"),
                Kind::Circle => writeln!(text, "circle {key}"),
            };
        }
        text
    }

    /// Lowers what is too high and removes what is not needed. Nothing is added or raised.
    pub(super) fn shrink(&mut self, excesses: &[Excess]) {
        let mut kept: BTreeMap<(Kind, String), usize> = BTreeMap::new();
        for excess in excesses {
            if let Some(entry) = self.0.iter().find(|entry| entry.names(excess)) {
                let ceiling = kept.entry((excess.kind, excess.key.clone())).or_default();
                *ceiling = (*ceiling).max(excess.size.min(entry.ceiling));
            }
        }
        let entries = kept.into_iter().map(|((kind, key), ceiling)| Entry { kind, key, ceiling, line: 0 });
        self.0 = entries.collect();
    }

    /// What has to be changed: excesses that are not in the list or got worse, and lines that are not needed.
    pub(super) fn judge(&self, excesses: &[Excess]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for excess in excesses {
            let entry = self.0.iter().find(|entry| entry.names(excess));
            let Finding { place, what, remedy } = &excess.finding;
            let what = match entry {
                Some(entry) if excess.size <= entry.ceiling => continue,
                Some(entry) => format!("{what}; {FILE} accepts {}", entry.ceiling),
                None => what.clone(),
            };
            findings.push(Finding { place: place.clone(), what, remedy: remedy.clone() });
        }
        let unneeded = self.0.iter().filter(|entry| {
            let mut named = excesses.iter().filter(|excess| entry.names(excess));
            match entry.kind {
                Kind::File | Kind::Function => named.next().is_none(),
                // A smaller circle, or two of them, are to be listed as such.
                Kind::Circle => !named.any(|excess| excess.size == entry.ceiling),
            }
        });
        findings.extend(unneeded.map(|entry| Finding {
            place: format!("{FILE}:{}", entry.line),
            what: format!("this is not needed any more: {}", entry.key),
            remedy: "Run: cargo xtask tidy --bless".to_owned(),
        }));
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excess(kind: Kind, key: &str, size: usize) -> Excess {
        let finding =
            Finding { place: "place".to_owned(), what: "what".to_owned(), remedy: "remedy".to_owned() };
        Excess { kind, key: key.to_owned(), size, finding }
    }

    fn judge(list: &str, excesses: &[Excess]) -> Vec<String> {
        let findings = Allowed::parse(list).expect("the list is right").judge(excesses);
        findings.iter().map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
    }

    #[test]
    fn known_excess_is_accepted_until_it_gets_worse() {
        let file = |lines| [excess(Kind::File, "a.rs", lines)];
        assert_eq!(judge("file 600 a.rs", &file(600)), [""; 0]);
        assert_eq!(judge("file 600 a.rs", &file(550)), [""; 0]);
        assert_eq!(judge("file 600 a.rs", &file(601)), ["place: what; xtask/tidy.txt accepts 600"]);
        assert_eq!(judge("", &file(501)), ["place: what"]);
        assert_eq!(judge("function 80 a.rs f", &[excess(Kind::Function, "a.rs f", 80)]), [""; 0]);
    }

    #[test]
    fn line_that_is_not_needed_is_found() {
        assert_eq!(
            judge("# head\nfile 600 a.rs", &[]),
            ["xtask/tidy.txt:2: this is not needed any more: a.rs"]
        );
    }

    #[test]
    fn circle_may_only_get_smaller() {
        let circle = |key: &str| [excess(Kind::Circle, key, key.split(' ').count())];
        assert_eq!(judge("circle a b c", &circle("a b c")), [""; 0]);
        assert_eq!(
            judge("circle a b c", &circle("a b")),
            ["xtask/tidy.txt:1: this is not needed any more: a b c"]
        );
        assert_eq!(judge("circle a b", &circle("a b c")).len(), 2, "a new one, and an old one that is gone");
    }

    #[test]
    fn bless_shrinks_and_never_adds() {
        let list = "file 600 a.rs\nfile 700 b.rs\nfile 800 c.rs\ncircle a b c\n";
        let mut allowed = Allowed::parse(list).expect("the list is right");
        allowed.shrink(&[
            excess(Kind::File, "a.rs", 590),
            excess(Kind::File, "b.rs", 710),
            excess(Kind::File, "new.rs", 510),
            excess(Kind::Circle, "a b", 2),
        ]);
        assert_eq!(allowed.text(), format!("{HEAD}file 590 a.rs\nfile 700 b.rs\ncircle a b\n"));
    }

    #[test]
    fn unknown_line_is_refused() {
        assert!(Allowed::parse("files 600 a.rs").is_err());
        assert!(Allowed::parse("file many a.rs").is_err());
    }
}
