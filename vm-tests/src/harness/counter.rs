//! The Linux guest that counts, and says what the longest time was in which it stood still.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::peer::until;
use super::shell::BOOT;
use super::xl_serial::Serial;

/// What it says before its numbers.
pub(crate) const MARK: &str = "COUNT ";
/// What it complains of.
const COMPLAINTS: [&str; 3] = ["LOST", "NO DISK", "TESTGUEST script ended"];

/// How many lines are shown when numbers are missing.
const SHOWN: usize = 12;

/// What the guest says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// The number that it has counted to.
    pub(crate) number: u64,
    /// The longest time between two numbers until now, by its own clock, in hundredths of a second.
    pub(crate) gap: u64,
}

impl Count {
    /// What stands behind the mark.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
        Some(Self { number: numbers.next()??, gap: numbers.next()?? })
    }

    /// All whose lines have ended. A line in which the guest was suspended may have lost its beginning.
    pub(crate) fn all(text: &str) -> impl Iterator<Item = Self> {
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| Self::parse(line.split_once(MARK)?.1))
    }
}

/// The first serial port of a guest of xl's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Port {
    /// The file that QEMU in dom0 writes.
    File(PathBuf),
    /// A console of the stubdomain of a guest of this name.
    Stub(String),
}

impl Port {
    /// Waits until the guest has said so many numbers on it, and returns the last one. What a stubdomain's guest has said is
    /// read only once.
    pub(crate) fn count(&self, least: usize) -> Result<Count> {
        let is_there = |text: &str| Count::all(text).nth(least - 1).is_some();
        let text = match self {
            Self::File(path) => until(&format!("{} has not {least} numbers", path.display()), || {
                let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
                if is_there(&text) { Ok(text) } else { Err(io::Error::other(end(&text))) }
            })?,
            Self::Stub(name) => {
                Serial::of(name).wait_until(&format!("{least} numbers"), BOOT, is_there)?.to_owned()
            }
        };
        must_not_complain(&text)?;
        Count::all(&text).last().context("no number")
    }
}

/// The end of what a guest has said, for people.
fn end(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("it ends with {:?}", &lines[lines.len().saturating_sub(SHOWN)..])
}

/// Fails if the guest has complained.
pub(crate) fn must_not_complain(text: &str) -> Result<()> {
    match COMPLAINTS.iter().find(|complaint| text.contains(**complaint)) {
        Some(complaint) => bail!("{complaint}: {text}"),
        None => Ok(()),
    }
}

/// Its program: copies one of two files of so many pages over a third one in turn, ten times a second or so, and compares
/// them; reads its disk; says how many times it has done so, and what the longest time between two turns was by the clock
/// that runs through a suspend.
pub(crate) fn program(pages: u64) -> String {
    format!(
        "mkdir -p /tmp; cd /tmp; for f in one two; do head -c {} /dev/urandom >$f; done; n=0; gap=0\n\
         while :; do for f in one two; do\n\
         dd if=$f of=target bs=64k conv=notrunc 2>/dev/null; cmp -s $f target || echo LOST\n\
         head -c 512 /dev/xvda >/dev/null || echo NO DISK\n\
         read -r up idle </proc/uptime; now=${{up%.*}}${{up#*.}}; n=$((n + 1))\n\
         [ $n = 1 ] || [ $((now - last)) -le $gap ] || gap=$((now - last))\n\
         last=$now; echo COUNT $n $gap; usleep 100000\n\
         done; done\n",
        pages * 4096
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_count() {
        let check = |text: &str, all: &[(u64, u64)]| {
            let found: Vec<(u64, u64)> = Count::all(text).map(|count| (count.number, count.gap)).collect();
            assert_eq!(found, all, "{text:?}");
        };
        check("COUNT 1 0\r\nCOUNT 2 11\r\nCOUNT 3 1", &[(1, 0), (2, 11)]);
        check("UNT 7 12\r\nCOUNT 8 150\r\nkernel: words\r\n", &[(8, 150)]);
        check("COUNT 9\nCOUNT x 1\n", &[]);
        check("", &[]);
    }

    #[test]
    fn complaint_is_an_error() {
        must_not_complain("COUNT 1 0\n").unwrap();
        assert!(must_not_complain("COUNT 1 0\nLOST\n").is_err());
    }
}
