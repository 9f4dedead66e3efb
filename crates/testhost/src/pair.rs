//! A pair of hosts: two emulated machines with a network and disks between them.
//!
//! ```text
//!   host-a  10.77.0.1/24  pair0 ----- unix sockets ----- pair0  10.77.0.2/24  host-b
//!              /dev/vda ------------- one raw file ------------ /dev/vda
//! ```
//!
//! Each machine has a snapshot of its own, so the two differ as real hosts do: in their MAC addresses, in the boot id and
//! the random numbers of their kernels, in their names. Both are up before either script starts, and both stay up until
//! both scripts have ended. A failure of one host ends the run of the other.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::AtPath as _;
use crate::machine::Machine;
use crate::member::Member;
use crate::{Host, HostError, Observer, Report, Request, Stopper};

pub use crate::member::Role;

/// Two runs to be made at once.
#[derive(Debug, Clone)]
pub struct PairRequest {
    /// The run of each host. Its logs go into the folders `a` and `b` of the request's.
    pub each: Request,
    /// Raw files that both hosts have as disks: `/dev/vda` in dom0 and so on, in this order. A reader has to open the
    /// device with `O_DIRECT`, or its kernel may show what it read before.
    pub shared_disks: Vec<PathBuf>,
}

/// Brings both hosts up, does the job in both at once, takes both down. Returns host-a's report and host-b's.
///
/// # Errors
/// [`HostError::Pair`] with the error of the host that failed first; the other's run is ended then. A job that ends with
/// a status, whichever, is no error, and the other host's job goes on. [`HostError::Setting`] when the machine has a
/// disk of its own, [`HostError::File`] when a shared disk is missing.
pub fn run(
    host: &Host,
    request: &PairRequest,
    observers: [&mut (dyn Observer + Send); 2],
) -> Result<[Report; 2], HostError> {
    if let Some(disk) = &request.each.machine.disk {
        let value = disk.display().to_string();
        let reason = "a pair of hosts has only shared disks";
        return Err(HostError::Setting { name: "--disk", value, reason });
    }
    let shared_disks = request.shared_disks.iter();
    let shared_disks = shared_disks.map(|path| path.canonicalize().at("find the shared disk", path));
    let shared_disks = shared_disks.collect::<Result<Vec<_>, _>>()?;
    let network = tempfile::Builder::new()
        .prefix("outrigger-pair-")
        .tempdir()
        .at("make a folder for sockets in", std::env::temp_dir())?;
    let requests = Role::BOTH.map(|role| member_request(&request.each, role, network.path(), &shared_disks));
    let meeting = Meeting::default();
    let [a, b] = observers;
    let [for_a, for_b] = &requests;
    // QEMU ends with the thread that started it, so each has one to itself.
    let results = thread::scope(|scope| {
        let b = scope.spawn(|| meeting.attend(host, for_b, Role::B, b));
        let a = scope.spawn(|| meeting.attend(host, for_a, Role::A, a));
        [a, b].map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    conclude(results, meeting.lock().failed)
}

/// The run of one host.
fn member_request(each: &Request, role: Role, network: &Path, shared_disks: &[PathBuf]) -> Request {
    let machine = Machine {
        member: Some(Member::new(role, network)),
        shared_disks: shared_disks.to_vec(),
        ..each.machine.clone()
    };
    Request { machine, logs: each.logs.join(role.letter()), ..each.clone() }
}

/// Both reports, or the error of the host that failed first.
fn conclude(results: [Result<Report, HostError>; 2], failed: Option<Role>) -> Result<[Report; 2], HostError> {
    let error = |role: Role, error| HostError::Pair { host: role.host_name(), source: Box::new(error) };
    match results {
        [Ok(a), Ok(b)] => Ok([a, b]),
        [Err(a), Ok(_)] => Err(error(Role::A, a)),
        [Ok(_), Err(b)] => Err(error(Role::B, b)),
        [Err(a), Err(b)] => Err(if failed == Some(Role::B) { error(Role::B, b) } else { error(Role::A, a) }),
    }
}

/// Where the two runs wait for each other.
#[derive(Default)]
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    up: [bool; 2],
    ended: [bool; 2],
    failed: Option<Role>,
    stoppers: [Option<Stopper>; 2],
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in it is right after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that the other run may wait for.
    fn change(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until this holds, or one of the runs has failed.
    fn wait(&self, holds: impl Fn(&State) -> bool) {
        let waits = |state: &mut State| state.failed.is_none() && !holds(state);
        drop(self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes the run of one host.
    fn attend(
        &self,
        host: &Host,
        request: &Request,
        role: Role,
        observer: &mut dyn Observer,
    ) -> Result<Report, HostError> {
        let mut leaving = Leaving { meeting: self, role, well: false };
        let result = crate::run(host, request, &mut Attendant { meeting: self, role, observer });
        leaving.well = result.is_ok();
        result
    }
}

/// The end of one host's run, also by a panic.
struct Leaving<'a> {
    meeting: &'a Meeting,
    role: Role,
    well: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.well {
            return;
        }
        self.meeting.change(|state| {
            state.failed.get_or_insert(self.role);
            if let Some(stopper) = &state.stoppers[self.role.other().index()] {
                stopper.stop();
            }
        });
    }
}

/// Hears about one host's run, keeps it in step with the other's, and passes all on.
struct Attendant<'a> {
    meeting: &'a Meeting,
    role: Role,
    observer: &'a mut dyn Observer,
}

impl Observer for Attendant<'_> {
    fn progress(&mut self, what: &str) {
        self.observer.progress(what);
    }

    fn machine(&mut self, pid: u32) {
        self.observer.machine(pid);
    }

    fn stopper(&mut self, stopper: Stopper) {
        self.meeting.change(|state| {
            if state.failed.is_some() {
                stopper.stop();
            }
            state.stoppers[self.role.index()] = Some(stopper.clone());
            // It boots again when its snapshot did not do.
            state.up[self.role.index()] = false;
        });
        self.observer.stopper(stopper);
    }

    fn up(&mut self) {
        self.observer.up();
        self.meeting.change(|state| state.up[self.role.index()] = true);
        self.meeting.wait(|state| state.up == [true; 2]);
    }

    fn output(&mut self, bytes: &[u8]) {
        self.observer.output(bytes);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.observer.console(bytes);
    }

    fn ended(&mut self, status: i32) {
        self.observer.ended(status);
        self.meeting.change(|state| state.ended[self.role.index()] = true);
        self.meeting.wait(|state| state.ended == [true; 2]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Job, Origin, TimeScale};

    fn each() -> Request {
        Request {
            machine: Machine::default(),
            preparations: Vec::new(),
            job: Job::Shell,
            puts: Vec::new(),
            timeout: None,
            fresh: false,
            logs: "/logs".into(),
            scale: TimeScale::default(),
        }
    }

    fn report() -> Report {
        let zero = Duration::ZERO;
        Report { status: 0, origin: Origin::Booted, startup: zero, job: zero, logs: "/logs".into() }
    }

    #[test]
    fn each_host_sends_to_the_other_and_has_its_own_address() {
        let words = Role::BOTH.map(|role| {
            let request = member_request(&each(), role, Path::new("/n,et"), &[]);
            assert_eq!(request.logs, Path::new("/logs").join(role.letter()));
            request.machine.member.unwrap().qemu_arguments().join(" ")
        });
        assert!(
            words[0].contains("local.path=/n,,et/a,remote.type=unix,remote.path=/n,,et/b"),
            "{}",
            words[0]
        );
        assert!(
            words[1].contains("local.path=/n,,et/b,remote.type=unix,remote.path=/n,,et/a"),
            "{}",
            words[1]
        );
        assert!(words[0].contains(Role::A.mac()) && words[1].contains(Role::B.mac()));
    }

    #[test]
    fn snapshot_belongs_to_one_of_the_two_wherever_the_network_and_the_disks_are() {
        let identity = |role, network: &str, disks: &[PathBuf]| {
            member_request(&each(), role, Path::new(network), disks).machine.identity()
        };
        let one = identity(Role::A, "/n", &["/x".into()]);
        assert_eq!(one, identity(Role::A, "/elsewhere", &["/y".into()]));
        assert_ne!(one, identity(Role::B, "/n", &["/x".into()]));
        assert_ne!(one, identity(Role::A, "/n", &[]));
        assert_ne!(identity(Role::A, "/n", &[]), Machine::default().identity());
    }

    #[test]
    fn error_is_that_of_the_host_that_failed_first() {
        let crash = || HostError::Monitor { command: "x".to_owned(), reason: "y".to_owned() };
        let check = |results, failed, name| {
            let error = conclude(results, failed).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        };
        check([Err(HostError::Stopped), Err(crash())], Some(Role::B), "host-b");
        check([Err(crash()), Err(HostError::Stopped)], Some(Role::A), "host-a");
        check([Ok(report()), Err(crash())], Some(Role::B), "host-b");
        assert!(conclude([Ok(report()), Ok(report())], None).is_ok());
    }

    #[test]
    fn waiting_ends_with_the_others_failure() {
        let meeting = Meeting::default();
        thread::scope(|scope| {
            scope.spawn(|| meeting.wait(|state| state.up == [true; 2]));
            drop(Leaving { meeting: &meeting, role: Role::B, well: false });
        });
        assert_eq!(meeting.lock().failed, Some(Role::B));
    }

    #[test]
    fn disk_of_one_host_is_refused() {
        let host = Host { folder: "/none".into() };
        let mut each = each();
        each.machine.disk = Some("/x".into());
        let request = PairRequest { each, shared_disks: Vec::new() };
        let (mut a, mut b) = (Deaf, Deaf);
        let error = run(&host, &request, [&mut a, &mut b]).unwrap_err();
        assert!(error.to_string().contains("--disk=/x"), "{error}");
    }

    struct Deaf;
    impl Observer for Deaf {}
}
