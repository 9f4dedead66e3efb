//! One connection to libxenctrl, with what it logs.

use core::ffi::{CStr, c_char, c_int, c_ulong};
use core::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use xen_sys::{__va_list_tag, xc_interface, xentoollog_level, xentoollog_logger};
use xen_types::{DomId, KiB};

use crate::error::{Refusal, Result, XenError};

/// The most messages of the library that an error carries; the first ones, which name the cause.
const MAX_MESSAGES: usize = 16;

/// A libxenctrl handle. It is used by one thread at a time.
pub(crate) struct Handle {
    xc: NonNull<xc_interface>,
    // Behind a raw pointer, because the library holds its address too.
    log: NonNull<Log>,
}

// SAFETY: libxenctrl keeps nothing that belongs to a thread in a handle; it must only not be used by two at once, which
// `&Handle` not being shared (the type is not `Sync`) ensures.
unsafe impl Send for Handle {}

impl Handle {
    /// Opens a connection to Xen.
    pub(crate) fn open() -> Result<Self> {
        Self::open_with(Listener::default())
    }

    /// Opens a connection to Xen, of which another hears too.
    pub(crate) fn open_with(listener: Listener) -> Result<Self> {
        let vtable = xentoollog_logger {
            vmessage: Some(on_message),
            progress: Some(on_progress),
            destroy: Some(on_destroy),
        };
        let log = Box::into_raw(Box::new(Log { vtable, said: Mutex::new(Vec::new()), listener }));
        // SAFETY: `log` starts with the logger's functions and lives until after the handle is closed. One logger
        // serves for both of the library's purposes.
        let xc = unsafe { xen_sys::xc_interface_open(log.cast(), log.cast(), 0) };
        let errno = Errno::last();
        // SAFETY: `Box::into_raw` never returns null.
        let log = unsafe { NonNull::new_unchecked(log) };
        let Some(xc) = NonNull::new(xc) else {
            // SAFETY: the library gave the handle up and has forgotten the logger, whose box this is.
            drop(unsafe { Box::from_raw(log.as_ptr()) });
            return Err(XenError::Open { device: "/dev/xen/privcmd", source: errno.into() });
        };
        Ok(Self { xc, log })
    }

    /// The connection, for calls that are made in place.
    pub(crate) const fn xc(&self) -> *mut xc_interface {
        self.xc.as_ptr()
    }

    /// Makes one call and turns its refusal into an error. The library's calls return a negative number then, and
    /// `errno` or the number itself has the reason.
    pub(crate) fn call(
        &self,
        operation: &'static str,
        domid: Option<DomId>,
        call: impl FnOnce(*mut xc_interface) -> c_int,
    ) -> Result<c_int> {
        self.forget();
        Errno::clear();
        let result = call(self.xc());
        let errno = Errno::last();
        if result >= 0 { Ok(result) } else { Err(self.refusal(operation, domid, result, errno)) }
    }

    /// Forgets what was said so far, before a new call.
    pub(crate) fn forget(&self) {
        self.said().clear();
        // SAFETY: the handle is open.
        unsafe { xen_sys::xc_clear_last_error(self.xc()) };
    }

    /// The error for a call that returned `result` and left `errno`, with what was said since [`Self::forget`].
    pub(crate) fn refusal(
        &self,
        operation: &'static str,
        domid: Option<DomId>,
        result: c_int,
        errno: Errno,
    ) -> XenError {
        let errno = match (errno as i32, result) {
            (0, -4095..=-2) => Errno::from_raw(-result),
            // -1 without a reason: the library found the request itself at fault, and said so in its log.
            (0, _) => Errno::EINVAL,
            _ => errno,
        };
        // SAFETY: the handle is open, and the library's record of the last error lives in it.
        let code = unsafe { xen_sys::xc_get_last_error(self.xc()).as_ref() }.map(|error| error.code);
        // When a domain's memory cannot be had, `errno` is whatever the last step left behind.
        let errno = if code == Some(xen_sys::XC_OUT_OF_MEMORY) { Errno::ENOMEM } else { errno };
        let said = self.said().clone();
        let free = if errno == Errno::ENOMEM { self.free_memory() } else { None };
        XenError::Refused(Box::new(Refusal { operation, domid, errno, said, free }))
    }

