//! Saves of a made-up domain, read by a reader of their own.

use core::ffi::c_int;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, pipe};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use nix::libc;
use xen_types::DomId;

use super::records::{CpuPolicy, PAGE_SIZE, Tsc};
use super::source::{Holding, Mapped};
use super::*;

mod live;

/// The end of the special pages.
const END: u64 = 0xf_f000;
/// The types of a page that is there and of one that is not.
const THERE: u64 = 0;
const MISSING: u64 = 0xf << 28;

/// What happens to the domain when something is asked or done: the question is given.
type Change = Box<dyn FnMut(&str, &mut Memory)>;

/// A domain whose pages all hold the number of the last write to them.
#[derive(Default)]
struct Memory {
    pages: BTreeMap<u64, u8>,
    /// Pages that count although no number leads to them.
    hidden: u64,
    on_demand: bool,
    recording: bool,
    dirty: BTreeSet<u64>,
    /// The minor number of Xen's version.
    minor: u16,
    /// Pages that the domain was given since the record was last taken, by a Xen that does not record what it writes there.
    unrecorded: BTreeSet<u64>,
    suspended: bool,
    /// How many types were asked for.
    types: u64,
    /// How often pages were mapped.
    mapped: u32,
}

impl Memory {
    fn write(&mut self, page: u64) {
        *self.pages.get_mut(&page).expect("the page is there") += 1;
        if self.recording && !self.unrecorded.contains(&page) {
            self.dirty.insert(page);
        }
    }

    /// The domain gives a page back.
    fn give_back(&mut self, page: u64) {
        self.pages.remove(&page).expect("the page is there");
        if self.minor >= 22 {
            self.dirty.remove(&page);
        }
    }

    /// The domain is given a page, and writes to it.
    fn take(&mut self, page: u64, content: u8) {
        assert_eq!(self.pages.insert(page, content), None);
        let record = if self.minor >= 22 { &mut self.dirty } else { &mut self.unrecorded };
        if self.recording {
            record.insert(page);
        }
    }
}

struct Fake {
    memory: Rc<RefCell<Memory>>,
    size: u64,
    /// Called before pages are mapped, and before they are asked for.
    change: RefCell<Change>,
    /// What is asked of it in vain.
    broken: Cell<&'static str>,
}

impl Fake {
    /// Memory of so many pages, of which none are where the display's old memory was, and some special pages.
    fn new(pages: u64) -> Self {
        let mut memory = Memory { minor: 17, ..Memory::default() };
        for page in (0..0xa0).chain(0xc0..pages).chain(END - 8..END) {
            memory.pages.insert(page, 1);
        }
        let change: Change = Box::new(|_, _| ());
        let memory = Rc::new(RefCell::new(memory));
        Self { memory, size: END, change: RefCell::new(change), broken: Cell::new("") }
    }

    fn refuse(&self, what: &'static str) -> Result<()> {
        if self.broken.get() == what {
            return Err(XenError::refused(what, Some(self.domid()), Errno::EFAULT));
        }
        Ok(())
    }
}

struct FakeMapped {
    errors: Vec<c_int>,
    contents: Vec<u8>,
}

impl Mapped for FakeMapped {
    fn errors(&self) -> &[c_int] {
        &self.errors
    }

    fn write(&self, to: BorrowedFd<'_>, head: &[u8]) -> Result<(), Errno> {
        write_all(to, head)?;
        self.contents.iter().try_for_each(|byte| write_all(to, &[*byte; PAGE_SIZE]))
    }
}

impl Source for Fake {
    type Mapped = FakeMapped;

    fn domid(&self) -> DomId {
        DomId::new(7).expect("a domain's number")
    }

    fn version(&self) -> Result<(u16, u16)> {
        Ok((4, self.memory.borrow().minor))
    }

    fn size(&self) -> Result<u64> {
        let highest = self.memory.borrow().pages.keys().next_back().copied();
        Ok(self.size.max(highest.unwrap_or(0) + 1))
    }

    fn holding(&self) -> Result<Holding> {
        let memory = self.memory.borrow();
        let pages = memory.pages.len() as u64 + memory.hidden;
        Ok(Holding { pages, countable: !memory.on_demand, suspended: memory.suspended })
    }

