//! What the logs tell about a case that failed, so that the output of a run says why and not only that.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Logs of the daemons and of all consoles, and how many of their last lines are shown.
const FOLDERS: [(&str, usize); 2] = [("/var/log/outrigger", 25), ("/var/log/outrigger/console", 6)];
/// No more than this of a file is looked at, in bytes.
const MOST: u64 = 16 * 1024;

/// How long the logs were before a case.
#[derive(Debug)]
pub(crate) struct Logs(BTreeMap<PathBuf, u64>);

impl Logs {
    /// Looks at the logs.
    pub(crate) fn look() -> Self {
        Self(FOLDERS.iter().flat_map(|(folder, _)| files(folder)).collect())
    }

    /// The last lines of what was written since.
    pub(crate) fn since(&self) -> String {
        let mut told = String::new();
        for (folder, lines) in FOLDERS {
            for (path, length) in files(folder) {
                // A log that was made anew or rotated is new from its start.
                let before = self.0.get(&path).copied().filter(|before| *before <= length).unwrap_or(0);
                let Some(text) = read(&path, before.max(length.saturating_sub(MOST))) else { continue };
                let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
                if !all.is_empty() {
                    let _ = writeln!(told, "     {}:", path.display());
                    for line in &all[all.len().saturating_sub(lines)..] {
                        let _ = writeln!(told, "     | {}", line.trim_end());
                    }
                }
            }
        }
        told
    }
}

fn files(folder: &str) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok().filter(fs::Metadata::is_file)?.len())))
        .collect();
    found.sort();
    found
}

fn read(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
