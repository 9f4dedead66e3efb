//! Lists of options in which some lines are for some versions only.
//!
//! Lines that begin with `#:` belong to this format and are never part of the result. The lines after `#: from 6.12` are
//! for 6.12 and newer, those after `#: before 6.12` for older versions, those after `#: any` for all. The build refuses
//! an option that its version lacks, so no option is lost unnoticed.

use crate::debian::Version;

/// The lines for one version.
pub(super) fn lines_for(text: &str, version: Version) -> String {
    let mut applies = true;
    let mut lines = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix("#:") {
            Some(words) => applies = condition(words.trim(), version).unwrap_or(applies),
            None if applies => {
                lines.push_str(line);
                lines.push('\n');
            }
            None => {}
        }
    }
    lines
}

/// Whether a condition holds; `None` for a comment.
fn condition(words: &str, version: Version) -> Option<bool> {
    match words.split_once(' ') {
        Some(("from", from)) => Some(version >= parse(from)?),
        Some(("before", before)) => Some(version < parse(before)?),
        _ => (words == "any").then_some(true),
    }
}

fn parse(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether all lines of this format are conditions or comments, a comment being in parentheses. For tests of the lists.
#[cfg(test)]
pub(super) fn is_well_formed(text: &str) -> bool {
    text.lines()
        .filter_map(|line| line.strip_prefix("#:"))
        .map(str::trim)
        .all(|words| condition(words, (0, 0)).is_some() || (words.starts_with('(') && words.ends_with(')')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_lines_are_those_of_the_version() {
        let text = "#: (some words)\na\n#: before 6.12\nold\n#: from 6.12\nnew\n#: any\n# b\n";
        assert!(is_well_formed(text));
        assert_eq!(lines_for(text, (6, 1)), "a\nold\n# b\n");
        assert_eq!(lines_for(text, (6, 12)), "a\nnew\n# b\n");
        assert_eq!(lines_for(text, (7, 2)), "a\nnew\n# b\n");
    }

    #[test]
    fn test_misspelt_conditions_are_seen() {
        for text in ["#: form 6.12\n", "#: from 6\n", "#: all\n", "#: before x.1\n"] {
            assert!(!is_well_formed(text), "{text}");
        }
    }
}
