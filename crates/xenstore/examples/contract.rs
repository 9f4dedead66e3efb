//! Runs the contract cases against the xenstored of this host; needs the rights of domain 0's root.
//!
//! `contract [SOCKET OR DEVICE]`: without it, the usual place. Cases that need the rights of another domain are
//! skipped and said.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use xen_types::DomId;
use xenstore::testing::{Outcome, all_cases};
use xenstore::{Connection, Request, Store, StoreError, Xenstore, XsPath};

fn open(place: Option<&str>) -> Result<Xenstore, StoreError> {
    place.map_or_else(Xenstore::open, |place| Xenstore::open_path(Path::new(place)))
}

fn main() -> ExitCode {
    let place = std::env::args().nth(1);
    let place = place.as_deref();
    if let Err(error) = open(place) {
        eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        return ExitCode::FAILURE;
    }
    let connect = |domid| if domid == DomId::DOM0 { open(place).ok() } else { None };
    let mut failed = 0;
    for case in all_cases() {
        match case.run(&connect) {
            Outcome::Passed => println!("pass {}", case.name),
            Outcome::Skipped(why) => println!("skip {}: {why}", case.name),
            Outcome::Failed(why) => {
                failed += 1;
                println!("FAIL {}: {why}", case.name);
            }
        }
    }
    if let Err(error) = measure(place) {
        println!("FAIL measuring: {error}");
        failed += 1;
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long the nodes of one guest take: 150 writes in one transaction.
fn measure(place: Option<&str>) -> Result<(), StoreError> {
    let root = XsPath::new("/outrigger-contract-time")?;
    let requests: Result<Vec<_>, StoreError> = (0..150)
        .map(|n| Ok(Request::write(&root.join(format!("device/{}/key-{}", n / 15, n % 15))?, b"some value")))
        .collect();
    let requests = requests?;
    let store = open(place)?;
    let single = match place {
        Some(place) => Connection::open_path(Path::new(place))?,
        None => Connection::open()?,
    };
    for round in 1..=3 {
        timed(round, "one by one", &store, &root, || {
            store.transaction(|t| requests.iter().try_for_each(|request| t.request(request).map(drop)))
        })?;
        timed(round, "in a batch", &store, &root, || store.transaction(|t| t.request_all(&requests)))?;
        timed(round, "one by one, one thread", &store, &root, || {
            single.transaction(|t| requests.iter().try_for_each(|request| t.request(request).map(drop)))
        })?;
        timed(round, "in a batch, one thread", &store, &root, || {
            single.transaction(|t| t.request_all(&requests))
        })?;
    }
    Ok(())
}

fn timed(
    round: u32,
    name: &str,
    store: &Xenstore,
    root: &XsPath,
    run: impl FnOnce() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let begin = Instant::now();
    run()?;
    println!("time {round} {name}: {:?}", begin.elapsed());
    store.rm(root)
}
