use crate::error::StreamError;

/// What errors call the stream.
pub(super) const STREAM: &str = "libxc's stream";
pub(super) const PAGE_SIZE: u32 = 4096;
/// Bit 31 of a type: a reader that does not know the record skips it.
const OPTIONAL: u32 = 0x8000_0000;
/// The most that the body of a record may have that is not known, in bytes.
const MAX_OPTIONAL: u32 = 1 << 20;
/// The most pages of one record.
const MAX_PAGES: u32 = 1024;
const MAX_POLICY: u32 = 1 << 20;
/// 128 vCPUs, each with 12 kB of registers and an APIC, and Xen's own devices.
const MAX_CONTEXT: u32 = 16 << 20;
/// Far more than Xen has (`HVM_NR_PARAMS`).
const MAX_PARAMS: u32 = 1024;

/// How far the stream has come: what is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Cpuid,
    Msr,
    StaticEnd,
    Pages,
    Context,
    Params,
    End,
}

impl Phase {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cpuid => "CPUID_POLICY",
            Self::Msr => "MSR_POLICY",
            Self::StaticEnd => "STATIC_DATA_END",
            Self::Pages => "PAGE_DATA or TSC_INFO",
            Self::Context => "HVM_CONTEXT",
            Self::Params => "HVM_PARAMS",
            Self::End => "END",
        }
    }
}

/// A record's beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) kind: u32,
    pub(super) length: u32,
    /// Where it begins.
    pub(super) offset: u64,
}

/// What is to be done with a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Its bytes mean nothing here.
    Opaque,
    /// It is of PAGE_DATA.
    Pages,
    /// It is of HVM_PARAMS.
    Params,
    /// The stream is over.
    End,
}

impl Record {
    /// Checks that the record may come now and can have its length; returns what is in it and what may come next.
    pub(super) fn judge(self, phase: Phase) -> Result<(Body, Phase), StreamError> {
        let Self { kind, length, offset } = self;
        let (due, next, body) = match kind {
            0x00 => (Phase::End, Phase::End, Body::End),
            0x01 => (Phase::Pages, Phase::Pages, Body::Pages),
            0x08 => (Phase::Pages, Phase::Context, Body::Opaque),
            0x09 => (Phase::Context, Phase::Params, Body::Opaque),
            0x0a => (Phase::Params, Phase::End, Body::Params),
            // VERIFY, which libxenguest writes if it is asked to debug.
            0x0d => (Phase::Pages, Phase::Pages, Body::Opaque),
            0x0e | 0x0f => return Err(StreamError::Checkpoint { stream: STREAM, kind, offset }),
            0x10 => (Phase::StaticEnd, Phase::Pages, Body::Opaque),
            0x11 => (Phase::Cpuid, Phase::Msr, Body::Opaque),
            0x12 => (Phase::Msr, Phase::StaticEnd, Body::Opaque),
            _ if kind & OPTIONAL != 0 => (phase, phase, Body::Opaque),
            _ => return Err(StreamError::UnknownRecord { stream: STREAM, kind, offset }),
        };
        if due != phase {
            return Err(StreamError::OutOfOrder { stream: STREAM, kind, offset, expected: phase.name() });
        }
        if !Self::can_have(kind, length) {
            return Err(self.bad_length());
        }
        Ok((body, next))
    }

    fn can_have(kind: u32, length: u32) -> bool {
        match kind {
            0x00 | 0x0d | 0x10 => length == 0,
            0x01 => (16..=8 + MAX_PAGES * (8 + PAGE_SIZE)).contains(&length) && length.is_multiple_of(8),
            0x08 => length == 24,
            0x09 => (1..=MAX_CONTEXT).contains(&length),
            0x0a => (8..=8 + 16 * MAX_PARAMS).contains(&length) && length % 16 == 8,
            // One leaf, and one register.
            0x11 => (24..=MAX_POLICY).contains(&length) && length.is_multiple_of(24),
            0x12 => length <= MAX_POLICY && length.is_multiple_of(16),
            _ => length <= MAX_OPTIONAL,
        }
    }

    pub(super) const fn bad_length(self) -> StreamError {
        let Self { kind, length, offset } = self;
        StreamError::RecordLength { stream: STREAM, kind, offset, length }
    }

    /// The number of entries of PAGE_DATA or HVM_PARAMS, from the first bytes of the body. It fits the length.
    pub(super) fn count(self, body: Body, count: u32, zero: u32) -> Result<u32, StreamError> {
        if zero != 0 {
            let offset = self.offset + 12;
            return Err(StreamError::Options { what: STREAM, offset, found: zero.into() });
        }
        let rest = self.length.saturating_sub(8);
        let fits = match body {
            Body::Pages => (1..=MAX_PAGES).contains(&count) && count * 8 <= rest,
            _ => count <= MAX_PARAMS && count * 16 == rest,
        };
        if fits { Ok(count) } else { Err(self.bad_length()) }
    }

    /// Whether an entry of PAGE_DATA has a page.
    pub(super) fn has_page(self, entry: u64) -> Result<bool, StreamError> {
        const RESERVED: u64 = 0x0ff0_0000_0000_0000;
        match entry >> 60 {
            _ if entry & RESERVED != 0 => Err(StreamError::Page { offset: self.offset, found: entry }),
            0 => Ok(true),
            // Broken, allocated without content, not there.
            13..=15 => Ok(false),
            // Page tables are of PV guests.
            _ => Err(StreamError::Page { offset: self.offset, found: entry }),
        }
    }
}
