//! Figures of a bench: medians, ratios, a table for people and JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use vm_report::{Figure as Sample, Omission};

/// All that a bench found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    bench: &'static str,
    figures: Vec<Figure>,
    ratios: Vec<Ratio>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<Omission>,
}

/// The median of one measurement.
#[derive(Debug, Serialize)]
struct Figure {
    id: String,
    value: f64,
    unit: String,
}

/// A figure, or one figure divided by another, against what it has to reach.
#[derive(Debug, Serialize)]
struct Ratio {
    id: String,
    value: f64,
    goal: f64,
    met: bool,
    /// The goal is not met, but no more is possible: that limit, divided by ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<f64>,
}

/// Something to reach: at most `at_most`. `over` is what to divide by, if anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) figure: &'static str,
    pub(crate) over: Option<&'static str>,
    pub(crate) at_most: f64,
    /// What is reached in its stead: a figure that is the limit of `over`, and by how much it may be above that.
    pub(crate) limit: Option<(&'static str, f64)>,
}

impl Goal {
    /// A figure is at most this.
    pub(crate) const fn at_most(figure: &'static str, at_most: f64) -> Self {
        Self { figure, over: None, at_most, limit: None }
    }

    /// A figure is at most so much of another.
    pub(crate) const fn ratio(figure: &'static str, over: &'static str, at_most: f64) -> Self {
        Self { figure, over: Some(over), at_most, limit: None }
    }
}

impl Results {
    /// Judges the figures; several of one name become their median.
    pub(crate) fn of(bench: &'static str, figures: Vec<Sample>, goals: &[Goal]) -> Self {
        let mut samples: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for Sample { figure, value, unit } in figures {
            samples.entry((figure, unit)).or_default().push(value);
        }
        let figures: Vec<Figure> = samples
            .into_iter()
            .map(|((id, unit), values)| Figure { id, value: median(values), unit })
            .collect();
        let found = |id: &str| figures.iter().find(|figure| figure.id == id).map(|figure| figure.value);
        let ratios = goals
            .iter()
            .filter_map(|goal| {
                let (id, value) = match goal.over {
                    Some(over) => (format!("{}/{over}", goal.figure), found(goal.figure)? / found(over)?),
                    None => (goal.figure.to_owned(), found(goal.figure)?),
                };
                let limit = goal.limit.and_then(|(limit, most)| {
                    Some(found(limit)? / found(goal.over?)?).filter(|above| *above <= most)
                });
                let reached = value <= goal.at_most;
                let limit = limit.filter(|_| !reached);
                Some(Ratio { id, value, goal: goal.at_most, met: reached || limit.is_some(), limit })
            })
            .collect();
        Self { bench, figures, ratios, omitted: Vec::new() }
    }

    /// Says what could not be measured.
    pub(crate) fn without(self, omitted: Vec<Omission>) -> Self {
        Self { omitted, ..self }
    }

    /// Whether a goal has no figure to be judged by, or is not met.
    pub(crate) fn falls_short(&self, goals: &[Goal]) -> bool {
        self.ratios.len() < goals.len() || self.ratios.iter().any(|ratio| !ratio.met)
    }

    /// One line a figure, then one a goal, then what is missing.
    pub(crate) fn table(&self) -> String {
        let width =
            self.figures.iter().map(|figure| figure.id.len()).chain(self.ratios.iter().map(|r| r.id.len()));
        let width = width.max().unwrap_or(0);
        let mut text = String::new();
        // Writing into a string does not fail.
        for Figure { id, value, unit } in &self.figures {
            let _ = writeln!(text, "{id:<width$}  {value:>9.2} {unit}");
        }
        for Ratio { id, value, goal, met, limit } in &self.ratios {
            let mark = match limit {
                Some(above) => format!("not met; the limit is {above:.2} times ours"),
                None if *met => "met".to_owned(),
                None => "NOT met".to_owned(),
            };
            let _ = writeln!(text, "{id:<width$}  {value:>9.2} (goal: at most {goal}, {mark})");
        }
        for Omission { omitted, why } in &self.omitted {
            let _ = writeln!(text, "{omitted} is missing: {}", why.replace('\n', "\n    "));
        }
        text
    }
}

