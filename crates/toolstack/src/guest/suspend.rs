//! Suspending a guest, and letting it go on.
//!
//! A guest with PV drivers is asked and suspends itself, because its drivers have to let go of their devices. One
//! without is shut down from outside with the reason "suspend" (`libxl_dom_suspend.c`), whatever it does at that moment:
//! its vCPUs first finish what they wait for from the device model.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use xen::{Cancel, DomainInfo, DomainState, HvmParam, ResumeWay, ShutdownReason};
use xenstore::{SpecialWatch, Store, XsPath};

use crate::Toolstack;
use crate::domain::Domain;
use crate::error::Cause;
use crate::nodes::{below, libxl_dir};
use crate::operation::StepResult;
use crate::wait::Watcher;

/// What asks the PV drivers.
const SUSPEND: &[u8] = b"suspend";

/// How long after a request a guest may suspend itself for it, in seconds.
const LATE: u64 = 600;

/// Refuses what cannot be suspended, or not so that it can go on: before anything is done.
pub(crate) fn check(ts: &Toolstack, domain: Domain, name: &str) -> StepResult {
    let not_now = |why: &str| Err(Cause::NotNow { name: name.to_owned(), why: why.to_owned() });
    match ts.look(domain)?.map(|info| info.state) {
        None => return Err(Cause::NotRunning { name: name.to_owned(), reason: None }),
        Some(DomainState { shutdown: Some(reason), .. }) => {
            return Err(Cause::NotRunning { name: name.to_owned(), reason: Some(reason) });
        }
        Some(DomainState { paused: true, .. }) => return Err(Cause::Paused { name: name.to_owned() }),
        Some(_) => {}
    }
    // Its state is in no stream: it would come back awake, with a firmware that believes it asleep.
    if ts.hypervisor.hvm_param(domain.domid(), HvmParam::AcpiSState)? != 0 {
        return not_now("is asleep (ACPI S3): wake it first (outrigger trigger GUEST sleep)");
    }
    Ok(())
}

/// Suspends a guest that runs, and waits until it has.
///
/// When it fails, the guest runs on, except where it has ended.
pub(crate) fn suspend(ts: &Toolstack, domain: Domain, name: &str, cancel: &Cancel) -> StepResult {
    if has_pv_drivers(ts, domain)? {
        ask(ts, domain, name, cancel)?;
    } else {
        ts.hypervisor.shutdown_domain(domain.domid(), ShutdownReason::Suspend)?;
    }
    let after = ts.deadlines.suspend;
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &SpecialWatch::ReleaseDomain)?;
    let ended = watcher.until(Instant::now() + after, || match ts.look(domain)? {
        None => Err(Cause::NotRunning { name: name.to_owned(), reason: None }),
        Some(DomainInfo { state, .. }) if state.shutdown.is_some() => Ok(state.shutdown),
        // It has promised to suspend: it would later, with nobody to resume it.
        Some(_) => Ok(None),
    })?;
    match ended {
        Some(ShutdownReason::Suspend) if cancel.is_cancelled() => {
            Err(Cause::Cancelled { name: name.to_owned() })
        }
        Some(ShutdownReason::Suspend) => forget_request(ts, domain),
        Some(reason) => Err(Cause::NotRunning { name: name.to_owned(), reason: Some(reason) }),
        None => Err(Cause::NotSuspended { name: name.to_owned(), after }),
    }
}

/// Asks the PV drivers, and waits until they have taken notice.
fn ask(ts: &Toolstack, domain: Domain, name: &str, cancel: &Cancel) -> StepResult {
    let path = request(domain);
    let mut watcher = Watcher::new();
    watcher.watch(&ts.xenstore, &path)?;
    ts.xenstore.transaction(|transaction| {
        transaction.write(&asked(domain), now().to_string().as_bytes())?;
        transaction.write(&path, SUSPEND)
    })?;
    let after = ts.deadlines.suspend_ack;
    let taken = |value: Option<Vec<u8>>| value.is_none_or(|value| value != SUSPEND);
    let seen = watcher.until(Instant::now() + after, || {
        if ts.look(domain)?.is_none() {
            return Err(Cause::NotRunning { name: name.to_owned(), reason: None });
        }
        let is_taken = taken(ts.xenstore.read(&path)?);
        Ok((is_taken || cancel.is_cancelled()).then_some(is_taken))
    })?;
    if seen == Some(true) || !withdraw_request(ts, domain)? {
        return Ok(());
    }
    if seen.is_some() {
        return Err(Cause::Cancelled { name: name.to_owned() });
    }
    Err(Cause::NotAcknowledged { name: name.to_owned(), what: "request to suspend", after })
}

/// Takes a request to suspend back, also an earlier process's, unless the drivers have taken notice of it.
pub(crate) fn withdraw_request(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    let path = request(domain);
    Ok(ts.xenstore.transaction(|transaction| {
        let is_there = transaction.read(&path)?.as_deref() == Some(SUSPEND);
        if is_there {
            transaction.write(&path, b"")?;
            transaction.rm(&asked(domain))?;
        }
        Ok(is_there)
    })?)
}

/// Whether a guest has suspended itself for a request that nobody waits for any more: the drivers had taken notice of it,
/// and were slower than the deadline, or than the daemon's restart.
///
/// # Errors
/// When Xen or xenstore does not answer.
pub(crate) fn is_late(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    if !is_suspended(ts, domain)? {
        return Ok(false);
    }
    let since = ts.xenstore.read_number(&asked(domain))?;
    // Much later, it is another program that has suspended it.
    Ok(since.is_some_and(|since| now().saturating_sub(since) <= LATE))
}

/// Lets a suspended guest go on where it was; one that runs, or has ended in another way, is left alone.
///
/// QEMU has to run already: what the guest writes to a device model that is stopped is lost.
pub(crate) fn resume(ts: &Toolstack, domain: Domain) -> StepResult {
    let is_suspended = |info: &DomainInfo| info.state.shutdown == Some(ShutdownReason::Suspend);
    if !ts.look(domain)?.as_ref().is_some_and(is_suspended) {
        return Ok(());
    }
    // Only a guest that made the call itself gets its answer.
    let way = if has_pv_drivers(ts, domain)? { ResumeWay::Cooperative } else { ResumeWay::Forced };
    ts.hypervisor.resume_domain(domain.domid(), way)?;
    // Else xenstored, which has reported this end, would not report the next.
    ts.xenstore.resume(domain.domid())?;
    forget_request(ts, domain)
}

fn forget_request(ts: &Toolstack, domain: Domain) -> StepResult {
    ts.xenstore.rm(&asked(domain))?;
    Ok(())
}

/// Whether a guest is suspended.
pub(crate) fn is_suspended(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    let state = ts.look(domain)?.map(|info| info.state);
    Ok(state.is_some_and(|state| state.shutdown == Some(ShutdownReason::Suspend)))
}

/// A guest's PV drivers set this when they listen for event channels.
fn has_pv_drivers(ts: &Toolstack, domain: Domain) -> Result<bool, Cause> {
    Ok(ts.hypervisor.hvm_param(domain.domid(), HvmParam::CallbackIrq)? != 0)
}

fn request(domain: Domain) -> XsPath {
    below(&XsPath::domain(domain.domid()), "control/shutdown")
}

/// Exists from the request to the drivers until the guest is suspended or goes on: the time of the request, in seconds
/// since 1970. The guest cannot write it.
fn asked(domain: Domain) -> XsPath {
    below(&libxl_dir(domain.domid()), "suspend-asked")
}

/// Seconds since 1970 by this host's clock.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