    fn ask_types(&self, pages: &mut [u64]) -> Result<()> {
        self.refuse("types")?;
        assert!(pages.len() <= BATCH);
        let mut memory = self.memory.borrow_mut();
        (self.change.borrow_mut())("types", &mut memory);
        for page in &mut *pages {
            *page = if memory.pages.contains_key(page) { THERE } else { MISSING };
        }
        memory.types += pages.len() as u64;
        Ok(())
    }

    fn map(&self, pages: &[u64]) -> Result<FakeMapped> {
        assert!((1..=BATCH).contains(&pages.len()));
        let mut memory = self.memory.borrow_mut();
        (self.change.borrow_mut())("map", &mut memory);
        memory.mapped += 1;
        let found: Vec<Option<u8>> = pages.iter().map(|page| memory.pages.get(page).copied()).collect();
        let errors = found.iter().map(|found| if found.is_some() { 0 } else { -libc::EINVAL }).collect();
        Ok(FakeMapped { errors, contents: found.into_iter().flatten().collect() })
    }

    fn start_log_dirty(&self) -> Result<()> {
        self.memory.borrow_mut().recording = true;
        self.refuse("recording")
    }

    fn stop_log_dirty(&self) {
        self.memory.borrow_mut().recording = false;
    }

    fn take_dirty(&mut self, last: bool, into: &mut Pages) -> Result<()> {
        let mut memory = self.memory.borrow_mut();
        assert!(memory.recording && memory.suspended == last);
        memory.unrecorded.clear();
        std::mem::take(&mut memory.dirty).into_iter().for_each(|page| into.insert(page));
        Ok(())
    }

    fn cpu_policy(&self) -> Result<CpuPolicy> {
        Ok(CpuPolicy { leaves: vec![[0, 0, 1, 2, 3, 4]; 48], registers: vec![(0xce, 0, 1)] })
    }

    fn tsc(&self) -> Result<Tsc> {
        Ok(Tsc { mode: 0, khz: 2_000_000, nanoseconds: 5, incarnation: 0 })
    }

    fn hvm_context(&self) -> Result<Vec<u8>> {
        Ok(vec![3; 4109])
    }

    fn hvm_param(&self, param: HvmParam) -> Result<u64> {
        Ok(if param == HvmParam::StorePfn { END - 4 } else { 0 })
    }
}

/// Answers, and lets things happen to the domain.
struct Events {
    memory: Rc<RefCell<Memory>>,
    /// Called for each question, before it is answered.
    change: Change,
    suspends: bool,
    asked: Vec<String>,
    /// Those that are not the last.
    verdicts: Vec<Verdict>,
    last: Verdict,
}

impl Events {
    fn new(fake: &Fake, change: impl FnMut(&str, &mut Memory) + 'static) -> Self {
        let memory = Rc::clone(&fake.memory);
        let (change, last) = (Box::new(change), Verdict::StopAndCopy);
        Self { memory, change, suspends: true, asked: Vec::new(), verdicts: Vec::new(), last }
    }

    fn ask(&mut self, question: String) {
        (self.change)(&question, &mut self.memory.borrow_mut());
        self.asked.push(question);
    }
}

impl SaveEvents for Events {
    fn suspend(&mut self) -> bool {
        self.ask("suspend".to_owned());
        self.memory.borrow_mut().suspended = self.suspends;
        self.suspends
    }

    fn log_dirty(&mut self, on: bool) -> bool {
        self.ask(format!("log-dirty {on}"));
        true
    }

    fn precopy(&mut self, stats: Precopy) -> Verdict {
        let Precopy { round, written_pages, dirty_pages, elapsed } = stats;
        assert_eq!(elapsed.is_zero(), round == 0, "{stats:?}");
        self.ask(format!("precopy {round} {written_pages} {dirty_pages:?}"));
        if self.verdicts.is_empty() { self.last } else { self.verdicts.remove(0) }
    }
}

