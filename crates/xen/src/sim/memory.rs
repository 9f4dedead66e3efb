//! How the simulated hypervisor saves and restores domains, in the order in which libxc does it, and dumps them.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use xen_types::{DomId, Gfn, KiB, Release};

use super::stream::{Fault, Stream, long_number, number, record};
use super::{SimDomain, SimHypervisor};
use crate::build::{Channel, HvmBuilt};
use crate::domain::ShutdownReason;
use crate::error::{Abandoned, Result, XenError};
use crate::memory::{DumpCore, Precopy, RestoreMemory, SaveEvents, SaveMemory, Verdict};
use crate::param::HvmParam;

/// What the simulation's CPU state begins with; the domain's memory in KiB follows.
const STATE: &[u8; 8] = b"sim-cpus";
/// Pages that are written in a round at most: more than a pipe takes, so that it matters whether somebody reads.
const WRITTEN: u64 = 32;

pub(super) fn save(
    sim: &SimHypervisor,
    domid: DomId,
    to: BorrowedFd<'_>,
    how: &SaveMemory,
    events: &mut dyn SaveEvents,
) -> Result<()> {
    let memory = sim.on("save_memory", domid, |domain| {
        if domain.spec.kind.is_hvm() && domain.built { Ok(domain.memory) } else { Err(Errno::EINVAL) }
    })?;
    let release = sim.lock().release;
    let started = Instant::now();
    let mut run = || -> Result<(), Fault> {
        let stream = Stream::new(to, how.deadline, &how.cancel)?;
        stream.wanted()?;
        if !events.log_dirty(true) {
            return Err(Fault::Abandoned(Abandoned::NoLogDirty));
        }
        let written = Save { sim, domid, stream, events }.write(release, memory, how.live);
        events.log_dirty(false);
        written
    };
    run().map_err(|fault| error("The save", "save_memory", domid, started, fault))
}

struct Save<'a> {
    sim: &'a SimHypervisor,
    domid: DomId,
    stream: Stream<'a>,
    events: &'a mut dyn SaveEvents,
}

impl Save<'_> {
    fn write(&mut self, release: Release, memory: KiB, live: bool) -> Result<(), Fault> {
        let pages = (memory.get() / 4).max(1);
        self.stream.write_headers(release)?;
        // One leaf, and one register.
        self.stream.write_record(record::CPUID_POLICY, &[0; 24])?;
        self.stream.write_record(record::MSR_POLICY, &[0; 16])?;
        self.stream.write_record(record::STATIC_DATA_END, &[])?;
        if live {
            self.sim.lock().living(self.domid)?.log_dirty = true;
            self.rounds(pages)?;
        }
        if !self.events.suspend() {
            return Err(Fault::Abandoned(Abandoned::NotSuspended));
        }
        let params = self.suspended()?;
        self.pages(if live { 1 } else { pages })?;
        self.stream.write_record(record::TSC_INFO, &[0; 24])?;
        let state = [&STATE[..], &memory.get().to_le_bytes()].concat();
        self.stream.write_record(record::HVM_CONTEXT, &state)?;
        self.stream.write_record(record::HVM_PARAMS, &params)?;
        self.stream.write_record(record::END, &[])
    }

    /// The rounds of a live save of a domain with so many pages, asked for as libxc asks.
    fn rounds(&mut self, pages: u64) -> Result<(), Fault> {
        let mut stats = Precopy { dirty_pages: Some(pages), ..Precopy::default() };
        let mut dirty = pages;
        loop {
            self.stream.wanted()?;
            let before = self.events.precopy(stats);
            if dirty > 0 && before != Verdict::Abort {
                self.pages(dirty)?;
            }
            if before != Verdict::Continue {
                return decided(before);
            }
            stats.round += 1;
            stats.written_pages += dirty;
            stats.dirty_pages = None;
            let pages = u32::try_from(dirty).unwrap_or(u32::MAX);
            stats.elapsed = self.sim.lock().page_time.saturating_mul(pages);
            let after = self.events.precopy(stats);
            if after != Verdict::Continue {
                return decided(after);
            }
            dirty = self.sim.lock().living(self.domid).map(|domain| domain.writes())?;
            stats.dirty_pages = Some(dirty);
        }
    }

    /// Writes so many pages, or some of them.
    fn pages(&mut self, dirty: u64) -> Result<(), Fault> {
        let count = dirty.min(WRITTEN);
        let mut body = count.to_le_bytes().to_vec();
        body.extend((0..count).flat_map(u64::to_le_bytes));
        for page in 0..count {
            body.extend([page.to_le_bytes().first().copied().unwrap_or_default(); 4096]);
        }
        self.stream.write_record(record::PAGE_DATA, &body)?;
        self.events.progress(dirty, dirty);
        Ok(())
    }

    /// Checks that the domain has suspended, and returns its parameters as a record.
    fn suspended(&self) -> Result<Vec<u8>, Fault> {
        let mut state = self.sim.lock();
        let domain = state.living(self.domid)?;
        if domain.shutdown != Some(ShutdownReason::Suspend) {
            return Err(Errno::EINVAL.into());
        }
        let set: Vec<[u64; 2]> = HvmParam::SAVED
            .iter()
            .filter_map(|param| domain.params.get(param).map(|value| [u64::from(param.number()), *value]))
            .filter(|[_, value]| *value != 0)
            .collect();
        let count = u64::try_from(set.len()).unwrap_or_default();
        Ok(std::iter::once(count).chain(set.into_iter().flatten()).flat_map(u64::to_le_bytes).collect())
    }
}

