//! Pages that describe an interface: each names the hash of the files that define it.
//!
//! When such a file changes, the page has to be read again. `cargo xtask tidy --bless` then renews the hashes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use sha2::{Digest as _, Sha256};

use super::Finding;

/// Each page, with the folder or the file that defines what it describes.
const PAGES: [(&str, &str); 2] = [
    ("docs/stubdom-api.md", "crates/stubdom-abi/src"),
    ("docs/outriggerd-api.md", "crates/api/src/io.outrigger.varlink"),
];
/// The line before the hashes, which stand at a page's end, and the one after them.
const BEGIN: &str = "<!-- This page was compared with these files. After a change: cargo xtask tidy --bless";
const END: &str = "-->";
/// Characters of a hash.
const HASH: usize = 16;

/// Finds files that changed since their page was last compared with them.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (page, defined) in PAGES {
        let text = read(root, page)?;
        findings.extend(judge(page, split(&text).1, &hashes(root, defined)?));
    }
    Ok(findings)
}

/// Writes the files' hashes into each page.
pub(super) fn bless(root: &Path) -> Result<()> {
    for (page, defined) in PAGES {
        let text = read(root, page)?;
        let new = renewed(split(&text).0, &hashes(root, defined)?);
        if new != text {
            fs::write(root.join(page), new).with_context(|| format!("Cannot write {page}"))?;
        }
    }
    Ok(())
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("Cannot read {path}"))
}

/// A page's text, and its lines of hashes.
fn split(text: &str) -> (&str, &str) {
    text.split_once(BEGIN).map_or((text, ""), |(text, hashes)| (text, hashes))
}

fn renewed(text: &str, hashes: &BTreeMap<String, String>) -> String {
    let mut new = format!("{}\n\n{BEGIN}\n", text.trim_end());
    for (file, hash) in hashes {
        let _ = writeln!(new, "{file} {hash}");
    }
    new + END + "\n"
}

fn judge(page: &str, recorded: &str, hashes: &BTreeMap<String, String>) -> Vec<Finding> {
    let recorded: BTreeMap<&str, &str> =
        recorded.lines().filter_map(|line| line.split_once(' ')).filter(|(file, _)| *file != END).collect();
    let finding = |file: &str, what: &str| Finding {
        place: format!("{file}:1"),
        what: format!("{what} {page} was last compared with it"),
        remedy: format!("Make {page} right where it is not, then run: cargo xtask tidy --bless"),
    };
    let mut findings = Vec::new();
    for (file, hash) in hashes {
        match recorded.get(file.as_str()) {
            Some(recorded) if recorded == hash => {}
            Some(_) => findings.push(finding(file, "the interface has changed since")),
            None => findings.push(finding(file, "the file has come since")),
        }
    }
    let gone = recorded.keys().filter(|file| !hashes.contains_key(**file));
    findings.extend(gone.map(|file| finding(file, "the file is gone since")));
    findings
}

/// The hashes of a file, or of the Rust files of a folder.
fn hashes(root: &Path, defined: &str) -> Result<BTreeMap<String, String>> {
    let path = root.join(defined);
    if !path.is_dir() {
        return Ok(BTreeMap::from([(defined.to_owned(), hash(&read(root, defined)?))]));
    }
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(&path).with_context(|| format!("Cannot list {defined}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rs") {
            let file = format!("{defined}/{name}");
            let code = code(&read(root, &file)?).with_context(|| format!("Cannot parse {file}"))?;
            hashes.insert(file, hash(&code));
        }
    }
    Ok(hashes)
}

fn hash(text: &str) -> String {
    let mut hash = Sha256::digest(text).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    hash.truncate(HASH);
    hash
}

/// The code of a Rust file: without comments, layout and tests, whose changes do not change an interface.
fn code(text: &str) -> Result<String> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut code = String::new();
    flatten(tokens, &mut code);
    Ok(code)
}

fn flatten(tokens: TokenStream, code: &mut String) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if let TokenTree::Punct(punct) = &token
            && punct.as_char() == '#'
        {
            tokens.next_if(|next| matches!(next, TokenTree::Punct(punct) if punct.as_char() == '!'));
            let attribute = tokens.next().map(|group| group.to_string().replace(' ', "")).unwrap_or_default();
            if attribute.starts_with("[doc=") {
                continue;
            }
            if attribute == "[cfg(test)]" {
                // The item ends with its braces or a semicolon.
                let _ = tokens.find(|token| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(punct) => punct.as_char() == ';',
                    TokenTree::Ident(_) | TokenTree::Literal(_) => false,
                });
                continue;
            }
            *code += "#";
            *code += &attribute;
            *code += "\n";
            continue;
        }
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                *code += open;
                flatten(group.stream(), code);
                *code += close;
            }
            other => {
                *code += &other.to_string();
            }
        }
        *code += "\n";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        code(a).expect("this is Rust") == code(b).expect("this is Rust")
    }

    #[test]
    fn only_code_counts() {
        let text = "pub const A: u8 = 1;\nfn f() { g(A) }\n";
        let commented = "//! Page.\n#![doc = \"x\"]\n/// A.\npub const A: u8 = 1; // one\n\
            #[cfg(test)]\nuse x::y;\nfn f() {\n    g(A)\n}\n#[cfg(test)]\nmod tests { fn t() {} }\n";
        assert!(same(text, commented));
        assert!(!same(text, &text.replace("= 1", "= 2")));
        assert!(!same("#[repr(C)] struct S;", "struct S;"));
    }

    #[test]
    fn blessed_page_is_accepted_until_a_file_changes() {
        let mut hashes = BTreeMap::from([("a.rs".to_owned(), hash("a")), ("b.rs".to_owned(), hash("b"))]);
        let page = renewed("# Page\n", &hashes);
        assert_eq!(page.lines().count(), 6, "{page}");
        assert_eq!(judge("page.md", split(&page).1, &hashes), []);
        assert_eq!(renewed(split(&page).0, &hashes), page, "blessed twice, it is the same");
        hashes.insert("a.rs".to_owned(), hash("other"));
        hashes.remove("b.rs");
        hashes.insert("c.rs".to_owned(), hash("c"));
        let found: Vec<String> = judge("page.md", split(&page).1, &hashes)
            .into_iter()
            .map(|finding| format!("{} {}", finding.place, finding.what))
            .collect();
        assert_eq!(
            found,
            [
                "a.rs:1 the interface has changed since page.md was last compared with it",
                "c.rs:1 the file has come since page.md was last compared with it",
                "b.rs:1 the file is gone since page.md was last compared with it",
            ]
        );
    }
}
