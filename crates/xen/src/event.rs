use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use xen_types::{DomId, EventPort};

use crate::device;
use crate::error::{Result, XenError};

const DEVICE: &str = "/dev/xen/evtchn";

/// A virtual interrupt that is not bound to a CPU (`VIRQ_*` in `xen/include/public/xen.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Virq {
    /// Xen's console ring has something new.
    ConRing = 8,
    /// A domain has shut down, crashed, or is gone. One listener in the whole host: xenstored has it and offers the
    /// watch `@releaseDomain` instead.
    DomExc = 3,
}

/// The event channels of this process (`/dev/xen/evtchn`).
///
/// A port that has fired is masked until [`unmask`](Self::unmask). The file is readable when one has fired: give
/// [`AsFd`] to epoll or tokio's `AsyncFd`, then call [`pending`](Self::pending) until it returns `None`. Dropping the
/// value unbinds all of its ports.
#[derive(Debug)]
pub struct EventChannels {
    file: File,
}

impl EventChannels {
    /// Ports that [`all_pending`](Self::all_pending) takes at most.
    pub const PENDING_MAX: usize = 64;

    /// Opens the driver.
    ///
    /// # Errors
    /// When this is no Xen domain, or this process may not.
    pub fn open() -> Result<Self> {
        Ok(Self { file: device::open(DEVICE, libc::O_NONBLOCK)? })
    }

    /// Binds to a port that a domain offers to this one, and returns the local port. It fires once at once, because
    /// the domain may have fired it before.
    ///
    /// # Errors
    /// `EINVAL` when the port is not offered to this domain, `ESRCH` when there is no such domain.
    pub fn bind_interdomain(&self, domid: DomId, remote: EventPort) -> Result<EventPort> {
        let mut bind = BindInterdomain { remote_domain: domid.get().into(), remote_port: remote.get() };
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_bind_interdomain`.
        let port = unsafe { device::ioctl(&self.file, IOCTL_BIND_INTERDOMAIN, &mut bind) };
        new_port("bind an event channel", Some(domid), port)
    }

    /// Makes a port that `domid` may bind to.
    ///
    /// # Errors
    /// `ENOSPC` when there are no free ports.
    pub fn bind_unbound_port(&self, domid: DomId) -> Result<EventPort> {
        let mut remote = u32::from(domid.get());
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_bind_unbound_port`.
        let port = unsafe { device::ioctl(&self.file, IOCTL_BIND_UNBOUND_PORT, &mut remote) };
        new_port("make an event channel", Some(domid), port)
    }

    /// Binds a port to a virtual interrupt of the whole host.
    ///
    /// # Errors
    /// `EEXIST` when someone else has it, `EPERM` outside dom0.
    pub fn bind_virq(&self, virq: Virq) -> Result<EventPort> {
        let mut raw = virq as u32;
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_bind_virq`.
        let port = unsafe { device::ioctl(&self.file, IOCTL_BIND_VIRQ, &mut raw) };
        new_port("bind a virtual interrupt", None, port)
    }

    /// Releases a port.
    ///
    /// # Errors
    /// `ENOTCONN` when it is not bound here.
    pub fn unbind(&self, port: EventPort) -> Result<()> {
        let mut raw = port.get();
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_unbind`.
        let done = unsafe { device::ioctl(&self.file, IOCTL_UNBIND, &mut raw) };
        done.map(drop).map_err(|errno| XenError::refused("unbind an event channel", None, errno))
    }

