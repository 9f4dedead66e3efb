//! libxc's migration stream (`docs/specs/libxc-migration-stream.pandoc` of Xen), as far as a simulated domain has
//! something to put in: headers and records, written and read with bounds.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_types::Release;

use crate::error::Abandoned;
use crate::memory::{Cancel, make_blocking};

/// A record's type.
pub(super) mod record {
    pub(in crate::sim) const END: u32 = 0;
    pub(in crate::sim) const PAGE_DATA: u32 = 1;
    pub(in crate::sim) const TSC_INFO: u32 = 8;
    pub(in crate::sim) const HVM_CONTEXT: u32 = 9;
    pub(in crate::sim) const HVM_PARAMS: u32 = 0xa;
    pub(in crate::sim) const STATIC_DATA_END: u32 = 0x10;
    pub(in crate::sim) const CPUID_POLICY: u32 = 0x11;
    pub(in crate::sim) const MSR_POLICY: u32 = 0x12;
    /// A reader that does not know the type skips the record.
    pub(in crate::sim) const OPTIONAL: u32 = 1 << 31;
}

const MARKER: u64 = u64::MAX;
const ID: u32 = 0x5845_4e46;
const VERSION: u32 = 3;
const HVM: u32 = 2;
const PAGE_SHIFT: u16 = 12;
/// An ELF core file (`ET_CORE`) of 64 bits.
const CORE: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0";
/// The longest body that is read: 1024 pages with their numbers fit.
const MAX_BODY: u32 = 8 << 20;
/// What can be written to a pipe at once when there is room at all.
const PIECE: usize = 4096;

/// Why a stream ends early.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Abandoned(Abandoned),
    Late,
    Refused(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// A descriptor with a stream in it, for as long as the caller wants it.
pub(super) struct Stream<'a> {
    file: File,
    deadline: Instant,
    cancel: &'a Cancel,
}

impl<'a> Stream<'a> {
    pub(super) fn new(fd: BorrowedFd<'_>, deadline: Instant, cancel: &'a Cancel) -> Result<Self, Errno> {
        make_blocking(fd)?;
        let file = fd.try_clone_to_owned().map_err(|error| errno(&error))?.into();
        Ok(Self { file, deadline, cancel })
    }

    /// Fails when the caller does not want to wait any longer.
    pub(super) fn wanted(&self) -> Result<(), Fault> {
        if self.cancel.is_cancelled() {
            Err(Fault::Abandoned(Abandoned::Cancelled))
        } else if Instant::now() >= self.deadline {
            Err(Fault::Late)
        } else {
            Ok(())
        }
    }

    fn wait(&self, for_what: PollFlags) -> Result<(), Fault> {
        loop {
            self.wanted()?;
            let mut fds = [PollFd::new(self.file.as_fd(), for_what)];
            match poll(&mut fds, PollTimeout::from(50_u8)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for piece in bytes.chunks(PIECE) {
            self.wait(PollFlags::POLLOUT)?;
            self.file.write_all(piece).map_err(|error| errno(&error))?;
        }
        Ok(())
    }

    /// Reads so many bytes; a stream that ends before makes no sense.
    fn read(&mut self, length: usize) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; length];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            self.wait(PollFlags::POLLIN)?;
            let count = self.file.read(rest).map_err(|error| errno(&error))?;
            if count == 0 {
                return Err(Errno::EINVAL.into());
            }
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        Ok(bytes)
    }

    /// Writes the image header and the domain header.
    pub(super) fn write_headers(&mut self, release: Release) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        bytes.extend(MARKER.to_be_bytes());
        bytes.extend(ID.to_be_bytes());
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(HVM.to_le_bytes());
        bytes.extend(PAGE_SHIFT.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(u32::from(release.major).to_le_bytes());
        bytes.extend(u32::from(release.minor).to_le_bytes());
        self.write(&bytes)
    }

    /// Writes the beginning of an ELF core file's header, and so many pages.
    pub(super) fn write_core(&mut self, pages: u64) -> Result<(), Fault> {
        self.write(CORE)?;
        (0..pages).try_for_each(|_| self.write(&[0; 4096]))
    }

    /// Reads both headers, which must be those of an HVM domain.
    pub(super) fn read_headers(&mut self) -> Result<(), Fault> {
        let bytes = self.read(40)?;
        let good = bytes.starts_with(&MARKER.to_be_bytes())
            && bytes.get(8..12) == Some(&ID.to_be_bytes())
            && bytes.get(12..16) == Some(&VERSION.to_be_bytes())
            && number(&bytes, 24) == Some(HVM);
        if good { Ok(()) } else { Err(Errno::EINVAL.into()) }
    }

    /// Writes a record, padded to whole eights of bytes.
    pub(super) fn write_record(&mut self, kind: u32, body: &[u8]) -> Result<(), Fault> {
        let length = u32::try_from(body.len()).map_err(|_| Errno::E2BIG)?;
        let mut bytes = [kind.to_le_bytes(), length.to_le_bytes()].concat();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        self.write(&bytes)
    }

    /// Reads a record: its type and body.
    pub(super) fn read_record(&mut self) -> Result<(u32, Vec<u8>), Fault> {
        let head = self.read(8)?;
        let (Some(kind), Some(length)) = (number(&head, 0), number(&head, 4)) else {
            return Err(Errno::EINVAL.into());
        };
        if length > MAX_BODY {
            return Err(Errno::EINVAL.into());
        }
        let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        let mut body = self.read(length.next_multiple_of(8))?;
        body.truncate(length);
        Ok((kind, body))
    }
}

/// The little-endian number at this place.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The little-endian number at this place.
pub(super) fn long_number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
