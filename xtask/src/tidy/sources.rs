//! The Rust files of the workspace, parsed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// The folders with Rust files.
const FOLDERS: [&str; 5] = ["bin", "crates", "fuzz", "vm-tests", "xtask"];
/// What a file that a program has written begins with.
const GENERATED: &str = "/* automatically generated";

/// A file.
pub(super) struct Source {
    /// Relative to the root, with slashes.
    pub(super) path: String,
    pub(super) lines: usize,
    pub(super) syntax: syn::File,
}

impl Source {
    /// Parses a file.
    pub(super) fn parse(path: &str, text: &str) -> Result<Self> {
        let syntax = syn::parse_file(text).with_context(|| format!("Cannot parse {path}"))?;
        Ok(Self { path: path.to_owned(), lines: text.lines().count(), syntax })
    }

    /// All files below the root that people write, sorted by path.
    pub(super) fn all(root: &Path) -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        for folder in FOLDERS {
            find(&root.join(folder), &mut paths).with_context(|| format!("Cannot list {folder}"))?;
        }
        paths.sort();
        let mut sources = Vec::with_capacity(paths.len());
        for path in paths {
            let text =
                fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            if !text.starts_with(GENERATED) {
                sources.push(Self::parse(&path, &text)?);
            }
        }
        Ok(sources)
    }
}

/// Finds Rust files, except in target folders.
fn find(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "target" {
            find(&path, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether an item is compiled for tests only.
pub(super) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("cfg") && holds_test(&list.tokens),
        syn::Meta::NameValue(_) => false,
    })
}

/// Whether the condition of a `cfg` wants tests: `test`, or `all(test, …)`.
fn holds_test(condition: &proc_macro2::TokenStream) -> bool {
    let text = condition.to_string();
    text == "test" || text.replace(' ', "").starts_with("all(test")
}
