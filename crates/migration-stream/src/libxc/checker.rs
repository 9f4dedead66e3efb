use super::record::{Body, PAGE_SIZE, Phase, Record, STREAM};
use crate::error::StreamError;

const ID: u32 = 0x5845_4e46;
const VERSION: u32 = 3;
const IMAGE_HEADER: usize = 24;
const DOMAIN_HEADER: usize = 16;
const HVM: u32 = 2;
const PAGE_SHIFT: u16 = 12;

/// What a whole stream had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The major version of the Xen that wrote it.
    pub xen_major: u32,
    /// Its minor version.
    pub xen_minor: u32,
    /// Pages with content. A page that was sent again counts again.
    pub pages: u64,
    /// Entries of PAGE_DATA, with or without a page.
    pub entries: u64,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// Checks libxc's stream in any pieces, finds its end, and stores no page.
///
/// ```
/// use migration_stream::{StreamError, libxc::Checker};
/// let mut checker = Checker::default();
/// assert!(matches!(checker.take(b"something else and more of it"), Err(StreamError::Mark { offset: 0, .. })));
/// ```
#[derive(Clone, Debug)]
pub struct Checker {
    expects: Expects,
    /// The beginning of what is expected, never more than 8 KiB.
    buffer: Vec<u8>,
    phase: Phase,
    record: Record,
    summary: Summary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    ImageHeader,
    DomainHeader,
    Record,
    /// Number of entries of PAGE_DATA or HVM_PARAMS.
    Count(Body),
    /// Entries of PAGE_DATA.
    Entries(u32),
    /// Bytes that mean nothing here.
    Skipped(u32),
    Padding(usize),
    Nothing,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            expects: Expects::ImageHeader,
            buffer: Vec::new(),
            phase: Phase::Cpuid,
            record: Record { kind: 0, length: 0, offset: 0 },
            summary: Summary::default(),
        }
    }
}

impl Checker {
    /// Takes the next bytes and returns how many of them belong to the stream: fewer than all when its end is among
    /// them, and none after it.
    ///
    /// # Errors
    /// When the bytes cannot be the stream of an HVM guest; the checker must not be used any more then.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let mut rest = bytes;
        while !rest.is_empty() && self.expects != Expects::Nothing {
            let used = self.step(rest)?;
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(bytes.len() - rest.len())
    }

