//! Steps of a lifecycle as a person sees them: a line a step with its duration and a bar.

use std::io::{IsTerminal, Write};

use api::types::{Moved, Outcome, Progress, Round, Step};

/// Shows steps on standard error as they come.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Whether the line of the running step can be written over.
    live: bool,
    /// Sum of the durations so far, in milliseconds.
    total: f64,
}

/// Milliseconds that one cell of the bar stands for.
const CELL: f64 = 100.0;
/// The longest bar, in cells.
const WIDEST: f64 = 40.0;

impl Timeline {
    /// Starts an empty timeline.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { live: std::io::stderr().is_terminal(), total: 0.0 }
    }

    /// Shows what a reply tells.
    pub(crate) fn follow(&mut self, progress: &Progress) {
        if let Some(step) = &progress.step {
            self.show(step);
        }
        if let Some(moved) = &progress.moved {
            self.moved(moved);
        }
        if let Some(round) = &progress.round {
            self.round(round);
        }
        if let Some(millis) = progress.stood_still_ms {
            eprintln!("  the guest stood still for {}", seconds(millis));
        }
        if let Some(warning) = &progress.warning {
            eprintln!("warning: {warning}");
        }
    }

    /// How far the running step is, on its line.
    fn moved(&self, moved: &Moved) {
        if !self.live || moved.total == 0 {
            return;
        }
        let mut err = std::io::stderr().lock();
        let percent = u128::from(moved.done.min(moved.total)) * 100 / u128::from(moved.total);
        let line = format!("… {} of {} MiB, {percent} %", mib(moved.done), mib(moved.total));
        let _ = write!(err, "\r\x1b[K{}", cut(&line, width()));
        let _ = err.flush();
    }

    /// The round that begins, on the running step's line.
    fn round(&self, round: &Round) {
        let mut err = std::io::stderr().lock();
        let _ = if self.live {
            write!(err, "\r\x1b[K{}", cut(&format!("… {}", describe(round)), width()))
        } else {
            writeln!(err, "  {}", describe(round))
        };
        let _ = err.flush();
    }

    fn show(&mut self, step: &Step) {
        let mut err = std::io::stderr().lock();
        let line = self.line(step);
        // A terminal that went away must not end the lifecycle.
        let _ = match (step.outcome, self.live) {
            (Outcome::Started, true) => write!(err, "\r\x1b[K{}", cut(&line, width())),
            (Outcome::Started, false) => Ok(()),
            (_, true) => writeln!(err, "\r\x1b[K{line}"),
            (_, false) => writeln!(err, "{line}"),
        };
        let _ = err.flush();
    }

    fn line(&mut self, step: &Step) -> String {
        let mark = match step.outcome {
            Outcome::Started => "…",
            Outcome::Done => "✓",
            Outcome::Failed => "✗",
            Outcome::Undone => "↶",
        };
        let head = format!("{mark} {:>2}/{:<2} {:<34}", step.index + 1, step.count, step.name);
        let Some(millis) = step.millis else { return head.trim_end().to_owned() };
        let at = self.total;
        self.total += millis;
        let cells = (millis / CELL).ceil().clamp(0.0, WIDEST);
        // `cells` is at most WIDEST.
        let bar: String = std::iter::successors(Some(1.0), |n| Some(n + 1.0))
            .take_while(|&n| n <= cells)
            .map(|_| '▇')
            .collect();
        format!("{head} {:>8.2} s  at {:>6.2} s  {bar}", millis / 1000.0, at / 1000.0).trim_end().to_owned()
    }
}

/// How many columns the terminal has.
fn width() -> usize {
    ratatui::crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns))
}

/// What of a line fits before the last column: one that wraps cannot be written over.
fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns.saturating_sub(1).max(1)).collect()
}

/// Milliseconds as people read them.
pub(crate) fn seconds(millis: u64) -> String {
    format!("{}.{:02} s", millis / 1000, millis % 1000 / 10)
}

fn describe(round: &Round) -> String {
    let mut text = format!("round {}: {} MiB to send", round.number, mib(round.dirty));
    if round.rate > 0 {
        text += &format!(", {} MiB/s", mib(round.rate));
    }
    if let Some(millis) = round.downtime_ms {
        text += &format!(", expected downtime {:.2} s", millis / 1000.0);
    }
    text
}

/// Pages of 4 KiB as MiB.
const fn mib(pages: u64) -> u64 {
    pages / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_is_written_over_fits_on_the_terminal() {
        assert_eq!(cut("… 3/13 make the guest's domain", 20), "… 3/13 make the gue");
        assert_eq!((cut("short", 20), cut("short", 0)), ("short".to_owned(), "s".to_owned()));
    }

    #[test]
    fn round_is_described_as_far_as_it_is_known() {
        let first = Round { number: 0, dirty: 65_536, rate: 0, downtime_ms: None };
        assert_eq!(describe(&first), "round 0: 256 MiB to send");
        let next = Round { number: 1, dirty: 2560, rate: 25_600, downtime_ms: Some(100.4) };
        assert_eq!(describe(&next), "round 1: 10 MiB to send, 100 MiB/s, expected downtime 0.10 s");
    }

    #[test]
    fn finished_steps_add_up() {
        let mut timeline = Timeline { live: false, total: 0.0 };
        let step = |name: &str, millis| Step {
            lifecycle: "create".into(),
            index: 0,
            count: 2,
            id: name.replace(' ', "-"),
            name: name.into(),
            outcome: Outcome::Done,
            millis,
        };
        assert_eq!(
            timeline.line(&step("build guest", Some(250.0))),
            "✓  1/2  build guest                            0.25 s  at   0.00 s  ▇▇▇"
        );
        assert!(timeline.line(&step("unpause", Some(1.0))).contains("at   0.25 s"));
    }
}
