//! Runs the conformance cases against the xenstored of this host; needs the rights of domain 0's root.
//!
//! `xenstore-conformance [--throw-away-host] [--xenstored c|ocaml] [SOCKET OR DEVICE]`: without a place, the usual one.
//! What each of Xen's two programs has to do differs; without `--xenstored` it finds out which it is. Cases that need the
//! rights of another domain are skipped, with the reason. So are cases that change more than the suite's own nodes, unless
//! `--throw-away-host` says that it does not matter what becomes of this host: oxenstored does some of what they ask for,
//! such as removing `/`.
//!
//! `xenstore-conformance --guest [--xenstored c|ocaml] [DEVICE]` runs the cases for the inside of an unprivileged domain instead.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use xen_types::DomId;
use xenstore::testing::{Case, Daemon, Outcome, Subject, all_cases, guest_cases};
use xenstore::{Connection, Request, Store, StoreError, Xenstore, XsPath};

fn open(place: Option<&str>) -> Result<Xenstore, StoreError> {
    place.map_or_else(Xenstore::open, |place| Xenstore::open_path(Path::new(place)))
}

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    as_guest: bool,
    is_throw_away: bool,
    daemon: Option<Daemon>,
    place: Option<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--guest" => arguments.as_guest = true,
                "--xenstored" => arguments.daemon = Some(words.next().unwrap_or_default().parse()?),
                "--throw-away-host" => arguments.is_throw_away = true,
                _ if word.starts_with('-') || arguments.place.is_some() => {
                    return Err(format!("Unexpected argument {word}"));
                }
                _ => arguments.place = Some(word),
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let place = arguments.place.as_deref();
    let found = open(place).and_then(|store| arguments.daemon.map_or_else(|| Daemon::of(&store), Ok));
    let daemon = match found {
        Ok(daemon) => daemon,
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            return ExitCode::FAILURE;
        }
    };
    println!("xenstored: {daemon:?}");
    let connect = |domid| if domid == DomId::DOM0 { open(place).ok() } else { None };
    let mut failed = 0;
    let mut say = |case: &Case, outcome| match outcome {
        Outcome::Passed => println!("pass {}", case.name),
        Outcome::Skipped(why) => println!("skip {}: {why}", case.name),
        Outcome::Failed(why) => {
            failed += 1;
            println!("FAIL {}: {why}", case.name);
        }
    };
    if arguments.as_guest {
        for case in guest_cases() {
            // What a case leaves open ends with its connection.
            let outcome = match open(place) {
                Ok(store) => case.run_as_guest(&store, daemon),
                Err(error) => Outcome::Failed(error.to_string()),
            };
            say(case, outcome);
        }
    } else {
        let subject = Subject { connect: &connect, daemon, is_throw_away: arguments.is_throw_away };
        all_cases().for_each(|case| say(case, case.run(&subject)));
        if let Err(error) = measure(place) {
            println!("FAIL measuring: {error}");
            failed += 1;
        }
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Run<'a> = &'a dyn Fn() -> Result<(), StoreError>;

/// How long the nodes of one guest take: 150 writes in one transaction.
fn measure(place: Option<&str>) -> Result<(), StoreError> {
    let root = XsPath::new("/outrigger-conformance-time")?;
    let requests: Result<Vec<_>, StoreError> = (0..150)
        .map(|n| Ok(Request::write(&root.join(format!("device/{}/key-{}", n / 15, n % 15))?, b"some value")))
        .collect();
    let requests = requests?;
    let store = open(place)?;
    let single = match place {
        Some(place) => Connection::open_path(Path::new(place))?,
        None => Connection::open()?,
    };
    let one_by_one =
        |store: &dyn Store| requests.iter().try_for_each(|request| store.request(request).map(drop));
    let kinds: [(&str, Run<'_>); 4] = [
        ("shared, one by one", &|| store.transaction(|t| one_by_one(t))),
        ("shared, in a batch", &|| store.transaction(|t| t.request_all(&requests))),
        ("one thread, one by one", &|| single.transaction(|t| one_by_one(t))),
        ("one thread, in a batch", &|| single.transaction(|t| t.request_all(&requests))),
    ];
    for (name, run) in kinds {
        let mut times = Vec::new();
        for _ in 0..9 {
            let begin = Instant::now();
            run()?;
            times.push(begin.elapsed());
            store.rm(&root)?;
        }
        times.sort();
        println!("time of 150 writes, {name}: least {:?}, median {:?}", times[0], times[4]);
    }
    Ok(())
}