    /// Whether the end has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.expects == Expects::Nothing
    }

    /// Returns what the stream had.
    ///
    /// # Errors
    /// When its end has not come.
    pub fn finish(self) -> Result<Summary, StreamError> {
        if self.is_complete() {
            return Ok(self.summary);
        }
        let missing = (self.wanted() - self.buffer.len()).max(1) as u64;
        Err(StreamError::Truncated { what: STREAM, offset: self.summary.bytes, missing })
    }

    /// Bytes of what is expected, in all.
    fn wanted(&self) -> usize {
        match self.expects {
            Expects::ImageHeader => IMAGE_HEADER,
            Expects::DomainHeader => DOMAIN_HEADER,
            Expects::Record | Expects::Count(_) => 8,
            Expects::Entries(count) => count as usize * 8,
            Expects::Skipped(left) => left as usize,
            Expects::Padding(left) => left,
            Expects::Nothing => 0,
        }
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let wanted = self.wanted() - self.buffer.len();
        let used = wanted.min(bytes.len());
        self.summary.bytes += used as u64;
        if let Expects::Skipped(left) = self.expects {
            // No more than `left` were used.
            self.skip(left.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)));
            return Ok(used);
        }
        self.buffer.extend_from_slice(bytes.get(..used).unwrap_or_default());
        if used == wanted {
            let complete = std::mem::take(&mut self.buffer);
            self.complete(&complete)?;
        }
        Ok(used)
    }

    fn complete(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match self.expects {
            Expects::ImageHeader => self.image_header(bytes),
            Expects::DomainHeader => self.domain_header(bytes),
            Expects::Record => self.record(bytes),
            Expects::Count(body) => self.count(body, bytes),
            Expects::Entries(_) => self.entries(bytes),
            Expects::Padding(_) if bytes.iter().any(|byte| *byte != 0) => {
                let offset = self.summary.bytes - bytes.len() as u64;
                Err(StreamError::Padding { stream: STREAM, offset })
            }
            Expects::Padding(_) => {
                self.expects = Expects::Record;
                Ok(())
            }
            Expects::Skipped(_) | Expects::Nothing => Ok(()),
        }
    }

    fn image_header(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let (marker, id, version) = (le64(bytes, 0), be32(bytes, 8), be32(bytes, 12));
        if marker != u64::MAX || id != ID {
            return Err(StreamError::Mark { what: STREAM, offset: 0 });
        }
        if version != VERSION {
            return Err(StreamError::Version { what: STREAM, offset: 12, found: version, known: VERSION });
        }
        let options = le64(bytes, 16);
        if options != 0 {
            return Err(StreamError::Options { what: STREAM, offset: 16, found: options });
        }
        self.expects = Expects::DomainHeader;
        Ok(())
    }

    fn domain_header(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let offset = IMAGE_HEADER as u64;
        let kind = le32(bytes, 0);
        if kind != HVM {
            return Err(StreamError::GuestType { offset, found: kind });
        }
        let [low, high, reserved_low, reserved_high] = le32(bytes, 4).to_le_bytes();
        let shift = u16::from_le_bytes([low, high]);
        if shift != PAGE_SHIFT {
            return Err(StreamError::PageSize { offset, found: shift });
        }
        let reserved = u16::from_le_bytes([reserved_low, reserved_high]);
        if reserved != 0 {
            return Err(StreamError::Options { what: STREAM, offset: offset + 6, found: reserved.into() });
        }
        self.summary.xen_major = le32(bytes, 8);
        self.summary.xen_minor = le32(bytes, 12);
        self.expects = Expects::Record;
        Ok(())
    }

    fn record(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let offset = self.summary.bytes - 8;
        self.record = Record { kind: le32(bytes, 0), length: le32(bytes, 4), offset };
        let (body, phase) = self.record.judge(self.phase)?;
        self.phase = phase;
        match body {
            Body::Opaque => self.skip(self.record.length),
            Body::Pages | Body::Params => self.expects = Expects::Count(body),
            Body::End => self.expects = Expects::Nothing,
        }
        Ok(())
    }

    fn count(&mut self, body: Body, bytes: &[u8]) -> Result<(), StreamError> {
        let count = self.record.count(body, le32(bytes, 0), le32(bytes, 4))?;
        match body {
            Body::Pages => self.expects = Expects::Entries(count),
            _ => self.skip(self.record.length - 8),
        }
        Ok(())
    }

    fn entries(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut pages = 0;
        let (entries, _) = bytes.as_chunks::<8>();
        for entry in entries {
            pages += u32::from(self.record.has_page(u64::from_le_bytes(*entry))?);
        }
        let content = pages * PAGE_SIZE;
        let before = 8 + bytes.len() as u64;
        if u64::from(self.record.length) != before + u64::from(content) {
            return Err(self.record.bad_length());
        }
        self.summary.pages += u64::from(pages);
        self.summary.entries += entries.len() as u64;
        self.skip(content);
        Ok(())
    }

    /// Goes on to what follows so many bytes of a body.
    fn skip(&mut self, left: u32) {
        self.expects = match (left, (8 - self.record.length as usize % 8) % 8) {
            (0, 0) => Expects::Record,
            (0, padding) => Expects::Padding(padding),
            (left, _) => Expects::Skipped(left),
        };
    }
}

/// Returns the four bytes from `at` on, which the caller knows to be there.
fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .expect("the buffer has as many bytes as were expected")
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(four(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(four(bytes, at))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at + 4)) << 32 | u64::from(le32(bytes, at))
}
