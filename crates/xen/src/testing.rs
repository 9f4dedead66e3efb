//! The conformance suite of [`Hypervisor`](crate::Hypervisor), as cases that run against any implementation.
//!
//! The simulation is believed because it passes the same cases as Xen does. The example `conformance` runs them in a
//! dom0. Each case clears away the domains that it makes, also when it fails.

mod cases;
mod memory;

use core::fmt;
use core::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use xen_types::{DomId, KiB};

use crate::build::{Blob, Channel, GuestMemory, HvmBuild, KernelBuild};
use crate::domain::{DomainKind, DomainSpec};
use crate::error::{Result, XenError};
use crate::hypervisor::Hypervisor;

/// All cases, from the simple to the composed.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    cases::CASES.iter().chain(memory::CASES)
}

/// How long Xen may take to clear away a domain after its destruction.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is put into the domains of the cases.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// Xen's hvmloader.
    pub hvmloader: Blob,
    /// SeaBIOS.
    pub firmware: Blob,
    /// A kernel that can be a PV or PVH domain.
    pub kernel: Blob,
}

/// One case: what it shows, and how.
#[derive(Clone, Copy)]
pub struct Case {
    /// What is shown, as a sentence.
    pub name: &'static str,
    run: fn(&Bench<'_>) -> Outcome,
}

impl Case {
    /// Runs the case.
    ///
    /// # Errors
    /// What was not as it must be.
    pub fn run(&self, xen: &dyn Hypervisor, files: &GuestFiles) -> Result<(), Broken> {
        let bench = Bench { xen, files, made: std::sync::Mutex::new(Vec::new()) };
        let before = bench.memory_in_use()?;
        let outcome = (self.run)(&bench);
        let cleared = bench.clear();
        outcome?;
        cleared?;
        bench.returned_to(before)
    }
}

/// Runs all cases.
///
/// # Errors
/// The first case that was not as it must be, and why.
pub fn conformance(xen: &dyn Hypervisor, files: &GuestFiles) -> Result<(), Broken> {
    cases().try_for_each(|case| {
        case.run(xen, files).map_err(|broken| Broken(format!("{}: {broken}", case.name)))
    })
}

/// What an implementation did that the conformance suite does not allow.
#[derive(Debug)]
pub struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

impl From<XenError> for Broken {
    fn from(error: XenError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

type Outcome = Result<(), Broken>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Broken(what())) }
}

/// The call was refused, and with this number.
fn refused<T>(what: &str, result: Result<T>, expected: &[Errno]) -> Outcome {
    match result {
        Ok(_) => Err(Broken(format!("{what} was not refused"))),
        Err(error) => ensure(error.errno().is_some_and(|errno| expected.contains(&errno)), || {
            format!("{what} was refused with \"{error}\", expected {expected:?}")
        }),
    }
}

/// An implementation and the domains that a case has made with it.
struct Bench<'a> {
    xen: &'a dyn Hypervisor,
    files: &'a GuestFiles,
    made: std::sync::Mutex<Vec<DomId>>,
}

impl Bench<'_> {
    const HVM: DomainKind = DomainKind::Hvm { hap: true, nested: false };
    const SHADOW: DomainKind = DomainKind::Hvm { hap: false, nested: false };
    const UUID: [u8; 16] = *b"conformance 0001";

    /// A number that no domain has: one of the highest, which Xen gives out last.
    fn unknown() -> DomId {
        DomId::new(DomId::FIRST_RESERVED - 1).expect("the highest number is not reserved")
    }

    /// Makes a domain that is cleared away after the case.
    fn make(&self, kind: DomainKind) -> Result<DomId> {
        self.keep(self.xen.create_domain(&DomainSpec::new(kind, Self::UUID, 1)))
    }

    /// Notes a domain that was just made to be cleared away after the case.
    fn keep(&self, made: Result<DomId>) -> Result<DomId> {
        made.inspect(|domid| {
            self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(*domid);
        })
    }

    /// Makes a domain with a CPU and the right to this much memory.
    fn make_ready(&self, kind: DomainKind, memory: KiB) -> Result<DomId> {
        let domid = self.make(kind)?;
        self.xen.set_max_vcpus(domid, 1)?;
        self.xen.set_max_memory(domid, memory + KiB(1024))?;
        Ok(domid)
    }

    fn channel(&self, domid: DomId) -> Result<Channel> {
        let port = self.xen.alloc_unbound_port(domid, DomId::DOM0)?;
        Ok(Channel { port, peer: DomId::DOM0 })
    }

    fn hvm_build(&self, domid: DomId, memory: KiB) -> Result<HvmBuild> {
        Ok(HvmBuild {
            hvmloader: self.files.hvmloader.clone(),
            firmware: self.files.firmware.clone(),
            smbios: None,
            acpi: None,
            memory: GuestMemory { target: memory, max: memory, video: KiB::from_mib(4) },
            max_vcpus: 1,
            online_vcpus: 1,
            apic: true,
            mmio_hole: None,
            claim: false,
            store: self.channel(domid)?,
            console: self.channel(domid)?,
        })
    }

    fn pv_build(&self, domid: DomId, memory: KiB) -> Result<KernelBuild> {
        Ok(KernelBuild {
            kernel: self.files.kernel.clone(),
            ramdisk: None,
            cmdline: "console=hvc0 panic=-1".to_owned(),
            memory,
            max_vcpus: 1,
            claim: false,
            store: self.channel(domid)?,
            console: self.channel(domid)?,
        })
    }

    /// Destroys what the case has made and waits until it is gone.
    fn clear(&self) -> Outcome {
        let made = core::mem::take(&mut *self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for domid in &made {
            match self.xen.destroy_domain(*domid) {
                Err(error) if !error.is_no_domain() => return Err(error.into()),
                _ => {}
            }
        }
        made.iter().try_for_each(|domid| self.gone(*domid))
    }

    fn gone(&self, domid: DomId) -> Outcome {
        self.soon(&format!("domain {domid} is gone"), || Ok(self.xen.domain_info(domid)?.is_none()))
    }

    /// Memory that is neither free nor waits to be scrubbed.
    fn memory_in_use(&self) -> Result<KiB> {
        let host = self.xen.host_info()?;
        Ok(KiB(host.total_memory.get() - host.free_memory.get()))
    }

    /// As much memory is in use as before, give or take what Xen keeps for itself in tables that only grow.
    fn returned_to(&self, before: KiB) -> Outcome {
        self.soon("all memory is given back", || Ok(self.memory_in_use()?.get() <= before.get() + 256))
    }

    /// Waits for something that Xen does after a call has returned, and of which it tells nobody.
    fn soon(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Outcome {
        let started = Instant::now();
        while !holds()? {
            ensure(started.elapsed() < DEADLINE, || format!("It is not so that {what}, after {DEADLINE:?}"))?;
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimHypervisor;

    #[test]
    fn simulation_passes_the_conformance_suite() {
        let bytes = || Blob::Bytes(vec![0x7f]);
        let files = GuestFiles { hvmloader: bytes(), firmware: bytes(), kernel: bytes() };
        let xen = SimHypervisor::new();
        for case in cases() {
            case.run(&xen, &files).unwrap_or_else(|broken| panic!("{}: {broken}", case.name));
            assert!(xen.leftovers().is_empty(), "{}: {:?}", case.name, xen.leftovers());
        }
    }
}
