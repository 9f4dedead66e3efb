//! End-to-end cases that run in the dom0 of the embedded host: real Xen, real QEMU in real stubdomains.
//!
//! `vm-tests list` names the cases, `vm-tests run [WORD…]` runs those whose name has one of the words, one after the
//! other, prints a line a case and at last `N passed, N failed`. `vm-tests measure …` prints figures. `vm-tests before-reboot` and
//! `vm-tests after-reboot` are the two halves of the trial of a host that boots again. Each case finds dom0 empty of
//! guests, and must leave it so: domains, xenstore, loop devices, bridge ports, state files and free memory are compared.
#![forbid(unsafe_code)]

mod cases;
mod harness;
mod measure;
mod reboot;

use std::process::ExitCode;
use std::time::Instant;

use cases::Case;
use clap::Parser;
use harness::clean::{self, Host};
use harness::emulator::Mark;
use harness::evidence::Logs;

/// Runs end-to-end cases in a Xen dom0 that has no guests.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to do: list or run, measure, or a half of the trial of a reboot.
    #[arg(value_parser = ["list", "run", "measure", "before-reboot", "after-reboot"])]
    what: String,
    /// How often to measure.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Only cases whose name has one of these words.
    words: Vec<String>,
}

/// How often a case is run again whose guest was broken by the emulator.
const AGAIN: u32 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.what.as_str() {
        "measure" => return ended(measure::main(&arguments.words, arguments.runs)),
        "before-reboot" => return ended(reboot::before()),
        "after-reboot" => return ended(reboot::after()),
        _ => {}
    }
    let chosen = cases::all().into_iter().filter(|case| {
        arguments.words.is_empty() || arguments.words.iter().any(|word| case.name.contains(word.as_str()))
    });
    if arguments.what == "list" {
        chosen.for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let mut passed = 0_u32;
    let mut failures = Vec::new();
    let mut again = 0_u32;
    for case in chosen {
        println!("run  {}", case.name);
        let start = Instant::now();
        let logs = Logs::look();
        let mut mark = Mark::now();
        let mut result = run(&case);
        for _ in 0..AGAIN {
            if result.is_ok() || case.is_the_end {
                break;
            }
            let Some(word) = mark.broken_guest() else { break };
            println!("again {}, because the emulator broke its guest: {word}", case.name);
            again += 1;
            mark = Mark::now();
            result = run(&case);
        }
        let took = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok   {} ({took:.1} s)", case.name);
            }
            Err(error) => {
                let failure = format!("FAIL {} ({took:.1} s): {error:#}\n{}", case.name, logs.since());
                print!("{failure}");
                failures.push(failure);
            }
        }
    }
    // Again at the end, where whoever looks at a long run looks first.
    failures.iter().for_each(|failure| print!("{failure}"));
    if again > 0 {
        println!("{again} run again, because the emulator had broken a guest");
    }
    println!("{passed} passed, {} failed", failures.len());
    if failures.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The status of what is no case.
fn ended(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case, and compares dom0 before and after.
fn run(case: &Case) -> anyhow::Result<()> {
    let before = Host::look()?;
    let outcome = (case.run)();
    if case.is_the_end {
        return outcome;
    }
    let left = clean::compare(&before);
    // What a failed case leaves must not make the next one fail.
    let swept = clean::sweep();
    match (outcome, left.and(swept)) {
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}; before that"))),
        (outcome, after) => outcome.and(after),
    }
}
