//! Figures of a bench: medians, ratios, a table for people and JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// All that a bench found.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    bench: &'static str,
    figures: Vec<Figure>,
    ratios: Vec<Ratio>,
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
}

/// Something to reach: at most `at_most`. `over` is what to divide by, if anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) figure: &'static str,
    pub(crate) over: Option<&'static str>,
    pub(crate) at_most: f64,
}

/// A line of a script's output that carries a figure begins so: `@ ID VALUE UNIT`.
const MARK: &str = "@ ";

impl Results {
    /// Reads the figures out of a script's output; several of one name become their median.
    pub(crate) fn read(bench: &'static str, output: &str, goals: &[Goal]) -> Self {
        let mut samples: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for line in output.lines().filter_map(|line| line.strip_prefix(MARK)) {
            let mut words = line.split_whitespace();
            if let (Some(id), Some(Ok(value)), Some(unit)) =
                (words.next(), words.next().map(str::parse::<f64>), words.next())
            {
                samples.entry((id.to_owned(), unit.to_owned())).or_default().push(value);
            }
        }
        let figures: Vec<Figure> = samples
            .into_iter()
            .map(|((id, unit), values)| Figure { id, value: median(values), unit })
            .collect();
        let value = |id: &str| figures.iter().find(|figure| figure.id == id).map(|figure| figure.value);
        let ratios = goals
            .iter()
            .filter_map(|goal| {
                let (id, value) = match goal.over {
                    Some(over) => (format!("{}/{over}", goal.figure), value(goal.figure)? / value(over)?),
                    None => (goal.figure.to_owned(), value(goal.figure)?),
                };
                Some(Ratio { id, value, goal: goal.at_most, met: value <= goal.at_most })
            })
            .collect();
        Self { bench, figures, ratios }
    }

    /// Whether a goal has no figure to be judged by, or is not met.
    pub(crate) fn falls_short(&self, goals: &[Goal]) -> bool {
        self.ratios.len() < goals.len() || self.ratios.iter().any(|ratio| !ratio.met)
    }

    /// One line a figure, then one a goal.
    pub(crate) fn table(&self) -> String {
        let width =
            self.figures.iter().map(|figure| figure.id.len()).chain(self.ratios.iter().map(|r| r.id.len()));
        let width = width.max().unwrap_or(0);
        let mut text = String::new();
        // Writing into a string does not fail.
        for Figure { id, value, unit } in &self.figures {
            let _ = writeln!(text, "{id:<width$}  {value:>9.2} {unit}");
        }
        for Ratio { id, value, goal, met } in &self.ratios {
            let mark = if *met { "met" } else { "NOT met" };
            let _ = writeln!(text, "{id:<width$}  {value:>9.2} (goal: at most {goal}, {mark})");
        }
        text
    }
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

    const GOALS: [Goal; 2] = [
        Goal { figure: "create.ours", over: Some("create.xl"), at_most: 0.5 },
        Goal { figure: "memory.ours", over: None, at_most: 2.0 },
    ];

    #[test]
    fn medians_and_ratios_come_out_of_the_output() {
        let output = "noise\n@ create.xl 40 s\n@ create.ours 9 s\n@ create.ours 30 s\n@ create.ours 10 s\n";
        let results = Results::read("create", output, &GOALS);
        assert_eq!(results.figures.len(), 2);
        assert_eq!(results.ratios.len(), 1);
        assert!(results.ratios[0].met && (results.ratios[0].value - 0.25).abs() < 1e-9);
        assert!(results.falls_short(&GOALS));
        let json = serde_json::to_value(&results).unwrap();
        assert_eq!(json["ratios"][0]["id"], "create.ours/create.xl");
        assert_eq!(json["figures"][0]["unit"], "s");
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
