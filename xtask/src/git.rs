//! What git knows about the changes that are not on the main branch yet.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The branches that a change may be compared with, the first that exists.
const MAIN: [&str; 2] = ["origin/main", "main"];

/// Runs git in a folder and returns what it prints.
pub(crate) fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(folder).output();
    let output = output.context("Cannot start git")?;
    if !output.status.success() {
        bail!("git {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last commit that the current branch shares with the main branch, or nothing where there is no other branch.
pub(crate) fn base(folder: &Path) -> Option<String> {
    let head = git(folder, &["rev-parse", "HEAD"]).ok()?;
    MAIN.iter().find_map(|branch| {
        let tip = git(folder, &["rev-parse", "--verify", "--quiet", branch]).ok()?;
        // A local main that is the current commit has nothing to compare with; one at origin says that all is there.
        if *branch == "main" && tip == head {
            return None;
        }
        Some(git(folder, &["merge-base", "HEAD", branch]).ok()?.trim().to_owned())
    })
}

/// The files that differ from a commit, with those that git does not track yet, relative to the root.
pub(crate) fn changed_files(folder: &Path, base: &str) -> Result<Vec<String>> {
    let mut files = git(folder, &["diff", "--name-only", base])?;
    files += &git(folder, &["ls-files", "--others", "--exclude-standard"])?;
    Ok(files.lines().map(str::to_owned).collect())
}
