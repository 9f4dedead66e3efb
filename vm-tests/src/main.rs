//! End-to-end cases and benchmarks that run in the dom0 of the embedded host: real Xen, real QEMU in real stubdomains.
//!
//! `vm-tests list` names the cases, `vm-tests run [WORD…]` runs those whose name has one of the words, one after the
//! other, prints one line per case and finally `N passed, N failed`. The runner outside wants `list --json` and
//! `run --events NAME…`. `vm-tests prepare-linux` makes the idle Linux guest that some cases start from. `vm-tests
//! measure WHAT` prints a line of JSON for each figure ([`vm_report::Figure`]). `vm-tests before-reboot` and `vm-tests
//! after-reboot` are the two halves of the trial of a host that boots again. Each case finds dom0 as [`harness::clean`] knows it, and must leave it so: domains, xenstore,
//! loop devices, bridge ports, state files and free memory are compared.
#![forbid(unsafe_code)]

mod cases;
mod harness;
mod measure;
mod reboot;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cases::Case;
use clap::{Parser, Subcommand};
use harness::clean::{self, Host};
use harness::evidence::Logs;
use harness::idle;
use harness::relay::Relay;
use vm_report::{CaseInfo, Event, HostState};

/// Runs end-to-end cases in a Xen dom0 that has no guests.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names the cases.
    List {
        /// For the runner.
        #[arg(long)]
        json: bool,
    },
    /// Runs cases.
    Run {
        /// For the runner: exactly the cases of these names, a line of JSON for each begin and end, and no case after
        /// one that failed.
        #[arg(long)]
        events: bool,
        /// Only cases whose name has one of these words.
        words: Vec<String>,
    },
    /// Makes the Linux guest that some cases start from.
    PrepareLinux,
    /// Prints figures.
    Measure {
        /// How often to measure.
        #[arg(long, default_value_t = 1, global = true)]
        runs: u32,
        #[command(subcommand)]
        what: measure::What,
    },
    /// Connects its standard input and output to a migration's receiver on the other host of a pair.
    Relay(Relay),
    /// The first half of the trial of a reboot.
    BeforeReboot,
    /// The second half.
    AfterReboot,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::List { json: true } => {
            let all: Vec<CaseInfo> = cases::all().iter().map(Case::info).collect();
            ended(serde_json::to_string(&all).map(|text| println!("{text}")).map_err(Into::into))
        }
        Command::List { json: false } => {
            cases::all().iter().for_each(|case| println!("{}", case.name));
            ExitCode::SUCCESS
        }
        Command::Run { events: true, words } => for_the_runner(&words),
        Command::Run { events: false, words } => for_people(&words),
        Command::PrepareLinux => ended(idle::prepare()),
        Command::Measure { runs, what } => ended(measure::main(&what, runs)),
        Command::Relay(relay) => ended(relay.run()),
        Command::BeforeReboot => ended(reboot::before()),
        Command::AfterReboot => ended(reboot::after()),
    }
}

/// Runs cases by name, and tells of each as it begins and ends. Its host is not to be trusted after a failure.
fn for_the_runner(names: &[String]) -> ExitCode {
    let all = cases::all();
    if names.is_empty() {
        eprintln!("no case is named");
        return ExitCode::FAILURE;
    }
    for name in names {
        let Some(case) = all.iter().find(|case| case.name == name) else {
            eprintln!("there is no case {name}");
            return ExitCode::FAILURE;
        };
        tell(&Event::Begin { case: name.clone() });
        let start = Instant::now();
        let logs = Logs::look();
        let failure = run(case).err().map(|error| format!("{error:#}\n{}", logs.since()));
        let failed = failure.is_some();
        let seconds = start.elapsed().as_secs_f64();
        tell(&Event::End { case: name.clone(), seconds, failure });
        if failed {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Says something to the runner, on a line of its own whatever a case has printed before.
fn tell(event: &Event) {
    println!("\n{}", event.line());
}

/// Runs cases by words of their names. Those that need the idle Linux guest make it first.
fn for_people(words: &[String]) -> ExitCode {
    let mut passed = 0_u32;
    let mut failures = Vec::new();
    let is_chosen =
        |case: &Case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()));
    let (pairs, chosen): (Vec<Case>, Vec<Case>) =
        cases::all().into_iter().filter(is_chosen).partition(|case| case.host == HostState::Pair);
    pairs.iter().for_each(|case| println!("left out: {} needs a pair of hosts", case.name));
    let (last, first): (Vec<Case>, Vec<Case>) = chosen.into_iter().partition(|case| case.is_the_end);
    for case in first.into_iter().chain(last) {
        println!("run  {}", case.name);
        let start = Instant::now();
        let logs = Logs::look();
        let prepared = if case.host == HostState::LinuxGuest { idle::prepare() } else { Ok(()) };
        let result = prepared.and_then(|()| run(&case));
        if !case.is_the_end && result.is_err() {
            // What a failed case leaves must not make the next one fail.
            let _ = clean::sweep();
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
    println!("{passed} passed, {} failed", failures.len());
    if failures.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The status of what is no case.
fn ended(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case, and compares dom0 before and after. The idle Linux guest is destroyed after it.
fn run(case: &Case) -> Result<()> {
    let before = match case.host {
        HostState::Bare => {
            let before = clean::nodes()?;
            return (case.run)().and_then(|()| clean::compare_nodes(&before));
        }
        HostState::Daemons | HostState::Tools | HostState::Pair => Host::look()?,
        HostState::LinuxGuest => idle::host_before()?,
    };
    let outcome = (case.run)();
    if case.is_the_end {
        return outcome;
    }
    let gone = if case.host == HostState::LinuxGuest { idle::destroy() } else { Ok(()) };
    match (outcome, gone.and_then(|()| clean::compare(&before))) {
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}; before that"))),
        (outcome, after) => outcome.and(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `cargo xtask bench` calls it.
    #[test]
    fn what_to_measure_comes_before_how_often() {
        for what in ["console", "create", "emulator", "image", "migrate", "qmp", "save"] {
            let arguments = Arguments::try_parse_from(["vm-tests", "measure", what, "--runs", "3"]).unwrap();
            assert!(matches!(arguments.command, Command::Measure { runs: 3, .. }), "{what}");
        }
        let parts = ["vm-tests", "measure", "--runs", "2", "console", "file_one", "idle"];
        let Command::Measure { runs: 2, what: measure::What::Console { parts } } =
            Arguments::try_parse_from(parts).unwrap().command
        else {
            panic!("the parts of a bench are not taken")
        };
        assert_eq!(parts, ["file_one", "idle"]);
        Arguments::try_parse_from(["vm-tests", "measure", "switch", "write"]).unwrap();
    }
}
