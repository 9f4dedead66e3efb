//! `cargo xtask test --long`: what takes hours. The latest results of each part stand in `docs/status.md`.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::meter::{Load, Meter};
use crate::releases::{DebianOptions, On};
use crate::workspace;

/// Random inputs of each property test; usually it is 256.
const PROPERTY_CASES: &str = "4096";
/// Where the results are kept.
const STATUS: &str = "docs/status.md";
/// What every table begins with.
const HEAD: &str =
    "| what | date | commit | seconds | processors busy | memory | result |\n|---|---|---|---|---|---|---|\n";

/// What of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Whole runs in a row.
    Rounds,
    /// Every test with many random inputs.
    Properties,
}

/// What one part gave.
struct Outcome {
    what: String,
    /// What was tested.
    commit: String,
    took: Duration,
    load: Load,
    result: String,
    good: bool,
}

/// Does these parts, whatever fails, and writes each result down as soon as it is there. `whole` is the usual run of all
/// tests on one Debian with one xenstored, and says in a few words what it gave; it is done `rounds` times, in turn on both
/// Debians, each with both xenstoreds. Four rounds are all of these.
pub(crate) fn main(
    parts: &[Part],
    rounds: usize,
    debian: DebianOptions,
    whole: impl Fn(On) -> Result<String>,
) -> Result<ExitCode> {
    let mut good = true;
    for part in parts {
        match part {
            Part::Properties => {
                let what = format!("unit and property tests, {PROPERTY_CASES} random inputs each");
                good &= record(&outcome(what, properties)?)?;
            }
            Part::Rounds => {
                for (round, on) in (1..=rounds).zip(On::all(debian).into_iter().cycle()) {
                    let name = format!("{}, {}", on.debian.host().name(), on.xenstored.program());
                    eprintln!("== round {round} of {rounds}, {name}");
                    let what = format!("whole run {round} of {rounds}, {name}");
                    good &= record(&outcome(what, || whole(on))?)?;
                }
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts a result into the page, and says whether it is a good one.
fn record(outcome: &Outcome) -> Result<bool> {
    let path = workspace::root().join(STATUS);
    let before = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("Cannot read {}", path.display()))?,
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let date = said("date", &["--utc", "+%Y-%m-%d"])?;
    let text = page(&before, cores, &date, std::slice::from_ref(outcome));
    std::fs::write(&path, &text).with_context(|| format!("Cannot write {}", path.display()))?;
    eprint!("{text}");
    Ok(outcome.good)
}

/// Does one part and looks at the machine meanwhile.
fn outcome(what: String, part: impl FnOnce() -> Result<String>) -> Result<Outcome> {
    let (begun, meter, before) = (Instant::now(), Meter::start(), commit()?);
    let result = part();
    let (took, load) = (begun.elapsed(), meter.stop());
    let good = result.is_ok();
    let result = result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        format!("failed: {}", error.to_string().lines().next().unwrap_or_default())
    });
    // It is compiled from what is there when it is compiled.
    let after = commit()?;
    let commit = if before == after { before } else { format!("{before} to {after}") };
    Ok(Outcome { what, commit, took, load, result, good })
}

/// Every test with many random inputs.
fn properties() -> Result<String> {
    let status = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--locked", "--quiet", "--no-fail-fast"])
        .env("PROPTEST_CASES", PROPERTY_CASES)
        .current_dir(workspace::root())
        .status()
        .context("Cannot start cargo")?;
    ensure!(status.success(), "cargo test ended with {status}");
    Ok("all passed".to_owned())
}

/// The commit, and whether something is changed since.
fn commit() -> Result<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed =
        !said("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/status.md"])?
            .is_empty();
    Ok(if changed { format!("{commit} with changes") } else { commit })
}

/// What a program says, without spaces around it.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(workspace::root()).output();
    let output = output.with_context(|| format!("Cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {} failed ({})", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The page: rows of what was done now, and from the page before those of what was not.
fn page(before: &str, cores: usize, date: &str, outcomes: &[Outcome]) -> String {
    let rows: String = outcomes
        .iter()
        .map(|outcome| {
            let Outcome { what, commit, took, load, result, .. } = outcome;
            let seconds = took.as_secs_f64();
            format!(
                "| {what} | {date} | {commit} | {seconds:.0} | {} | {} | {result} |\n",
                load.busy(),
                load.memory()
            )
        })
        .collect();
    let is_new = |row: &str| outcomes.iter().any(|outcome| first_cell(row) == Some(&outcome.what));
    let kept: String = before
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .filter(|row| row.starts_with("| ") && !is_new(row))
        .map(|row| format!("{row}\n"))
        .collect();
    format!(
        "# The long tests\n\nThe latest result of each part of `cargo xtask test --long`, which writes this page, on \
         {cores} processors. Busy: the share of all processors' time. Memory: the most of the machine's memory that was \
         in use at once, with what else ran.\n\n{HEAD}{kept}{rows}"
    )
}

fn first_cell(row: &str) -> Option<&str> {
    row.strip_prefix("| ")?.split(" |").next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(what: &str, commit: &str, result: &str) -> Outcome {
        let load = Load { busy: Some(0.934), memory_kib: Some(3 << 20) };
        Outcome {
            what: what.to_owned(),
            commit: commit.to_owned(),
            took: Duration::from_millis(1500),
            load,
            result: result.to_owned(),
            good: true,
        }
    }

    #[test]
    fn page_tells_when_of_what_and_what_came_out() {
        let text = page(
            "",
            2,
            "2026-01-02",
            &[outcome("one", "abc", "all passed"), outcome("two", "abc", "some failed")],
        );
        assert!(text.contains("on 2 processors"), "{text}");
        let rows = "| one | 2026-01-02 | abc | 2 | 93 % | 3.0 GiB | all passed |\n\
                    | two | 2026-01-02 | abc | 2 | 93 % | 3.0 GiB | some failed |\n";
        assert!(text.ends_with(rows), "{text}");
    }

    #[test]
    fn part_that_was_not_done_keeps_its_row() {
        let first =
            page("", 2, "2026-01-02", &[outcome("one", "abc", "good"), outcome("two", "abc", "good")]);
        let second = page(&first, 2, "2026-01-03", &[outcome("two", "def", "bad")]);
        assert!(
            second.contains("| one | 2026-01-02 | abc |") && second.contains("| two | 2026-01-03 | def |")
        );
        assert_eq!(second.matches("| two |").count(), 1, "{second}");
        assert_eq!(second.matches("| what |").count(), 1, "{second}");
    }
}
