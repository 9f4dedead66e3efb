//! Runs the conformance cases against the xenstored of this host; needs the rights of domain 0's root.
//!
//! `xenstore-conformance [SOCKET OR DEVICE]`: without it, the usual place. Cases that need the rights of another domain are
//! skipped and said. `xenstore-conformance --guest [DEVICE]` runs the cases for the inside of an unprivileged domain instead.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use xen_types::DomId;
use xenstore::testing::{Case, Outcome, all_cases, guest_cases};
use xenstore::{Connection, Request, Store, StoreError, Xenstore, XsPath};

fn open(place: Option<&str>) -> Result<Xenstore, StoreError> {
    place.map_or_else(Xenstore::open, |place| Xenstore::open_path(Path::new(place)))
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let as_guest = arguments.first().is_some_and(|argument| argument == "--guest");
    if as_guest {
        arguments.remove(0);
    }
    let place = arguments.first().map(String::as_str);
    if let Err(error) = open(place) {
        eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        return ExitCode::FAILURE;
    }
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
    if as_guest {
        for case in guest_cases() {
            // What a case leaves open ends with its connection.
            let outcome = match open(place) {
                Ok(store) => case.run_as_guest(&store),
                Err(error) => Outcome::Failed(error.to_string()),
            };
            say(case, outcome);
        }
    } else {
        all_cases().for_each(|case| say(case, case.run(&connect)));
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
