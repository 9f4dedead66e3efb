use super::explore::{Limits, Report, explore};
use super::world::Plan;
use crate::Mutation;

const LIMITS: Limits = Limits { states: 3_000_000, progress: true, receiver_off: false };

/// Everything holds, and from everywhere a settled world can be reached.
fn holds(plan: &Plan, limits: Limits) -> Report {
    let report = explore(plan, limits);
    assert!(report.violation.is_none(), "{:#?}", report.violation);
    assert_eq!(report.stuck, 0, "{:#?}", report.stuck_way);
    assert!(!report.cut_off);
    report
}

#[test]
fn one_migration_holds_under_three_faults() {
    let report = holds(&Plan::one(3), LIMITS);
    assert_eq!(report.seen, [true; 3], "moved, came back after GO, started anew");
}

#[test]
fn a_migration_within_one_host_holds_under_three_faults() {
    holds(&Plan { local: true, ..Plan::one(3) }, LIMITS);
}

#[test]
fn the_operator_can_always_decide_when_the_receiver_stays_off() {
    holds(&Plan::one(2), Limits { receiver_off: true, ..LIMITS });
}

#[test]
fn two_migrations_hold_under_one_fault() {
    holds(&Plan::again(1), LIMITS);
    holds(&Plan::back(1), LIMITS);
    holds(&Plan::on(1), LIMITS);
}

#[test]
fn each_broken_rule_is_noticed() {
    for mutation in Mutation::ALL {
        let plan = if *mutation == Mutation::BeginBeforeDone { Plan::again(0) } else { Plan::one(0) };
        let found = (1..=2).find_map(|faults| {
            let plan = Plan { broken: Some(*mutation), faults, ..plan.clone() };
            explore(&plan, Limits { progress: false, ..LIMITS }).violation
        });
        assert!(found.is_some(), "{mutation:?} is not noticed");
    }
}