impl Drop for Save<'_> {
    /// Xen stops recording, also when the caller's thread dies: the helper process outlives it by that.
    fn drop(&mut self) {
        if let Ok(domain) = self.sim.lock().living(self.domid) {
            domain.log_dirty = false;
        }
    }
}

impl SimHypervisor {
    /// What was written to a domain's memory from outside: addresses and bytes.
    #[must_use]
    pub fn written_memory(&self, domid: DomId) -> Vec<(u64, Vec<u8>)> {
        self.lock().living(domid).map(|domain| domain.written.clone()).unwrap_or_default()
    }
}

impl SimDomain {
    /// How many pages it writes in the next round.
    fn writes(&mut self) -> u64 {
        if self.pauses > 0 || self.shutdown.is_some() {
            return 0;
        }
        self.dirty_rounds.pop_front().unwrap_or(self.dirty_pages)
    }
}

fn decided(verdict: Verdict) -> Result<(), Fault> {
    if verdict == Verdict::Abort { Err(Fault::Abandoned(Abandoned::Aborted)) } else { Ok(()) }
}

pub(super) fn restore(
    sim: &SimHypervisor,
    domid: DomId,
    from: BorrowedFd<'_>,
    how: &RestoreMemory,
) -> Result<HvmBuilt> {
    sim.on("restore_memory", domid, |domain| {
        let empty = domain.spec.kind.is_hvm() && !domain.built && domain.vcpus > 0;
        if empty { Ok(()) } else { Err(Errno::EINVAL) }
    })?;
    let started = Instant::now();
    let run = || -> Result<HvmBuilt, Fault> {
        let mut stream = Stream::new(from, how.deadline, &how.cancel)?;
        let image = Image::read(&mut stream)?;
        image.load(sim, domid, how.store, how.console).map_err(Fault::Refused)
    };
    run().map_err(|fault| error("The restore", "restore_memory", domid, started, fault))
}

/// What was in a stream.
#[derive(Default)]
struct Image {
    policy: bool,
    memory: Option<KiB>,
    params: Vec<(HvmParam, u64)>,
}

impl Image {
    fn read(stream: &mut Stream<'_>) -> Result<Self, Fault> {
        const WRONG: Fault = Fault::Refused(Errno::EINVAL);
        stream.read_headers()?;
        let (mut image, mut ready) = (Self::default(), false);
        loop {
            let (kind, body) = stream.read_record()?;
            match kind {
                record::END => return Ok(image),
                record::CPUID_POLICY => image.policy = true,
                record::MSR_POLICY | record::TSC_INFO => {}
                record::STATIC_DATA_END if image.policy => ready = true,
                record::PAGE_DATA if ready => {
                    let count = number(&body, 0).filter(|count| (1..=1024).contains(count)).ok_or(WRONG)?;
                    let pages = usize::try_from(count).map_err(|_| WRONG)?;
                    if body.len() != 8 + pages * (8 + 4096) {
                        return Err(WRONG);
                    }
                }
                record::HVM_CONTEXT if ready => {
                    let known = body.strip_prefix(STATE).and_then(|state| long_number(state, 0));
                    image.memory = Some(KiB(known.ok_or(WRONG)?));
                }
                record::HVM_PARAMS if ready => image.params = params(&body).ok_or(WRONG)?,
                other if other & record::OPTIONAL != 0 => {}
                _ => return Err(WRONG),
            }
        }
    }

