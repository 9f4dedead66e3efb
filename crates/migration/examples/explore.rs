//! Explores the hand-over: `cargo run --release -p migration --features testing --example explore -- [PLAN [FAULTS]]`.
//!
//! PLAN is `one`, `local`, `off`, `again`, `back`, `on`, `mutants` or the name of a mutant; FAULTS is their largest
//! number, 255 for no limit.

use std::time::Instant;

use migration::Mutation;
use migration::model::explore::{Limits, explore};
use migration::model::world::{Plan, UNLIMITED};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "one".to_owned());
    let faults = arguments.next().and_then(|faults| faults.parse().ok()).unwrap_or(UNLIMITED);
    let limits = Limits { states: 60_000_000, progress: true, receiver_off: what == "off" };
    match what.as_str() {
        "one" | "off" => show(&what, &Plan::one(faults), limits),
        "local" => show(&what, &Plan { local: true, ..Plan::one(faults) }, limits),
        "again" => show(&what, &Plan::again(faults), limits),
        "back" => show(&what, &Plan::back(faults), limits),
        "on" => show(&what, &Plan::on(faults), limits),
        name => {
            for mutation in Mutation::ALL {
                let label = format!("{mutation:?}");
                if name == "mutants" || name == label {
                    let plan = if *mutation == Mutation::BeginBeforeDone {
                        Plan::again(faults)
                    } else {
                        Plan::one(faults)
                    };
                    show(
                        &label,
                        &Plan { broken: Some(*mutation), ..plan },
                        Limits { progress: false, ..limits },
                    );
                }
            }
        }
    }
}

fn show(name: &str, plan: &Plan, limits: Limits) {
    let begun = Instant::now();
    let report = explore(plan, limits);
    println!(
        "{name}: {} states, {} steps, depth {}, {:.1} s, stuck {}{}; moved, back, forced: {:?}",
        report.states,
        report.steps,
        report.depth,
        begun.elapsed().as_secs_f64(),
        report.stuck,
        if report.cut_off { ", CUT OFF" } else { "" },
        report.seen,
    );
    if let Some((property, way)) = &report.violation {
        println!("  {property}, in {} steps", way.len());
        way.iter().for_each(|label| println!("    {label}"));
    }
    if report.stuck > 0 {
        println!("  stuck after");
        report.stuck_way.iter().for_each(|label| println!("    {label}"));
    }
}