/// The figures in what `vm-tests measure` has printed, in which other lines are for people.
pub(crate) fn figures(output: &str) -> Vec<Sample> {
    output.lines().filter_map(Sample::parse).collect()
}

/// What could not be measured, in the same; once each, however many runs there were.
pub(crate) fn omissions(output: &str) -> Vec<Omission> {
    let all = output.lines().filter_map(Omission::parse);
    let by_name: BTreeMap<String, Omission> = all.map(|one| (one.omitted.clone(), one)).collect();
    by_name.into_values().collect()
}

/// The middle value; of an even number, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOALS: [Goal; 2] =
        [Goal::ratio("create.ours", "create.xl", 0.5), Goal::at_most("memory.ours", 2.0)];

    /// What a program in dom0 prints.
    const OUTPUT: &str = r#"-- run 1 of 3
{"figure":"create.xl","value":40.0,"unit":"s"}
{"figure":"create.ours","value":9.0,"unit":"s"}
FAILED: xl: no byte from the guest
{"figure":"create.ours","value":30.0,"unit":"s"}
{"figure":"create.ours","value":10,"unit":"s"}
"#;

    #[test]
    fn medians_and_ratios_come_out_of_the_output() {
        let results = Results::of("create", figures(OUTPUT), &GOALS);
        assert_eq!(results.figures.len(), 2);
        assert_eq!(results.ratios.len(), 1);
        assert!(results.ratios[0].met && (results.ratios[0].value - 0.25).abs() < 1e-9);
        assert!(results.falls_short(&GOALS));
        let json = serde_json::to_value(&results).unwrap();
        assert_eq!(json["ratios"][0]["id"], "create.ours/create.xl");
        assert_eq!(json["figures"][0]["unit"], "s");
    }

    /// What other programs read.
    #[test]
    fn document_has_the_figures_under_their_names() {
        let results = Results::of("create", figures(OUTPUT), &GOALS);
        let document: serde_json::Value =
            serde_json::from_str(&serde_json::to_string_pretty(&results).unwrap()).unwrap();
        assert_eq!(
            document,
            serde_json::json!({
                "bench": "create",
                "figures": [
                    {"id": "create.ours", "value": 10.0, "unit": "s"},
                    {"id": "create.xl", "value": 40.0, "unit": "s"},
                ],
                "ratios": [{"id": "create.ours/create.xl", "value": 0.25, "goal": 0.5, "met": true}],
            })
        );
    }

    #[test]
    fn omission_is_shown_and_is_no_failure_of_its_own() {
        let line = r#"{"omitted":"256.xl_stub","why":"xl: no\nand more"}"#;
        let twice = format!("{line}\n{line}\n");
        let results = Results::of("migrate", figures(&twice), &[]).without(omissions(&twice));
        assert!(!results.falls_short(&[]));
        assert_eq!(results.table(), "256.xl_stub is missing: xl: no\n    and more\n");
        assert_eq!(serde_json::to_value(&results).unwrap()["omitted"][0]["omitted"], "256.xl_stub");
    }

    #[test]
    fn limit_stands_for_a_goal_beyond_it() {
        let goal =
            Goal { limit: Some(("rate.limit", 1.25)), ..Goal::ratio("rate.theirs", "rate.ours", 0.05) };
        let check = |theirs: f64, limit: f64, met: bool, shown: bool| {
            let rates = [("rate.theirs", theirs), ("rate.ours", 10.0), ("rate.limit", limit)];
            let rates = rates.map(|(id, value)| Sample::new(id, value, "MB/s"));
            let results = Results::of("rate", rates.to_vec(), &[goal]);
            assert_eq!((results.ratios[0].met, results.ratios[0].limit.is_some()), (met, shown));
            assert_eq!(results.falls_short(&[goal]), !met);
        };
        check(0.4, 12.0, true, false);
        check(4.0, 12.0, true, true);
        check(4.0, 13.0, false, false);
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