    /// Puts it into a domain.
    fn load(
        self,
        sim: &SimHypervisor,
        domid: DomId,
        store: Channel,
        console: Channel,
    ) -> Result<HvmBuilt, Errno> {
        let memory = self.memory.ok_or(Errno::EINVAL)?;
        let mut state = sim.lock();
        state.fill(domid, true, memory, [store, console])?;
        let domain = state.living(domid)?;
        domain.params.extend(self.params);
        domain.params.insert(HvmParam::StoreEvtchn, store.port.get().into());
        domain.params.insert(HvmParam::ConsoleEvtchn, console.port.get().into());
        let frame = |param| domain.params.get(&param).copied().map(Gfn).ok_or(Errno::EINVAL);
        Ok(HvmBuilt {
            store_gfn: frame(HvmParam::StorePfn)?,
            console_gfn: frame(HvmParam::ConsolePfn)?,
            smbios: None,
            acpi: None,
        })
    }
}

/// The parameters in a record.
fn params(body: &[u8]) -> Option<Vec<(HvmParam, u64)>> {
    let count = usize::try_from(number(body, 0)?).ok()?;
    let entries = body.get(8..)?;
    if entries.len() != count.checked_mul(16)? {
        return None;
    }
    entries
        .chunks_exact(16)
        .map(|entry| {
            let index = long_number(entry, 0)?;
            let param = HvmParam::SAVED.into_iter().find(|param| u64::from(param.number()) == index)?;
            Some((param, long_number(entry, 8)?))
        })
        .collect()
}

/// Writes the beginning of an ELF core file and some pages.
pub(super) fn dump(
    sim: &SimHypervisor,
    domid: DomId,
    to: BorrowedFd<'_>,
    how: &DumpCore,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let memory = sim.on("dump_core", domid, |domain| {
        if domain.spec.kind.is_hvm() && domain.built { Ok(domain.memory) } else { Err(Errno::EINVAL) }
    })?;
    let started = Instant::now();
    let mut run = || -> Result<(), Fault> {
        let mut stream = Stream::new(to, how.deadline, &how.cancel)?;
        stream.write_core(WRITTEN)?;
        progress(memory.get() / 4, memory.get() / 4);
        Ok(())
    };
    run().map_err(|fault| error("The dump", "dump_core", domid, started, fault))
}

