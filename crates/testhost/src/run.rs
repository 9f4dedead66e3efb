//! A run: from a built host and a job to an exit status and a folder of logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::HostError;
use crate::boot::boot;
use crate::error::{AtPath as _, chain};
use crate::job::{Work, whole_seconds};
use crate::machine::Memory;
use crate::preparation::prepare;
use crate::request::{Host, Job, Observer, Origin, Report, Request};
use crate::share::Share;
use crate::snapshot::{Attempt, find_or_make};
use crate::vm::{Places, Vm};

/// How many runs' logs are kept.
const KEPT_LOGS: usize = 30;

/// Brings the host up, prepares it, does the job, takes the host down.
///
/// # Errors
/// Any [`HostError`]; a job that ends with a status, whichever, is no error.
pub fn run(host: &Host, request: &Request, observer: &mut dyn Observer) -> Result<Report, HostError> {
    fs::create_dir_all(&request.logs).at("make the folder", &request.logs)?;
    let logs = request.logs.canonicalize().at("resolve", &request.logs)?;
    let share = Share::new(&logs)?;
    let places = Places { image: &host.folder, logs: &logs, share: &share };
    let run = Run { request, places: &places, started: Instant::now() };
    if !request.fresh && request.machine.can_be_restored() {
        match run.restore_and_run(observer) {
            Ok(report) => return Ok(report),
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Snapshot(error)) => {
                observer.news(&format!("No snapshot is used: {}", chain(&error)));
            }
        }
    }
    run.boot_and_run(observer)
}

/// What both ways of coming up have in common.
struct Run<'a> {
    request: &'a Request,
    places: &'a Places<'a>,
    started: Instant,
}

impl<'a> Run<'a> {
    fn boot_and_run(&self, observer: &mut dyn Observer) -> Result<Report, HostError> {
        observer.progress("Booting the host from scratch");
        let Request { machine, scale, preparations, .. } = self.request;
        let mut vm = Vm::start(machine, Memory::Anonymous, self.places, *scale, observer)?;
        boot(&mut vm)?;
        for preparation in preparations {
            prepare(&mut vm, preparation, self.places.share, self.places.logs)?;
        }
        self.bring_in()?;
        let work = self.work();
        vm.observer().up();
        work.begin(&mut vm)?;
        self.finish(&work, vm, Origin::Booted)
    }

    fn restore_and_run(&self, observer: &mut dyn Observer) -> Result<Report, Attempt> {
        let Request { machine, scale, preparations, .. } = self.request;
        let snapshot = find_or_make(machine, preparations, self.places, *scale, observer)?;
        self.bring_in().map_err(Attempt::Final)?;
        observer.progress("Restoring the host from its snapshot");
        let memory = snapshot.memory();
        let started = Vm::start(machine, Memory::CopyOf(&memory), self.places, *scale, observer);
        let mut vm = started.map_err(Attempt::Final)?;
        let work = self.work();
        let begun = snapshot.restore(&mut vm).and_then(|()| {
            vm.observer().up();
            work.begin(&mut vm)
        });
        if let Err(error) = begun {
            if !matches!(error, HostError::Stopped) {
                snapshot.discard();
            }
            return Err(Attempt::of_snapshot(error));
        }
        drop(snapshot);
        self.finish(&work, vm, Origin::Restored).map_err(Attempt::Final)
    }

    fn bring_in(&self) -> Result<(), HostError> {
        if let Job::Script(script) = &self.request.job {
            self.places.share.script(script)?;
        }
        self.places.share.put(&self.request.puts)
    }

    fn work(&self) -> Work<'a> {
        let limit = self.request.timeout.map(|limit| whole_seconds(self.request.scale.of(limit)));
        Work { job: &self.request.job, prepares: false, limit, logs: self.places.logs }
    }

    fn finish(&self, work: &Work<'_>, mut vm: Vm<'_>, origin: Origin) -> Result<Report, HostError> {
        let startup = self.started.elapsed();
        vm.observer().progress(&format!("Ready after {:.1} s", startup.as_secs_f64()));
        let ended = work.complete(&mut vm)?;
        vm.observer().ended(ended.status);
        let (status, job) = ended.stop(&mut vm)?;
        Ok(Report { status, origin, startup, job, logs: self.places.logs.to_owned() })
    }
}

/// A folder name for the logs of one run below `parent`: the time and the process, so that none is used twice. Removes
/// the oldest folders there when there are many.
#[must_use]
pub fn fresh_log_folder(parent: &Path) -> PathBuf {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Their names begin with the time, of as many digits for the next 250 years.
    folders.sort();
    for folder in folders.iter().rev().skip(KEPT_LOGS) {
        // If it stays, it costs room.
        let _ = fs::remove_dir_all(folder);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    parent.join(format!("{now}-{}", std::process::id()))
}
