//! The cases about saving and restoring memory.

use std::fs::File;
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use xen_types::{DomId, KiB};

use super::{Bench, Broken, Case, Outcome, ensure, refused};
use crate::build::HvmBuilt;
use crate::cpuid::CpuidPolicy;
use crate::domain::{DomainKind, ResumeWay, ShutdownReason};
use crate::error::{Abandoned, Result, XenError};
use crate::hypervisor::Hypervisor;
use crate::memory::{Cancel, DumpCore, Precopy, RestoreMemory, SaveEvents, SaveMemory, Verdict};
use crate::param::HvmParam;

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case { name: "a domain's memory is saved and restored into another", run: saved_and_restored },
    Case { name: "a stream is hardly longer than the domain's memory", run: short_stream },
    Case { name: "a domain that is not suspended is not saved", run: not_suspended },
    Case { name: "a stream that ends early is refused", run: cut_stream },
    Case { name: "a restore beyond the domain's memory limit is refused", run: beyond_its_limit },
    Case { name: "a save is given up when cancelled, and at its deadline", run: given_up },
    Case { name: "a suspended domain resumes", run: resumed },
    Case { name: "a domain's memory is dumped as an ELF core file", run: dumped },
    Case { name: "a domain's memory is written to where it has some", run: written },
    Case { name: "only HVM domains that are there are saved and restored", run: other_domains },
];

/// The domains' memory.
const MEMORY: KiB = KiB::from_mib(32);
/// How long a save or restore may take: some seconds under emulation.
const LIMIT: Duration = Duration::from_secs(60);
/// What follows a stream.
const TAIL: &[u8] = b"and what follows it";

/// Suspends the domain from outside when asked to, and writes down what is asked.
struct Asked<'a> {
    xen: &'a dyn Hypervisor,
    domid: DomId,
    suspends: bool,
    /// Cancelled when the device model is to report what it writes.
    cancel: Option<Cancel>,
    asked: Vec<&'static str>,
    rounds: Vec<Precopy>,
}

impl<'a> Asked<'a> {
    fn new(bench: &Bench<'a>, domid: DomId) -> Self {
        Self { xen: bench.xen, domid, suspends: true, cancel: None, asked: Vec::new(), rounds: Vec::new() }
    }
}

impl SaveEvents for Asked<'_> {
    fn suspend(&mut self) -> bool {
        self.asked.push("suspend");
        self.suspends && self.xen.shutdown_domain(self.domid, ShutdownReason::Suspend).is_ok()
    }

    fn log_dirty(&mut self, on: bool) -> bool {
        self.asked.push(if on { "log-dirty on" } else { "log-dirty off" });
        if let Some(cancel) = self.cancel.as_ref().filter(|_| on) {
            cancel.cancel();
        }
        true
    }

    fn precopy(&mut self, stats: Precopy) -> Verdict {
        self.rounds.push(stats);
        // Asked before and after the first round, and before the second.
        if self.rounds.len() < 3 { Verdict::Continue } else { Verdict::StopAndCopy }
    }
}

fn how(live: bool) -> SaveMemory {
    SaveMemory { live, deadline: Instant::now() + LIMIT, cancel: Cancel::new() }
}

/// Makes an HVM domain up to where it is given its memory.
fn empty(bench: &Bench<'_>) -> Result<DomId> {
    let domid = bench.make_ready(Bench::HVM, MEMORY)?;
    bench.xen.set_hvm_param(domid, HvmParam::HpetEnabled, 1)?;
    bench.xen.set_hvm_param(domid, HvmParam::TimerMode, 1)?;
    bench.xen.set_paging_memory(domid, KiB(2048))?;
    Ok(domid)
}

/// Makes an HVM domain that has its memory and does not run.
fn built(bench: &Bench<'_>) -> Result<DomId> {
    let domid = empty(bench)?;
    bench.xen.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
    bench.xen.build_hvm(domid, &bench.hvm_build(domid, MEMORY)?)?;
    Ok(domid)
}

fn restoring(bench: &Bench<'_>, domid: DomId) -> Result<RestoreMemory> {
    let (store, console) = (bench.channel(domid)?, bench.channel(domid)?);
    Ok(RestoreMemory { store, console, deadline: Instant::now() + LIMIT, cancel: Cancel::new() })
}

/// What came of a save whose stream a restore has read at the same time.
struct Moved {
    saved: Result<()>,
    restored: Result<HvmBuilt>,
    /// What the restore has left in the pipe.
    tail: Vec<u8>,
}

