//! `cargo xtask test --long`: what takes hours. Its last results stand in `docs/status.md`.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::{suite, workspace};

/// Whole rounds of the end-to-end suite, one after the other.
const ROUNDS: usize = 5;
/// Random inputs of each property test; usually it is 256.
const PROPERTY_CASES: &str = "4096";
/// Where the results are kept.
const STATUS: &str = "docs/status.md";

/// What one part gave.
struct Part {
    what: String,
    took: Duration,
    result: String,
    good: bool,
}

/// Runs all of it, whatever fails, and writes the results down.
pub(crate) fn main(suite: &suite::Options<'_>) -> Result<ExitCode> {
    let mut parts = vec![properties()?];
    for round in 1..=ROUNDS {
        eprintln!("== round {round} of {ROUNDS}");
        let suite::Summary { took, cases, failed } = suite::all(suite)?;
        let result = format!("{} of {cases} passed", cases - failed);
        parts.push(Part {
            what: format!("end-to-end suite, round {round}"),
            took,
            result,
            good: failed == 0,
        });
    }
    let path = workspace::root().join(STATUS);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let text = status(&said("date", &["--utc", "+%Y-%m-%d"])?, &commit()?, cores, &parts);
    std::fs::write(&path, &text).with_context(|| format!("Cannot write {}", path.display()))?;
    eprint!("{text}");
    Ok(if parts.iter().all(|part| part.good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every test with many random inputs.
fn properties() -> Result<Part> {
    let begun = Instant::now();
    let status = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--locked", "--quiet", "--no-fail-fast"])
        .env("PROPTEST_CASES", PROPERTY_CASES)
        .current_dir(workspace::root())
        .status()
        .context("Cannot start cargo")?;
    let result = if status.success() { "all passed" } else { "some failed" }.to_owned();
    let what = format!("unit and property tests, {PROPERTY_CASES} random inputs each");
    Ok(Part { what, took: begun.elapsed(), result, good: status.success() })
}

/// The commit, and whether something is changed since.
fn commit() -> Result<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if changed { format!("{commit}, with changes since") } else { commit })
}

/// What a program says, without spaces around it.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(workspace::root()).output();
    let output = output.with_context(|| format!("Cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {} failed ({})", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The page.
fn status(date: &str, commit: &str, cores: usize, parts: &[Part]) -> String {
    let rows: String = parts
        .iter()
        .map(|part| format!("| {} | {:.0} | {} |\n", part.what, part.took.as_secs_f64(), part.result))
        .collect();
    format!(
        "# The long tests\n\nThe latest results of `cargo xtask test --long`, which writes this page: on {date}, commit {commit}, on \
         {cores} processors.\n\n| what | seconds | result |\n|---|---|---|\n{rows}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tells_when_of_what_and_what_came_out() {
        let part = |what: &str, good| Part {
            what: what.to_owned(),
            took: Duration::from_millis(1500),
            result: if good { "all passed" } else { "some failed" }.to_owned(),
            good,
        };
        let text = status("2026-01-02", "abc", 2, &[part("one", true), part("two", false)]);
        assert!(text.contains("on 2026-01-02, commit abc, on 2 processors"), "{text}");
        assert!(text.ends_with("| one | 2 | all passed |\n| two | 2 | some failed |\n"), "{text}");
    }
}
