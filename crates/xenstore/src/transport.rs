use core::time::Duration;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::StoreError;
use crate::wire::{ErrorCode, HEADER_LEN, PAYLOAD_MAX, Request};

/// How long a call waits for xenstored unless it was told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where xenstored listens, in the order of preference (`tools/libs/store/xs.c`, `tools/xenstore/xs_lib.c`).
const PLACES: [&str; 4] =
    ["/run/xenstored/socket", "/var/run/xenstored/socket", "/dev/xen/xenbus", "/proc/xen/xenbus"];

/// A connected socket of xenstored, or the kernel's xenbus device, in non-blocking mode.
#[derive(Debug)]
pub(crate) struct Transport {
    fd: OwnedFd,
    /// It is the kernel's device.
    ///
    /// Linux keeps one request of an open device in a buffer that the next write changes before xenstored has the
    /// first (seen with 6.1: `drivers/xen/xenbus/xenbus_dev_frontend.c`), so only one may be on its way. The header
    /// counts as part of that buffer, and a second watch with the same path and token is let through.
    is_device: bool,
}

/// Why a transport moved no bytes.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The other side is gone.
    Closed,
    /// The time is up.
    Late,
    /// The kernel refused in xenstored's place.
    Refused(ErrorCode),
    /// The kernel refused.
    Failed(io::Error),
}

impl Transport {
    /// Connects to the place that `XENSTORED_PATH` names, or to the first of the usual ones that is there.
    pub(crate) fn open() -> Result<Self, StoreError> {
        if let Some(path) = std::env::var_os("XENSTORED_PATH") {
            return Self::open_path(Path::new(&path));
        }
        for place in PLACES.map(Path::new) {
            match Self::open_path(place) {
                Err(StoreError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                // A socket that is there and refuses is a dead xenstored's. The kernel's device would take requests for
                // it all the same, and who makes one could not even be killed any more.
                outcome => return outcome,
            }
        }
        Err(StoreError::Connect { path: PathBuf::from(PLACES[0]), source: io::ErrorKind::NotFound.into() })
    }

    /// Connects to the socket or opens the device at `path`.
    pub(crate) fn open_path(path: &Path) -> Result<Self, StoreError> {
        let connect = || {
            if std::fs::metadata(path)?.file_type().is_socket() {
                return Self::from_stream(UnixStream::connect(path)?);
            }
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(path)?;
            Ok(Self { fd: device.into(), is_device: true })
        };
        connect().map_err(|source| StoreError::Connect { path: path.to_owned(), source })
    }

    pub(crate) fn from_stream(stream: UnixStream) -> io::Result<Self> {
        let fd = OwnedFd::from(stream);
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, is_device: false })
    }

    /// Whether only one request may be on its way.
    pub(crate) const fn is_device(&self) -> bool {
        self.is_device
    }

    /// The most bytes of payload that a request may have.
    pub(crate) const fn payload_max(&self) -> usize {
        if self.is_device { PAYLOAD_MAX - HEADER_LEN } else { PAYLOAD_MAX }
    }

    /// The bytes of a request, when it is not too long for this transport.
    pub(crate) fn encode(&self, request: &Request, req_id: u32, tx_id: u32) -> Result<Vec<u8>, StoreError> {
        let (length, limit) = (request.payload().len(), self.payload_max());
        let too_long = || StoreError::TooLong { operation: request.operation(), length, limit };
        if length > limit {
            return Err(too_long());
        }
        request.encode(req_id, tx_id).map_err(|_| too_long())
    }

    /// Reads what is there, waiting for the first byte.
    ///
    /// The xenbus device wakes its reader for whole messages, but hands them out in any pieces that fit.
    pub(crate) fn read(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize, Stopped> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(0) => return Err(Stopped::Closed),
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN) => wait_for(self.fd.as_fd(), PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(stopped(errno)),
            }
        }
    }

    /// Reads what is there without waiting; nothing is 0 bytes.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> Result<usize, Stopped> {
        match self.read(buffer, Instant::now()) {
            Err(Stopped::Late) => Ok(0),
            other => other,
        }
    }

    /// Writes one whole message.
    ///
    /// It is one `write` where the socket has the room: the xenbus device takes one message in a write and drops
    /// what is behind it.
    pub(crate) fn write_message(&self, message: &[u8], deadline: Instant) -> Result<(), Stopped> {
        let mut rest = message;
        while !rest.is_empty() {
            match nix::unistd::write(&self.fd, rest) {
                Ok(count) => rest = &rest[count.min(rest.len())..],
                Err(Errno::EAGAIN) => wait_for(self.fd.as_fd(), PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.write_stopped(errno)),
            }
        }
        Ok(())
    }
}

impl Transport {
    /// The device carries out watches itself, and gives xenstored's error as that of the write.
    fn write_stopped(&self, errno: Errno) -> Stopped {
        match ErrorCode::from_name(&format!("{errno:?}")) {
            ErrorCode::Other(_) | ErrorCode::Io | ErrorCode::Again => stopped(errno),
            code if self.is_device => Stopped::Refused(code),
            _ => stopped(errno),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn stopped(errno: Errno) -> Stopped {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => Stopped::Closed,
        other => Stopped::Failed(other.into()),
    }
}

fn wait_for(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> Result<(), Stopped> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Stopped::Late);
        }
        match poll(&mut [PollFd::new(fd, what)], poll_timeout(left)) {
            // A hang-up counts as readable: the read says what happened.
            Ok(1..) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Stopped::Failed(errno.into())),
        }
    }
}

/// A time for `poll`, rounded up so that it does not spin in the last millisecond.
pub(crate) fn poll_timeout(left: Duration) -> PollTimeout {
    let millis = left.as_millis().saturating_add(1);
    PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}