impl Moved {
    fn new(
        bench: &Bench<'_>,
        target: DomId,
        restore: &RestoreMemory,
        live: bool,
        events: &mut Asked<'_>,
    ) -> Result<Self, Broken> {
        let (mut reader, mut writer) = pipe()?;
        let save = how(live);
        let (saved, restored) = std::thread::scope(|scope| {
            let restored = scope.spawn(|| {
                let restored = bench.xen.restore_memory(target, reader.as_fd(), restore);
                // Nobody reads any more.
                restored.inspect_err(|_| save.cancel.cancel())
            });
            let saved = bench.xen.save_memory(events.domid, writer.as_fd(), &save, events);
            // Where the restore has failed, the pipe may be full for ever.
            let written = fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(std::io::Error::from)
                .and_then(|_| writer.write_all(TAIL));
            // A restore that waits in vain ends.
            drop(writer);
            let restored = restored.join().map_err(|_| Broken("the restore panicked".to_owned()))?;
            if restored.is_ok() {
                written?;
            }
            Ok::<_, Broken>((saved, restored))
        })?;
        let mut tail = Vec::new();
        reader.read_to_end(&mut tail)?;
        Ok(Self { saved, restored, tail })
    }
}

fn saved_and_restored(bench: &Bench<'_>) -> Outcome {
    for live in [false, true] {
        let (source, target) = (built(bench)?, empty(bench)?);
        let mut events = Asked::new(bench, source);
        let restore = restoring(bench, target)?;
        let moved = Moved::new(bench, target, &restore, live, &mut events)?;
        let (Ok(()), Ok(restored)) = (&moved.saved, &moved.restored) else {
            return Err(Broken(format!("the save: {:?}, the restore: {:?}", moved.saved, moved.restored)));
        };
        ensure(moved.tail == TAIL, || format!("the restore left {} bytes", moved.tail.len()))?;
        ensure(events.asked == ["log-dirty on", "suspend", "log-dirty off"], || {
            format!("{:?}", events.asked)
        })?;
        let round = |stats: &Precopy| (stats.round, stats.dirty_pages.is_some(), !stats.elapsed.is_zero());
        let rounds: Vec<(u32, bool, bool)> = events.rounds.iter().map(round).collect();
        let expected: &[_] = if live { &[(0, true, false), (1, false, true), (1, true, true)] } else { &[] };
        ensure(rounds == expected, || format!("the rounds are {:?}", events.rounds))?;
        same(bench, source, target)?;
        for (param, value) in [
            (HvmParam::StorePfn, restored.store_gfn.get()),
            (HvmParam::ConsolePfn, restored.console_gfn.get()),
            (HvmParam::StoreEvtchn, restore.store.port.get().into()),
            (HvmParam::ConsoleEvtchn, restore.console.port.get().into()),
        ] {
            let found = bench.xen.hvm_param(target, param)?;
            ensure(found == value && value != 0, || format!("{param:?} is {found} and not {value}"))?;
        }
        for domid in [source, target] {
            bench.xen.destroy_domain(domid)?;
            bench.gone(domid)?;
        }
    }
    Ok(())
}

fn beyond_its_limit(bench: &Bench<'_>) -> Outcome {
    let (source, target) = (built(bench)?, empty(bench)?);
    bench.xen.set_max_memory(target, KiB::from_mib(8))?;
    let mut events = Asked::new(bench, source);
    let restore = restoring(bench, target)?;
    // Whether the save was complete before that depends on what is in the pipe.
    let moved = Moved::new(bench, target, &restore, false, &mut events)?;
    refused("more memory than the domain may hold", moved.restored, &[Errno::ENOMEM])
}

/// Two domains hold as much memory, one is suspended and the other only paused.
fn same(bench: &Bench<'_>, source: DomId, target: DomId) -> Outcome {
    let (before, after) = (bench.xen.domain_info(source)?, bench.xen.domain_info(target)?);
    let fits = before.as_ref().zip(after.as_ref()).is_some_and(|(before, after)| {
        before.state.shutdown == Some(ShutdownReason::Suspend)
            && after.state.shutdown.is_none()
            && after.state.paused
            && after.memory == before.memory
            && after.online_vcpus == before.online_vcpus
    });
    ensure(fits, || format!("{before:?} came out as {after:?}"))
}

