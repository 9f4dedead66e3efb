//! Titles of commits that are not on the main branch yet.

use std::path::Path;

use super::Finding;
use crate::git::{base, git};

/// Characters of a title: what `git log --oneline` shows on a line of 80.
const TITLE: usize = 72;
/// How many commits are looked at where there is no other branch to compare with.
const LAST: &str = "-30";

/// Finds titles that are too long. Without git, as in an unpacked archive, there are no commits to look at.
pub(super) fn check(root: &Path) -> Vec<Finding> {
    let range = base(root).map_or_else(|| LAST.to_owned(), |base| format!("{base}..HEAD"));
    match git(root, &["log", "--format=%h %s", &range]) {
        Ok(log) => judge(&log),
        Err(error) => {
            eprintln!("titles of commits are not checked: {error}");
            Vec::new()
        }
    }
}

/// Judges lines of a commit's short name and title.
fn judge(log: &str) -> Vec<Finding> {
    let commits = log.lines().filter_map(|line| line.split_once(' '));
    let long = commits.filter_map(|(commit, title)| {
        let length = title.chars().count();
        (length > TITLE).then(|| Finding {
            place: format!("commit {commit}"),
            what: format!("the title has {length} characters, the limit is {TITLE}: {title}"),
            remedy: "Shorten it with git rebase --interactive, and move the reasons into the body."
                .to_owned(),
        })
    });
    long.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_titles_are_found() {
        let log = format!("abc1234 {}\ndef5678 xtask: {}\n", "é".repeat(72), "x".repeat(66));
        let found = judge(&log);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "commit def5678");
        assert!(found[0].what.starts_with("the title has 73 characters"), "{}", found[0].what);
    }
}