    /// Fires the other end of a channel.
    ///
    /// # Errors
    /// `ENOTCONN` when the port is not bound here.
    pub fn notify(&self, port: EventPort) -> Result<()> {
        let mut raw = port.get();
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_notify`.
        let done = unsafe { device::ioctl(&self.file, IOCTL_NOTIFY, &mut raw) };
        done.map(drop).map_err(|errno| XenError::refused("notify an event channel", None, errno))
    }

    /// Takes the next port that has fired, which stays masked until [`unmask`](Self::unmask). Never waits: `None`
    /// when none has fired.
    ///
    /// # Errors
    /// `EFBIG` when more ports fired than the driver could remember; it has been reset then and all ports are to be
    /// looked at.
    pub fn pending(&self) -> Result<Option<EventPort>> {
        let mut raw = [0; 4];
        match self.read_pending(&mut raw)? {
            0 => Ok(None),
            _ => Ok(Some(EventPort(u32::from_ne_bytes(raw)))),
        }
    }

    /// Takes up to [`PENDING_MAX`](Self::PENDING_MAX) ports that have fired and are now masked, without waiting. When
    /// there are fewer, there were no more.
    ///
    /// # Errors
    /// As [`pending`](Self::pending).
    pub fn all_pending(&self) -> Result<Vec<EventPort>> {
        let mut raw = [0; 4 * Self::PENDING_MAX];
        let count = self.read_pending(&mut raw)?;
        let (ports, _) = raw[..count].as_chunks::<4>();
        Ok(ports.iter().map(|port| EventPort(u32::from_ne_bytes(*port))).collect())
    }

    /// Reads whole ports; 0 bytes when there are none.
    fn read_pending(&self, raw: &mut [u8]) -> Result<usize> {
        match (&self.file).read(raw) {
            Ok(count) if count > 0 && count.is_multiple_of(4) => Ok(count),
            Ok(_) => Err(XenError::refused("read pending event channels", None, Errno::EIO)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                if errno == Errno::EFBIG {
                    self.reset()?;
                }
                Err(XenError::refused("read pending event channels", None, errno))
            }
        }
    }

    /// Lets a port fire again.
    ///
    /// # Errors
    /// When the port is not bound here.
    pub fn unmask(&self, port: EventPort) -> Result<()> {
        (&self.file).write_all(&port.get().to_ne_bytes()).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            XenError::refused("unmask an event channel", None, errno)
        })
    }

    /// Gives up, for good, the right to bind channels with any other domain than this one.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn restrict(&self, domid: DomId) -> Result<()> {
        let mut raw = domid.get();
        // SAFETY: the argument has the layout of `struct ioctl_evtchn_restrict_domid`.
        let done = unsafe { device::ioctl(&self.file, IOCTL_RESTRICT_DOMID, &mut raw) };
        done.map(drop).map_err(|errno| XenError::refused("restrict event channels", Some(domid), errno))
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: the request takes no argument, and what is given is not looked at.
        let done = unsafe { device::ioctl(&self.file, IOCTL_RESET, &mut ()) };
        done.map(drop).map_err(|errno| XenError::refused("reset the event channel driver", None, errno))
    }
}

impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for EventChannels {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn new_port(operation: &'static str, domid: Option<DomId>, result: Result<i32, Errno>) -> Result<EventPort> {
    let raw = result.map_err(|errno| XenError::refused(operation, domid, errno))?;
    u32::try_from(raw).map(EventPort).map_err(|_| XenError::refused(operation, domid, Errno::EIO))
}

#[repr(C)]
struct BindInterdomain {
    remote_domain: u32,
    remote_port: u32,
}

// Numbers and layouts: linux/include/uapi/xen/evtchn.h.
const IOCTL_BIND_VIRQ: libc::c_ulong = device::number::<u32>(b'E', 0);
const IOCTL_BIND_INTERDOMAIN: libc::c_ulong = device::number::<BindInterdomain>(b'E', 1);
const IOCTL_BIND_UNBOUND_PORT: libc::c_ulong = device::number::<u32>(b'E', 2);
const IOCTL_UNBIND: libc::c_ulong = device::number::<u32>(b'E', 3);
const IOCTL_NOTIFY: libc::c_ulong = device::number::<u32>(b'E', 4);
const IOCTL_RESET: libc::c_ulong = device::number::<()>(b'E', 5);
const IOCTL_RESTRICT_DOMID: libc::c_ulong = device::number::<u16>(b'E', 6);
