//! Cases that every xenstored passes: the in-process [`Server`](crate::server::Server) in this crate's tests, and the
//! real one in the control domain of a Xen host (`examples/conformance.rs`). Xen has two, which differ ([`Daemon`]): a
//! case about such a difference asserts what each of them does.
//!
//! The cases work below `/outrigger-conformance` and leave nothing there. Those that reach further
//! ([`Reach::Host`]) run only on a host that may be destroyed: a xenstored that fails one of them may have lost its
//! whole store.

use core::fmt;
use std::time::{Duration, Instant};

use xen_types::DomId;

use crate::wire::ErrorCode;
use crate::{Permissions, Request, Store, StoreError, Watch, Xenstore, XsPath};

mod daemon;
mod domains;
mod guest;
mod nodes;
mod transactions;
mod watches;

pub use daemon::Daemon;

/// How long an event that has to come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it has to.
    Passed,
    /// It was not run, for this reason.
    Skipped(&'static str),
    /// Otherwise.
    Failed(String),
}

/// What a case may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nodes below `/outrigger-conformance`, which nobody else uses.
    OwnNodes,
    /// Other nodes too, connections of domains, or the permissions of special events.
    Host,
}

/// What the suite runs against.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Makes a connection with the rights of a domain, or nothing when it cannot for this one.
    ///
    /// Domains other than 0 are ones that do not exist otherwise.
    pub connect: &'a dyn Fn(DomId) -> Option<Xenstore>,
    /// Which xenstored it is.
    pub daemon: Daemon,
    /// Whether the host may be destroyed. If not, cases with [`Reach::Host`] are skipped.
    pub is_throw_away: bool,
}

impl fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { daemon, is_throw_away, .. } = self;
        f.debug_struct("Subject")
            .field("daemon", daemon)
            .field("is_throw_away", is_throw_away)
            .finish_non_exhaustive()
    }
}

/// Why a case with [`Reach::Host`] is skipped.
const NEEDS_THROW_AWAY_HOST: &str =
    "it changes more than its own nodes, and runs only with --throw-away-host";

/// One case of the conformance suite.
pub struct Case {
    /// Its name: what holds.
    pub name: &'static str,
    /// What it may change.
    pub reach: Reach,
    run: fn(&Bench<'_>) -> Result<(), Trouble>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All cases.
pub fn all_cases() -> impl Iterator<Item = &'static Case> {
    [nodes::CASES, transactions::CASES, watches::CASES, domains::CASES].into_iter().flatten()
}

/// Cases of the client in an unprivileged domain, on its own connection and below its `data` directory.
///
/// The domain was made by libxl or alike: it may read its own directory and write `data`.
pub fn guest_cases() -> impl Iterator<Item = &'static Case> {
    guest::CASES.iter()
}

impl Case {
    /// Runs a case of [`guest_cases`] in a domain. Fails, and changes nothing, with the rights of domain 0.
    pub fn run_as_guest(&self, store: &Xenstore, daemon: Daemon) -> Outcome {
        let outcome = (|| {
            // Requests that have to be refused would be carried out, such as that to release the caller.
            refused("rights of domain 0", store.is_introduced(DomId::DOM0), &ErrorCode::Access)?;
            let subject = Subject { connect: &|_| None, daemon, is_throw_away: false };
            (self.run)(&Bench { subject, dom0: store.clone(), root: XsPath::root() })
        })();
        Outcome::of(outcome)
    }

    /// Runs the case on nodes of its own, or skips it where it could do harm.
    pub fn run(&self, subject: &Subject<'_>) -> Outcome {
        let outcome = (|| {
            if self.reach == Reach::Host && !subject.is_throw_away {
                return Err(Trouble::Skip(NEEDS_THROW_AWAY_HOST));
            }
            let dom0 = (subject.connect)(DomId::DOM0).ok_or(Trouble::Skip("domain 0 cannot be connected"))?;
            let root = XsPath::new("/outrigger-conformance").map_err(StoreError::from)?;
            let bench = Bench { subject: *subject, dom0, root };
            bench.dom0.rm(&bench.root)?;
            bench.dom0.mkdir(&bench.root)?;
            bench.dom0.set_perms(&bench.root, &Permissions::owned_by(DomId::DOM0))?;
            let outcome = (self.run)(&bench);
            bench.dom0.rm(&bench.root)?;
            outcome
        })();
        Outcome::of(outcome)
    }
}