fn not_suspended(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    let nowhere = File::options().write(true).open("/dev/null")?;
    for live in [false, true] {
        let mut events = Asked { suspends: false, ..Asked::new(bench, domid) };
        let saved = bench.xen.save_memory(domid, nowhere.as_fd(), &how(live), &mut events);
        abandoned(&saved, Abandoned::NotSuspended)?;
        ensure(events.asked == ["log-dirty on", "suspend", "log-dirty off"], || {
            format!("{:?}", events.asked)
        })?;
    }
    let state = bench.xen.domain_info(domid)?.map(|info| info.state.shutdown);
    ensure(state == Some(None), || format!("the domain has shut down: {state:?}"))?;
    bench.xen.stop_log_dirty(domid)?;
    // Nothing of it is in the way of the next one.
    bench.xen.save_memory(domid, nowhere.as_fd(), &how(true), &mut Asked::new(bench, domid))?;
    Ok(())
}

fn abandoned(result: &Result<()>, expected: Abandoned) -> Outcome {
    let given_up = matches!(result, Err(XenError::Abandoned { why, .. }) if *why == expected);
    ensure(given_up, || format!("it should have been given up because {expected}: {result:?}"))
}

fn short_stream(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    let (reader, writer) = pipe()?;
    let (saved, length) = std::thread::scope(|scope| {
        let length = scope.spawn(|| length(reader));
        let saved = bench.xen.save_memory(domid, writer.as_fd(), &how(false), &mut Asked::new(bench, domid));
        // The reader reads up to the end.
        drop(writer);
        (saved, length.join())
    });
    saved?;
    let length = length.map_err(|_| Broken("the reader panicked".to_owned()))??;
    let most = MEMORY.get() * 1024 + (256 << 10);
    ensure(length <= most, || format!("the stream has {length} bytes"))
}

/// How many bytes come out of a pipe.
fn length(mut reader: PipeReader) -> std::io::Result<u64> {
    std::io::copy(&mut reader, &mut std::io::sink())
}

/// Reads the beginning of a save into memory and closes the pipe.
fn beginning(mut reader: PipeReader) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    reader.read_exact(&mut bytes).map(|()| bytes)
}

fn cut_stream(bench: &Bench<'_>) -> Outcome {
    let source = built(bench)?;
    let (reader, writer) = pipe()?;
    let mut events = Asked::new(bench, source);
    let (saved, bytes) = std::thread::scope(|scope| {
        let bytes = scope.spawn(|| beginning(reader));
        (bench.xen.save_memory(source, writer.as_fd(), &how(false), &mut events), bytes.join())
    });
    refused("a save whose reader goes away", saved, &[Errno::EPIPE])?;
    ensure(events.asked.last() == Some(&"log-dirty off"), || format!("{:?}", events.asked))?;
    let bytes = bytes.map_err(|_| Broken("the reader panicked".to_owned()))??;
    for length in [0, 30, bytes.len()] {
        let target = empty(bench)?;
        let (reader, mut writer) = pipe()?;
        writer.write_all(bytes.get(..length).unwrap_or_default())?;
        drop(writer);
        let restored = bench.xen.restore_memory(target, reader.as_fd(), &restoring(bench, target)?);
        not_understood(&format!("a stream of {length} bytes"), &restored)?;
        bench.xen.destroy_domain(target)?;
        bench.gone(target)?;
    }
    let target = empty(bench)?;
    let zero = File::open("/dev/zero")?;
    let restored = bench.xen.restore_memory(target, zero.as_fd(), &restoring(bench, target)?);
    not_understood("a stream of zeroes", &restored)
}

/// The stream was refused. libxc says why in words: the number may be left from anything.
fn not_understood(what: &str, result: &Result<HvmBuilt>) -> Outcome {
    ensure(matches!(result, Err(XenError::Refused(_))), || format!("{what} came out as {result:?}"))
}

fn given_up(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    // More than it takes is written, and nobody reads.
    let (_reader, writer) = pipe()?;
    let mut events = Asked::new(bench, domid);
    let mut how = how(true);
    events.cancel = Some(how.cancel.clone());
    let saved = bench.xen.save_memory(domid, writer.as_fd(), &how, &mut events);
    abandoned(&saved, Abandoned::Cancelled)?;
    ensure(events.asked == ["log-dirty on", "log-dirty off"], || format!("{:?}", events.asked))?;
    let mut events = Asked::new(bench, domid);
    how = SaveMemory { deadline: Instant::now() + Duration::from_secs(1), ..self::how(false) };
    let saved = bench.xen.save_memory(domid, writer.as_fd(), &how, &mut events);
    ensure(matches!(saved, Err(XenError::Timeout { .. })), || format!("no timeout: {saved:?}"))?;
    // On a slow machine it has not even begun.
    let last = events.asked.last();
    ensure(last.is_none_or(|last| *last == "log-dirty off"), || format!("{:?}", events.asked))?;
    let target = empty(bench)?;
    let (silent, _writer) = pipe()?;
    let restore = restoring(bench, target)?;
    restore.cancel.cancel();
    let restored = bench.xen.restore_memory(target, silent.as_fd(), &restore).map(drop);
    abandoned(&restored, Abandoned::Cancelled)
}