/// What was in a stream.
#[derive(Default)]
struct Image {
    /// The types of the records, those with pages but once.
    kinds: Vec<u32>,
    pages: BTreeMap<u64, u8>,
    /// How many pages were written, again or for the first time.
    written: u64,
    /// How many records have pages of more than one piece of 4 MiB.
    mixed: u32,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Image {
    fn read(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        let mut at = 40;
        while at < bytes.len() {
            let (kind, length) = (half(bytes, at), half(bytes, at + 4) as usize);
            let body = &bytes[at + 8..at + 8 + length];
            if image.kinds.last() != Some(&kind) || kind != kind::PAGE_DATA {
                image.kinds.push(kind);
            }
            if kind == kind::PAGE_DATA {
                image.load(body);
            }
            at += 8 + length.next_multiple_of(8);
        }
        assert_eq!(at, bytes.len());
        image
    }

    fn load(&mut self, body: &[u8]) {
        let count = half(body, 0) as usize;
        assert!((1..=BATCH).contains(&count));
        let contents = &body[8 + count * 8..];
        assert_eq!(contents.len(), count * PAGE_SIZE);
        let place = |index: usize| number(body, 8 + index * 8) / 1024;
        self.mixed += u32::from(place(0) != place(count - 1));
        for (index, content) in contents.chunks(PAGE_SIZE).enumerate() {
            assert!(content.iter().all(|byte| *byte == content[0]));
            // Type 0 and the page's number.
            self.pages.insert(number(body, 8 + index * 8), content[0]);
            self.written += 1;
        }
    }
}

fn save_until(
    fake: &mut Fake,
    live: bool,
    events: &mut Events,
    given_up: &dyn Fn() -> bool,
) -> Result<Image> {
    let (mut reader, writer) = pipe().expect("a pipe");
    let (result, bytes) = std::thread::scope(|scope| {
        let bytes = scope.spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes).expect("read")
        });
        let result = save(fake, writer.as_fd(), live, events, given_up);
        drop(writer);
        (result, bytes.join().expect("a reader"))
    });
    assert_eq!(events.asked.last().map(String::as_str), Some("log-dirty false"));
    assert!(!fake.memory.borrow().recording);
    result.map(|()| Image::read(&bytes))
}

fn saved(fake: &mut Fake, live: bool, events: &mut Events) -> Result<Image> {
    save_until(fake, live, events, &|| false)
}

/// All that a stream has, each kind once but for rounds' pages.
const KINDS: [u32; 8] = [17, 18, 16, 1, 8, 9, 10, 0];

#[test]
fn a_suspended_domains_pages_are_all_written_and_few_are_asked_for() {
    let mut fake = Fake::new(3000);
    let mut events = Events::new(&fake, |_, _| ());
    let image = saved(&mut fake, false, &mut events).expect("saved");
    assert_eq!(events.asked, ["log-dirty true", "suspend", "log-dirty false"]);
    assert_eq!(image.kinds, KINDS);
    let memory = fake.memory.borrow();
    assert_eq!(image.pages, memory.pages);
    assert_eq!((image.written, image.mixed), (3000 - 32 + 8, 0));
    assert!(memory.types <= 3000 - 32 + 8 + 4 * 1024, "{}", memory.types);
}

#[test]
fn pages_are_found_wherever_they_are() {
    let mut fake = Fake::new(1000);
    fake.size = (1 << 20) + 100_000;
    for page in [0x8_0000, 0xe_ffff, 0xf_0000, 0xf_1fff, 0xf_c3ff, 0xf_f000, 1 << 20, (1 << 20) + 99_999] {
        fake.memory.borrow_mut().pages.insert(page, 2);
    }
    let mut events = Events::new(&fake, |_, _| ());
    let image = saved(&mut fake, false, &mut events).expect("saved");
    assert_eq!(image.pages, fake.memory.borrow().pages);
}

#[test]
fn without_a_number_to_rely_on_every_page_is_asked_for() {
    let hidden: fn(&mut Memory) = |memory| memory.hidden = 2;
    let on_demand: fn(&mut Memory) = |memory| memory.on_demand = true;
    for unreliable in [hidden, on_demand] {
        for live in [false, true] {
            let mut fake = Fake::new(500);
            unreliable(&mut fake.memory.borrow_mut());
            let mut events = Events::new(&fake, |_, _| ());
            let image = saved(&mut fake, live, &mut events).expect("saved");
            let memory = fake.memory.borrow();
            assert_eq!(image.pages, memory.pages);
            // A live save asks again, once the domain stands still.
            assert_eq!(memory.types, if live { 2 * END } else { END });
        }
    }
}

