//! `cargo xtask tidy`: what no compiler checks: sizes, circles, titles of commits, pages about interfaces.
//!
//! Each check returns [`Excess`]es or [`Finding`]s. Known excesses are in `xtask/tidy.txt`; that list may only shrink.

mod allowed;
mod circles;
mod modules;
mod pages;
mod scope;
mod sizes;
mod sources;
mod titles;

use std::fmt;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace;
use allowed::Allowed;
use sources::Source;

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Records that pages describe the interfaces as they are, and shrinks the list of known excesses.
    #[arg(long)]
    bless: bool,
}

/// Something that has to be changed.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// `file:line`, or a commit.
    place: String,
    what: String,
    remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n  {}", self.place, self.what, self.remedy)
    }
}

/// What may be too much, and for which the list of known excesses may have a higher limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Lines of a file.
    File,
    /// Lines of a function.
    Function,
    /// Files that use each other.
    Circle,
}

/// Something that is over its limit.
#[derive(Debug)]
struct Excess {
    kind: Kind,
    /// What identifies it: a file; a file and a function; the files of a circle. Separated by blanks.
    key: String,
    /// Lines, or files.
    size: usize,
    finding: Finding,
}

/// Runs all checks, after it has recorded what is asked for.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    run(options.bless)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs all checks, prints what they find, and fails if that is anything.
pub(crate) fn check() -> Result<()> {
    run(false)
}

fn run(bless: bool) -> Result<()> {
    let root = workspace::root();
    let sources = Source::all(root)?;
    let mut excesses = sizes::check(&sources);
    excesses.extend(circles::check(&sources));
    let mut allowed = Allowed::read(root)?;
    if bless {
        allowed.shrink(&excesses);
        allowed.write(root)?;
        pages::bless(root)?;
    }
    let mut findings = allowed.judge(&excesses);
    findings.extend(titles::check(root));
    findings.extend(pages::check(root)?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("tidy found one problem"),
        many => bail!("tidy found {many} problems"),
    }
}

/// Sources made of text, for the tests of the checks.
#[cfg(test)]
fn fixture(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::parse(path, text).expect("the fixture is Rust")).collect()
}