impl Outcome {
    fn of(verdict: Verdict) -> Self {
        match verdict {
            Ok(()) => Self::Passed,
            Err(Trouble::Skip(why)) => Self::Skipped(why),
            Err(Trouble::Failed(why)) => Self::Failed(why),
        }
    }
}

/// Why a case did not pass.
#[derive(Debug)]
enum Trouble {
    Skip(&'static str),
    Failed(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

type Verdict = Result<(), Trouble>;

/// What a case works with.
struct Bench<'a> {
    subject: Subject<'a>,
    /// The connection under test: of domain 0, in the guest's cases the guest's.
    dom0: Xenstore,
    /// A node of domain 0 that nobody else may see.
    root: XsPath,
}

/// A domain that exists for the conformance suite alone.
struct Guest {
    domid: DomId,
    store: Xenstore,
    home: XsPath,
}

impl Bench<'_> {
    /// Which xenstored is under test.
    fn daemon(&self) -> Daemon {
        self.subject.daemon
    }

    /// Another connection of domain 0.
    fn another(&self) -> Result<Xenstore, Trouble> {
        (self.subject.connect)(DomId::DOM0).ok_or(Trouble::Skip("domain 0 cannot be connected twice"))
    }

    /// An unprivileged domain with a directory of its own.
    fn guest(&self, number: u16) -> Result<Guest, Trouble> {
        if !self.subject.is_throw_away {
            return Err(Trouble::Skip(NEEDS_THROW_AWAY_HOST));
        }
        let domid = DomId::new(0x7f00 + number).map_err(|e| Trouble::Failed(e.to_string()))?;
        let skip = Trouble::Skip("no connection with the rights of another domain");
        let store = (self.subject.connect)(domid).ok_or(skip)?;
        let home = XsPath::domain(domid);
        self.dom0.mkdir(&home)?;
        self.dom0.set_perms(&home, &Permissions::owned_by(domid))?;
        Ok(Guest { domid, store, home })
    }

    /// A path below the case's own.
    fn at(&self, below: &str) -> Result<XsPath, Trouble> {
        self.root.join(below).map_err(|e| Trouble::Failed(e.to_string()))
    }

    /// Waits until no event is on its way to `watch`, by an event that is caused for that.
    fn settle(&self, store: &Xenstore, watch: &Watch) -> Result<Vec<String>, Trouble> {
        // One connection gets its events in order, and the answer to a later request after them.
        store.request(&Request::get_domain_path(DomId::DOM0))?;
        let mut seen = Vec::new();
        while let Some(event) = watch.try_recv()? {
            seen.push(event.path.to_string());
        }
        Ok(seen)
    }
}

/// Takes the first event, which says that the watch is set.
fn first_event(watch: &Watch) -> Verdict {
    match watch.recv_deadline(Instant::now() + PATIENCE)? {
        Some(_) => Ok(()),
        None => Err(Trouble::Failed("no first event".to_owned())),
    }
}

fn next_path(watch: &Watch) -> Result<String, Trouble> {
    match watch.recv_deadline(Instant::now() + PATIENCE)? {
        Some(event) => Ok(event.path.to_string()),
        None => Err(Trouble::Failed("no event".to_owned())),
    }
}

fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Verdict {
    match (found, wanted) {
        (found, wanted) if found == wanted => Ok(()),
        (found, wanted) => Err(Trouble::Failed(format!("{what}: {found:?} where {wanted:?} has to be"))),
    }
}

fn refused<T: fmt::Debug>(what: &str, result: Result<T, StoreError>, code: &ErrorCode) -> Verdict {
    match result {
        Err(error) if error.code() == Some(code) => Ok(()),
        other => Err(Trouble::Failed(format!("{what}: {other:?} where {code} has to be"))),
    }
}

/// The cases of a file; `@ Host` behind a name is its reach, otherwise it is `OwnNodes`.
macro_rules! cases {
    ($($name:ident $(@ $reach:ident)?),* $(,)?) => {
        pub(super) const CASES: &[super::Case] = &[
            $(super::Case { name: stringify!($name), reach: super::reach!($($reach)?), run: $name }),*
        ];
    };
}
macro_rules! reach {
    () => {
        super::Reach::OwnNodes
    };
    ($reach:ident) => {
        super::Reach::$reach
    };
}
use {cases, reach};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    #[test]
    fn server_passes_the_conformance_suite_with_a_guest() {
        for case in guest_cases() {
            let server = Server::start();
            let (dom0, domid) = (server.connect(DomId::DOM0), DomId::new(9).unwrap());
            let own = Permissions::owned_by(DomId::DOM0).allow(domid, crate::Access::Read);
            let home = XsPath::domain(domid);
            dom0.write(&home.join("domid").unwrap(), b"9").unwrap();
            dom0.write(&XsPath::domain(DomId::DOM0).join("name").unwrap(), b"Domain-0").unwrap();
            dom0.mkdir(&home.join("data").unwrap()).unwrap();
            for (path, permissions) in
                [("", &own), ("/domid", &own), ("/data", &Permissions::owned_by(domid))]
            {
                dom0.set_perms(&XsPath::new(format!("{home}{path}")).unwrap(), permissions).unwrap();
            }
            let outcome = case.run_as_guest(&server.connect(domid), Daemon::C);
            assert_eq!(outcome, Outcome::Passed, "{}", case.name);
        }
    }