fn error(
    operation: &'static str,
    call: &'static str,
    domid: DomId,
    started: Instant,
    fault: Fault,
) -> XenError {
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match fault {
        Fault::Abandoned(why) => XenError::Abandoned { operation, domid, why },
        Fault::Late => XenError::Timeout { operation, domid, waited_ms },
        Fault::Refused(errno) => XenError::refused(call, Some(domid), errno),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, pipe};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::domain::{DomainKind, DomainSpec, ResumeWay};
    use crate::hypervisor::Hypervisor as _;
    use crate::memory::Cancel;

    /// A guest that suspends itself when it is asked to.
    struct Guest<'a> {
        sim: &'a SimHypervisor,
        domid: DomId,
        rounds: Vec<Precopy>,
        /// Whether Xen recorded, when asked to suspend.
        recorded: Option<bool>,
    }

    impl SaveEvents for Guest<'_> {
        fn suspend(&mut self) -> bool {
            self.recorded = Some(self.sim.log_dirty(self.domid));
            self.sim.suspend_guest(self.domid);
            true
        }

        fn log_dirty(&mut self, _on: bool) -> bool {
            true
        }

        fn precopy(&mut self, stats: Precopy) -> Verdict {
            self.rounds.push(stats);
            if self.rounds.len() < 5 { Verdict::Continue } else { Verdict::StopAndCopy }
        }
    }

    fn running() -> (SimHypervisor, DomId) {
        let sim = SimHypervisor::new();
        let kind = DomainKind::Hvm { hap: true, nested: false };
        let domid = sim.create_domain(&DomainSpec::new(kind, [7; 16], 1)).expect("made");
        sim.set_max_vcpus(domid, 1).expect("set");
        sim.set_max_memory(domid, KiB::from_mib(65)).expect("set");
        let channel = || Channel {
            port: sim.alloc_unbound_port(domid, DomId::DOM0).expect("a port"),
            peer: DomId::DOM0,
        };
        let channels = [channel(), channel()];
        sim.lock().fill(domid, true, KiB::from_mib(64), channels).expect("filled");
        sim.set_hvm_param(domid, HvmParam::StorePfn, 0xfeffc).expect("set");
        sim.unpause_domain(domid).expect("unpaused");
        (sim, domid)
    }

    fn saved(
        sim: &SimHypervisor,
        domid: DomId,
        live: bool,
    ) -> (Result<()>, Vec<u8>, Vec<Precopy>, Option<bool>) {
        let (mut reader, writer) = pipe().expect("a pipe");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let how = SaveMemory { live, deadline, cancel: Cancel::new() };
        let mut guest = Guest { sim, domid, rounds: Vec::new(), recorded: None };
        let bytes = std::thread::scope(|scope| {
            let bytes = scope.spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).map(|_| bytes).expect("read")
            });
            let result = sim.save_memory(domid, writer.as_fd(), &how, &mut guest);
            drop(writer);
            (result, bytes.join().expect("a reader"))
        });
        (bytes.0, bytes.1, guest.rounds, guest.recorded)
    }

    #[test]
    fn a_stream_has_the_headers_and_records_of_libxc_in_its_order() {
        let (sim, domid) = running();
        let (result, bytes, ..) = saved(&sim, domid, false);
        result.expect("saved");
        let header = [&[0xff; 8][..], b"XENF", &[0, 0, 0, 3], &[0; 8], &[2, 0, 0, 0, 12, 0, 0, 0]].concat();
        assert!(bytes.starts_with(&header), "{:?}", &bytes[..40]);
        let (mut at, mut kinds) = (40, Vec::new());
        while at < bytes.len() {
            let length = number(&bytes, at + 4).expect("a length") as usize;
            kinds.push(number(&bytes, at).expect("a type"));
            at += 8 + length.next_multiple_of(8);
        }
        assert_eq!(at, bytes.len());
        assert_eq!(kinds, [0x11, 0x12, 0x10, 1, 8, 9, 0xa, 0]);
    }

    /// The pages of 64 MiB.
    const PAGES: u64 = 16384;

    #[test]
    fn a_live_save_is_recorded_until_it_ends() {
        let (sim, domid) = running();
        sim.set_dirty_pages(domid, 9);
        let (result, _, rounds, recorded) = saved(&sim, domid, true);
        result.expect("saved");
        assert_eq!((recorded, sim.log_dirty(domid)), (Some(true), false));
        let dirty: Vec<Option<u64>> = rounds.iter().map(|stats| stats.dirty_pages).collect();
        assert_eq!(dirty, [Some(PAGES), None, Some(9), None, Some(9)]);
        let written: Vec<(u32, u64)> =
            rounds.iter().map(|stats| (stats.round, stats.written_pages)).collect();
        assert_eq!(written, [(0, 0), (1, PAGES), (1, PAGES), (2, PAGES + 9), (2, PAGES + 9)]);
        let times = rounds.iter().map(|stats| stats.elapsed.as_micros());
        let all = u128::from(PAGES) * 10;
        assert_eq!(times.collect::<Vec<_>>(), [0, all, all, 90, 90]);
        sim.resume_domain(domid, ResumeWay::Cooperative).expect("resumed");
        assert!(sim.runs(domid));
        let (result, _, _, recorded) = saved(&sim, domid, false);
        result.expect("saved again");
        assert_eq!(recorded, Some(false));
    }

    #[test]
    fn each_round_finds_as_many_pages_as_the_test_says() {
        let (sim, domid) = running();
        sim.set_dirty_rounds(domid, [500, 40], 7);
        sim.set_page_time(Duration::from_millis(1));
        let (result, _, rounds, _) = saved(&sim, domid, true);
        result.expect("saved");
        let dirty: Vec<u64> = rounds.iter().filter_map(|stats| stats.dirty_pages).collect();
        assert_eq!(dirty, [PAGES, 500, 40]);
        assert_eq!(rounds.last().map(|stats| stats.elapsed), Some(Duration::from_millis(500)));
        sim.resume_domain(domid, ResumeWay::Cooperative).expect("resumed");
        let (_, _, rounds, _) = saved(&sim, domid, true);
        let dirty: Vec<u64> = rounds.iter().filter_map(|stats| stats.dirty_pages).collect();
        assert_eq!(dirty, [PAGES, 7, 7]);
    }

    #[test]
    fn an_injected_failure_comes_before_anything_is_asked() {
        let (sim, domid) = running();
        sim.fail_operation("save_memory", Errno::ENOMEM);
        let (result, bytes, _, recorded) = saved(&sim, domid, true);
        assert_eq!(result.expect_err("refused").errno(), Some(Errno::ENOMEM));
        assert!(bytes.is_empty() && recorded.is_none() && sim.runs(domid));
    }
}