    /// Memory that no domain has, when Xen says.
    pub(crate) fn free_memory(&self) -> Option<KiB> {
        let mut info = xen_sys::xc_physinfo_t::default();
        // SAFETY: the structure is the one that the call fills.
        let result = unsafe { xen_sys::xc_physinfo(self.xc(), &raw mut info) };
        (result >= 0).then(|| KiB(info.free_pages.saturating_mul(4)))
    }

    /// Builds a domain, and says in its error how much memory was free before: afterwards the failed domain has it.
    pub(crate) fn knowing_free<T>(&self, build: impl FnOnce() -> Result<T>) -> Result<T> {
        let free = self.free_memory();
        build().map_err(|error| match error {
            XenError::Refused(mut refusal) => {
                refusal.free = free.filter(|_| refusal.errno == Errno::ENOMEM);
                XenError::Refused(refusal)
            }
            other => other,
        })
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        // SAFETY: the log lives as long as the handle.
        let log = unsafe { self.log.as_ref() };
        log.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was opened by `open` and this is its last use.
        unsafe { xen_sys::xc_interface_close(self.xc.as_ptr()) };
        // SAFETY: the box was made by `open`, and the library that knew it has just closed.
        drop(unsafe { Box::from_raw(self.log.as_ptr()) });
    }
}

/// Who else hears what the library says.
#[derive(Clone, Copy, Default)]
pub(crate) struct Listener {
    /// Is given each warning and error.
    pub(crate) message: Option<fn(&str)>,
    /// Is told how much of a step is done, and how much there is.
    pub(crate) progress: Option<fn(u64, u64)>,
}

/// What the library takes for a logger, followed by what is ours.
#[repr(C)]
struct Log {
    vtable: xentoollog_logger,
    said: Mutex<Vec<String>>,
    listener: Listener,
}

/// Keeps what the library says. All goes to `tracing`; warnings and errors are remembered for the caller's error too.
unsafe extern "C" fn on_message(
    logger: *mut xentoollog_logger,
    level: xentoollog_level,
    _errno: c_int,
    _context: *const c_char,
    format: *const c_char,
    arguments: *mut __va_list_tag,
) {
    let saved = Errno::last();
    let mut text = [0_u8; 512];
    // SAFETY: the library gives a format and its arguments, and the buffer's true size is given.
    unsafe { xen_sys::vsnprintf(text.as_mut_ptr().cast(), text.len() as c_ulong, format, arguments) };
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy();
    let text = text.trim();
    if level >= xen_sys::XTL_WARN {
        tracing::warn!(target: "xen::library", "{text}");
        // SAFETY: the library gives back the pointer of `Handle::open`, which is to a whole `Log`.
        let log = unsafe { &*logger.cast::<Log>() };
        if let Some(heard) = log.listener.message {
            heard(text);
        }
        let mut said = log.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < MAX_MESSAGES && !text.is_empty() {
            said.push(text.to_owned());
        }
    } else {
        tracing::debug!(target: "xen::library", "{text}");
    }
    // The library looks at `errno` after it has logged.
    saved.set();
}

/// Passes on how far the library is.
unsafe extern "C" fn on_progress(
    logger: *mut xentoollog_logger,
    _context: *const c_char,
    _doing: *const c_char,
    _percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    let saved = Errno::last();
    // SAFETY: the library gives back the pointer of `Handle::open_with`, which is to a whole `Log`.
    let log = unsafe { &*logger.cast::<Log>() };
    if let Some(heard) = log.listener.progress {
        heard(done, total);
    }
    saved.set();
}

unsafe extern "C" fn on_destroy(_logger: *mut xentoollog_logger) {}