    #[test]
    fn server_passes_the_conformance_suite() {
        let failed: Vec<_> = all_cases()
            .filter_map(|case| {
                let server = Server::start();
                let before = server.dump();
                let connect = |domid| Some(server.connect(domid));
                let outcome =
                    case.run(&Subject { connect: &connect, daemon: Daemon::C, is_throw_away: true });
                // Nodes of the guests that a case has made go with the guests.
                for number in 0..16 {
                    server.destroy_domain(DomId::new(0x7f00 + number).unwrap());
                }
                let mut after = server.dump();
                // Directories that cases make for domains and every host has.
                after.retain(|path, _| {
                    !["/local", "/local/domain", "/local/domain/0"].contains(&path.as_str())
                });
                let outcome = match outcome {
                    Outcome::Passed if before != after => Outcome::Failed(format!("left {after:#?}")),
                    other => other,
                };
                (outcome != Outcome::Passed).then(|| format!("{}: {outcome:?}", case.name))
            })
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
    #[test]
    fn host_in_use_sees_changes_of_the_suites_own_nodes_only() {
        let server = Server::start();
        let observer = server.connect(DomId::DOM0);
        let watch = observer.watch(&XsPath::root()).unwrap();
        let before = server.dump();
        let connect = |domid| (domid == DomId::DOM0).then(|| server.connect(domid));
        let subject = Subject { connect: &connect, daemon: Daemon::C, is_throw_away: false };
        for case in all_cases() {
            let outcome = case.run(&subject);
            let needs_more = outcome == Outcome::Skipped(NEEDS_THROW_AWAY_HOST);
            assert!(outcome == Outcome::Passed || needs_more, "{}: {outcome:?}", case.name);
            assert!(needs_more || case.reach == Reach::OwnNodes, "{} was run", case.name);
            observer.request(&Request::get_domain_path(DomId::DOM0)).unwrap();
            while let Some(event) = watch.try_recv().unwrap() {
                let path = event.path.to_string();
                assert!(
                    path == "/" || path.starts_with("/outrigger-conformance"),
                    "{} changed {path}",
                    case.name
                );
            }
            assert_eq!(server.dump(), before, "{}", case.name);
        }
    }

    #[test]
    fn guests_cases_do_nothing_with_the_rights_of_domain_zero() {
        let server = Server::start();
        let (dom0, before) = (server.connect(DomId::DOM0), server.dump());
        for case in guest_cases() {
            assert!(matches!(case.run_as_guest(&dom0, Daemon::C), Outcome::Failed(_)), "{}", case.name);
        }
        assert_eq!((server.dump(), server.is_introduced(DomId::DOM0)), (before, true));
    }
}
