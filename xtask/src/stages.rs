//! The stages of a test run, each with the time that it may take.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use testhost::TimeScale;

/// All stages together on two processors, when nothing has to be compiled from others' sources.
const ALL: Duration = Duration::from_secs(25 * 60);
/// The same from nothing.
const ALL_FROM_NOTHING: Duration = Duration::from_secs(45 * 60);
/// A stage fails when it takes so many times its budget.
const TOO_LONG: f64 = 1.5;
/// A compiling stage that takes longer has compiled something.
const COMPILED: Duration = Duration::from_secs(60);

/// What a stage may take on two processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// So long.
    Time(Duration),
    /// It compiles others' sources, unless they are in the cache: a part of what the whole run may take from nothing.
    Compiling,
}

impl Budget {
    /// So many minutes.
    pub(crate) const fn minutes(minutes: u64) -> Self {
        Self::Time(Duration::from_secs(minutes * 60))
    }
}

/// A stage that has ended.
#[derive(Debug)]
struct Stage {
    name: &'static str,
    budget: Budget,
    took: Duration,
}

/// The stages so far.
#[derive(Debug)]
pub(crate) struct Stages {
    started: Instant,
    scale: TimeScale,
    done: Vec<Stage>,
}

impl Stages {
    /// Begins. Budgets are stretched as all deadlines are.
    pub(crate) fn begin() -> Result<Self> {
        Ok(Self { started: Instant::now(), scale: TimeScale::from_env()?, done: Vec::new() })
    }

    /// Runs a stage to its end.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        budget: Budget,
        what: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        eprintln!("== {name}");
        let begun = Instant::now();
        what().with_context(|| format!("The stage \"{name}\" failed"))?;
        let took = begun.elapsed();
        eprintln!("== {name}: {:.0} s", took.as_secs_f64());
        self.done.push(Stage { name, budget, took });
        Ok(())
    }

    /// Tells what each stage took, and again in a few words; fails when one was over its budget by half.
    pub(crate) fn end(self) -> Result<String> {
        let took = self.started.elapsed();
        let (table, over) = verdict(&self.done, took, self.scale);
        eprint!("{table}");
        if let Some(over) = over {
            bail!("{over} exceeded the budget by half or more; OUTRIGGER_TIME_SCALE also extends budgets");
        }
        let stages =
            self.done.iter().map(|stage| format!("{} {:.0} s", stage.name, stage.took.as_secs_f64()));
        Ok(stages.collect::<Vec<_>>().join(", "))
    }
}

/// The table of the stages, and the one that took too long, if any did.
fn verdict(stages: &[Stage], took: Duration, scale: TimeScale) -> (String, Option<&'static str>) {
    let compiled = stages.iter().any(|stage| stage.budget == Budget::Compiling && stage.took > COMPILED);
    // From nothing the first stages compile everything, so that only the whole can be judged.
    let all = ("the whole", if compiled { ALL_FROM_NOTHING } else { ALL }, took);
    let judged = stages.iter().filter_map(|stage| match stage.budget {
        Budget::Time(budget) => Some((stage.name, budget, stage.took)),
        Budget::Compiling => None,
    });
    let (mut table, mut over) = ("==   seconds  budget\n".to_owned(), None);
    for stage in stages.iter().filter(|stage| stage.budget == Budget::Compiling) {
        let _ = writeln!(table, "==   {:7.0}       -  {}", stage.took.as_secs_f64(), stage.name);
    }
    for (name, budget, took) in judged.chain([all]) {
        let budget = scale.of(budget);
        let _ = writeln!(table, "==   {:7.0} {:7.0}  {name}", took.as_secs_f64(), budget.as_secs_f64());
        if over.is_none() && took > budget.mul_f64(TOO_LONG) && (!compiled || name == all.0) {
            over = Some(name);
        }
    }
    (table, over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(minutes: u64, compiling: u64, scale: f64) -> Option<&'static str> {
        let stage =
            |name, budget, minutes: u64| Stage { name, budget, took: Duration::from_secs(minutes * 60) };
        let stages =
            [stage("suite", Budget::minutes(15), minutes), stage("QEMU", Budget::Compiling, compiling)];
        let took = Duration::from_secs((minutes + compiling) * 60);
        verdict(&stages, took, TimeScale::default().times(scale)).1
    }

    #[test]
    fn stage_fails_when_it_is_over_its_budget_by_half() {
        assert_eq!(judge(22, 0, 1.0), None);
        assert_eq!(judge(23, 0, 1.0), Some("suite"));
        assert_eq!(judge(40, 0, 1.0), Some("suite"));
        assert_eq!(judge(40, 0, 2.0), None, "deadlines are stretched");
    }

    #[test]
    fn from_nothing_only_the_whole_is_judged() {
        assert_eq!(judge(40, 20, 1.0), None);
        assert_eq!(judge(50, 20, 1.0), Some("the whole"));
    }
}