#[test]
fn a_suspended_domains_page_that_cannot_be_mapped_fails_the_save() {
    for live in [false, true] {
        let mut fake = Fake::new(500);
        fake.change = RefCell::new(Box::new(|what, memory| {
            if what == "map" && memory.suspended {
                memory.pages.remove(&400);
            }
        }));
        let mut events = Events::new(&fake, |question, memory| {
            if question == "suspend" {
                memory.write(400);
            }
        });
        let error = saved(&mut fake, live, &mut events).map(|_| ()).expect_err("not complete");
        assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
        assert!(error.to_string().starts_with("xenforeignmemory_map for domain 7"), "{error}");
    }
}

#[test]
fn whatever_fails_the_recording_ends() {
    for live in [false, true] {
        let failing = |broken, suspends, last| {
            let mut fake = Fake::new(500);
            fake.broken.set(broken);
            let mut events = Events { suspends, last, ..Events::new(&fake, |_, _| ()) };
            saved(&mut fake, live, &mut events).map(|_| ()).map_err(|error| error.errno())
        };
        assert_eq!(failing("", true, Verdict::StopAndCopy), Ok(()));
        assert_eq!(failing("types", true, Verdict::StopAndCopy), Err(Some(Errno::EFAULT)));
        assert_eq!(failing("", false, Verdict::StopAndCopy), Err(Some(Errno::EINVAL)));
        if live {
            assert_eq!(failing("recording", true, Verdict::StopAndCopy), Err(Some(Errno::EFAULT)));
            assert_eq!(failing("", true, Verdict::Abort), Err(Some(Errno::ECANCELED)));
        }
    }
}

#[test]
fn a_save_that_is_given_up_ends_while_pages_are_looked_for() {
    let mut fake = Fake::new(500);
    fake.memory.borrow_mut().hidden = 1;
    let asked = Rc::clone(&fake.memory);
    let mut events = Events::new(&fake, |_, _| ());
    let result = save_until(&mut fake, false, &mut events, &|| asked.borrow().types > 10_000);
    assert_eq!(result.map(|_| ()).map_err(|error| error.errno()), Err(Some(Errno::ECANCELED)));
    assert!(asked.borrow().types < 12_000);
}

#[test]
fn a_reader_that_is_gone_fails_the_save() {
    let mut fake = Fake::new(500);
    let mut events = Events::new(&fake, |_, _| ());
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let result = save(&mut fake, writer.as_fd(), false, &mut events, &|| false);
    assert_eq!(result.map_err(|error| error.errno()), Err(Some(Errno::EPIPE)));
    assert_eq!(events.asked, ["log-dirty true", "log-dirty false"]);
}

#[test]
fn only_the_types_that_have_contents_are_saved() {
    let fake = Fake::new(1);
    let contents = |kind: u32| has_contents(&fake, kind.into()).map_err(|error| error.errno());
    for kind in [
        xen_sys::XEN_DOMCTL_PFINFO_NOTAB,
        xen_sys::XEN_DOMCTL_PFINFO_L4TAB,
        xen_sys::XEN_DOMCTL_PFINFO_L1TAB | xen_sys::XEN_DOMCTL_PFINFO_LPINTAB,
    ] {
        assert_eq!(contents(kind), Ok(true), "{kind:#x}");
    }
    for kind in [
        xen_sys::XEN_DOMCTL_PFINFO_XTAB,
        xen_sys::XEN_DOMCTL_PFINFO_XALLOC,
        xen_sys::XEN_DOMCTL_PFINFO_BROKEN,
    ] {
        assert_eq!(contents(kind), Ok(false), "{kind:#x}");
    }
    assert_eq!(contents(5 << 28), Err(Some(Errno::EPROTO)));
    assert!(has_contents(&fake, u64::MAX).is_err());
}