fn resumed(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    let early = bench.xen.resume_domain(domid, ResumeWay::Cooperative);
    refused("resuming what is not suspended", early, &[Errno::EINVAL])?;
    for way in [ResumeWay::Cooperative, ResumeWay::Forced] {
        bench.xen.shutdown_domain(domid, ShutdownReason::Suspend)?;
        let state = || Ok(bench.xen.domain_info(domid)?.map(|info| info.state.shutdown));
        bench.soon("the domain is suspended", || Ok(state()? == Some(Some(ShutdownReason::Suspend))))?;
        bench.xen.resume_domain(domid, way)?;
        let after: Option<Option<ShutdownReason>> = state()?;
        ensure(after == Some(None), || format!("after {way:?} it is {after:?}"))?;
    }
    Ok(())
}

fn dumped(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    let (mut reader, writer) = pipe()?;
    let mut pages = Vec::new();
    let dumped = |how: &DumpCore, writer: std::io::PipeWriter, pages: &mut Vec<(u64, u64)>| {
        bench.xen.dump_core(domid, writer.as_fd(), how, &mut |done, total| pages.push((done, total)))
    };
    // Each page below 4 GiB is asked for by itself: minutes in the emulator.
    let how = DumpCore { deadline: Instant::now() + 6 * LIMIT, cancel: Cancel::new() };
    let (result, bytes) = std::thread::scope(|scope| {
        let bytes = scope.spawn(move || {
            let mut head = [0; 18];
            reader.read_exact(&mut head)?;
            std::io::copy(&mut reader, &mut std::io::sink()).map(|_| head)
        });
        (dumped(&how, writer, &mut pages), bytes.join())
    });
    result?;
    let head = bytes.map_err(|_| Broken("the reader panicked".to_owned()))??;
    ensure(head.starts_with(b"\x7fELF\x02\x01") && head.ends_with(&[4, 0]), || format!("{head:?}"))?;
    ensure(pages.last().is_some_and(|(done, total)| done == total), || format!("{pages:?}"))?;
    how.cancel.cancel();
    let (_reader, writer) = pipe()?;
    abandoned(&dumped(&how, writer, &mut pages), Abandoned::Cancelled)
}

fn other_domains(bench: &Bench<'_>) -> Outcome {
    let nowhere = File::options().write(true).open("/dev/null")?;
    let pv = bench.make_ready(DomainKind::Pv, MEMORY)?;
    let restore = restoring(bench, pv)?;
    for (domid, errno) in [(pv, Errno::EINVAL), (Bench::unknown(), Errno::ESRCH)] {
        let mut events = Asked::new(bench, domid);
        let saved = bench.xen.save_memory(domid, nowhere.as_fd(), &how(false), &mut events);
        refused("a save", saved, &[errno])?;
        ensure(events.asked.is_empty(), || format!("{:?}", events.asked))?;
        let dump = DumpCore { deadline: Instant::now() + LIMIT, cancel: Cancel::new() };
        let dumped = bench.xen.dump_core(domid, nowhere.as_fd(), &dump, &mut |_, _| ());
        refused("a dump", dumped, &[errno])?;
        refused("a restore", bench.xen.restore_memory(domid, nowhere.as_fd(), &restore), &[errno])?;
    }
    Ok(())
}

fn written(bench: &Bench<'_>) -> Outcome {
    let domid = built(bench)?;
    for address in [0x10_0000, 0x10_0ff8] {
        bench.xen.write_memory(domid, address, &[7; 16])?;
    }
    // Far behind its memory, and before the special pages.
    let nowhere = bench.xen.write_memory(domid, 0x8000_0000, &[7; 16]);
    refused("writing where there is no memory", nowhere, &[Errno::EINVAL])?;
    let unknown = bench.xen.write_memory(Bench::unknown(), 0x10_0000, &[7; 16]);
    refused("writing to an unknown domain", unknown, &[Errno::ESRCH])
}
