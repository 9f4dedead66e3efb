//! Xen's own configuration parsers, libxlutil of Xen 4.17 or 4.20 and xl of Xen 4.17, for tests that compare ours with
//! them.
//!
//! Nothing that is shipped uses this crate. It calls libxlutil, which works without Xen, through the functions that
//! `libxlutil.h` declares, and copies everything out.

pub mod xl;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

/// `XLU_LIST` of `enum XLU_ConfigValueType`; the other one is `XLU_STRING`.
const XLU_LIST: c_int = 1;

/// The beginning of `libxl_device_disk` (`_libxl_types.h`, the same in Xen 4.17 and 4.20), as far as libxlutil sets it.
#[repr(C)]
struct RawDisk {
    backend_domid: u32,
    backend_domname: *mut c_char,
    pdev_path: *mut c_char,
    vdev: *mut c_char,
    backend: c_int,
    format: c_int,
    script: *mut c_char,
    removable: c_int,
    readwrite: c_int,
    is_cdrom: c_int,
    direct_io_safe: bool,
    discard_enable: c_int,
    specification: c_int,
    /// More than what follows, 72 bytes in 4.17 and 80 in 4.20.
    rest: [u64; 32],
}

/// What is before the rate in `libxl_device_nic`, in units of 8 bytes: 4.20 has the VLAN there.
const BEFORE_RATE: usize = if cfg!(xlutil = "4.17") { 10 } else { 11 };

/// The beginning of `libxl_device_nic`, likewise.
#[repr(C)]
struct RawNic {
    before: [u64; BEFORE_RATE],
    rate_bytes_per_interval: u64,
    rate_interval_usecs: u32,
    /// More than what follows, 412 bytes.
    rest: [u64; 128],
}

const _: () = {
    // The offsets that offsetof() gives for Debian 12's libxen-dev on amd64; in Debian 13's, one pointer is before the rate.
    assert!(std::mem::offset_of!(RawDisk, pdev_path) == 16);
    assert!(std::mem::offset_of!(RawDisk, script) == 40);
    assert!(std::mem::offset_of!(RawDisk, direct_io_safe) == 60);
    assert!(std::mem::offset_of!(RawDisk, discard_enable) == 64);
    assert!(std::mem::offset_of!(RawDisk, specification) == 68);
    assert!(size_of::<RawDisk>() > 144);
    assert!(std::mem::offset_of!(RawNic, rate_bytes_per_interval) == 8 * BEFORE_RATE);
    assert!(size_of::<RawNic>() > 504);
};

unsafe extern "C" {
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut c_void;
    fn fclose(file: *mut c_void) -> c_int;
    fn xlu_cfg_init(report: *mut c_void, report_filename: *const c_char) -> *mut c_void;
    fn xlu_cfg_readdata(config: *mut c_void, data: *const c_char, length: c_int) -> c_int;
    fn xlu_cfg_destroy(config: *mut c_void);
    fn xlu_cfg_get_string(
        config: *const c_void,
        name: *const c_char,
        value: *mut *const c_char,
        dont_warn: c_int,
    ) -> c_int;
    fn xlu_cfg_get_list(
        config: *const c_void,
        name: *const c_char,
        list: *mut *mut c_void,
        entries: *mut c_int,
        dont_warn: c_int,
    ) -> c_int;
    fn xlu_cfg_value_type(value: *const c_void) -> c_int;
    fn xlu_cfg_value_get_string(
        config: *const c_void,
        value: *mut c_void,
        string: *mut *mut c_char,
        dont_warn: c_int,
    ) -> c_int;
    fn xlu_cfg_value_get_list(
        config: *const c_void,
        value: *mut c_void,
        list: *mut *mut c_void,
        dont_warn: c_int,
    ) -> c_int;
    fn xlu_cfg_get_listitem2(list: *const c_void, entry: c_int) -> *mut c_void;
    fn xlu_disk_parse(
        config: *mut c_void,
        count: c_int,
        specs: *const *const c_char,
        disk: *mut RawDisk,
    ) -> c_int;
    fn xlu_vif_parse_rate(config: *mut c_void, rate: *const c_char, nic: *mut RawNic) -> c_int;
}

/// A value as libxlutil has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string or a number.
    Atom(Vec<u8>),
    /// A list.
    List(Vec<Value>),
}

/// A disk as libxlutil has it, before libxl looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `target`.
    pub target: Option<String>,
    /// `vdev`.
    pub vdev: Option<String>,
    /// `script`.
    pub script: Option<String>,
    /// `backend`.
    pub backend: Option<String>,
    /// `libxl_disk_backend`: 0 unknown, 1 phy, 2 tap, 3 qdisk, 4 standalone.
    pub backend_type: i32,
    /// `libxl_disk_format`: 1 qcow, 2 qcow2, 3 vhd, 4 raw, 5 empty, 6 qed.
    pub format: i32,
    /// `libxl_disk_specification`: 0 unknown, 1 xen, 2 virtio.
    pub specification: i32,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a CD drive.
    pub cdrom: bool,
    /// `direct-io-safe`.
    pub direct_io_safe: bool,
    /// `discard` or `no-discard`.
    pub discard: Option<bool>,
}

/// A parser of libxlutil; its messages go to `/dev/null`.
pub struct Oracle {
    config: NonNull<c_void>,
    report: NonNull<c_void>,
}

impl Oracle {
    /// Makes a parser.
    ///
    /// # Panics
    /// When there is no memory or no `/dev/null`.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: both arguments are C strings that live for the call.
        let report = unsafe { fopen(c"/dev/null".as_ptr(), c"w".as_ptr()) };
        let report = NonNull::new(report).expect("/dev/null can be opened for writing");
        // SAFETY: `report` is an open FILE that is closed only after the config is destroyed; the name is copied.
        let config = unsafe { xlu_cfg_init(report.as_ptr(), c"test".as_ptr()) };
        Self { config: NonNull::new(config).expect("xlu_cfg_init has memory"), report }
    }

    /// Parses a file; absent when libxlutil does not accept it.
    #[must_use]
    pub fn parse(self, text: &[u8]) -> Option<Parsed> {
        let length = c_int::try_from(text.len()).ok()?;
        // SAFETY: the config is live, and `length` bytes are readable at the pointer for the call, which copies them.
        let error = unsafe { xlu_cfg_readdata(self.config.as_ptr(), text.as_ptr().cast(), length) };
        (error == 0).then_some(Parsed { oracle: self })
    }

    /// Parses a disk's string; absent when libxlutil does not accept it.
    #[must_use]
    pub fn disk(&self, spec: &CStr) -> Option<Disk> {
        let mut raw = RawDisk {
            backend_domid: 0,
            backend_domname: ptr::null_mut(),
            pdev_path: ptr::null_mut(),
            vdev: ptr::null_mut(),
            backend: 0,
            format: 0,
            script: ptr::null_mut(),
            removable: 0,
            readwrite: 0,
            is_cdrom: 0,
            direct_io_safe: false,
            discard_enable: 0,
            specification: 0,
            rest: [0; 32],
        };
        let specs = [spec.as_ptr()];
        // SAFETY: the config is live, `specs` holds one C string, and `raw` begins like libxl_device_disk of the
        // linked version and is larger; zeroes are what libxl_device_disk_init makes of it.
        let error = unsafe { xlu_disk_parse(self.config.as_ptr(), 1, specs.as_ptr(), &raw mut raw) };
        // The strings that libxlutil allocated are left to the end of the test.
        (error == 0).then(|| Disk {
            target: string(raw.pdev_path),
            vdev: string(raw.vdev),
            script: string(raw.script),
            backend: string(raw.backend_domname),
            backend_type: raw.backend,
            format: raw.format,
            specification: raw.specification,
            writable: raw.readwrite != 0,
            cdrom: raw.is_cdrom != 0,
            direct_io_safe: raw.direct_io_safe,
            // libxl_defbool: 0 is the default, negative no, positive yes.
            discard: (raw.discard_enable != 0).then_some(raw.discard_enable > 0),
        })
    }

    /// Parses the rate of a network interface into bytes an interval and the interval in microseconds; absent when
    /// libxlutil does not accept it.
    #[must_use]
    pub fn rate(&self, rate: &CStr) -> Option<(u64, u32)> {
        let mut raw = RawNic {
            before: [0; BEFORE_RATE],
            rate_bytes_per_interval: 0,
            rate_interval_usecs: 0,
            rest: [0; 128],
        };
        // SAFETY: the config is live, the rate is a C string, and `raw` begins like libxl_device_nic of the linked
        // version and is larger; libxlutil sets the two fields alone.
        let error = unsafe { xlu_vif_parse_rate(self.config.as_ptr(), rate.as_ptr(), &raw mut raw) };
        (error == 0).then_some((raw.rate_bytes_per_interval, raw.rate_interval_usecs))
    }
}

impl Default for Oracle {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: the config came from xlu_cfg_init and is destroyed once; no pointer into it is left.
        unsafe { xlu_cfg_destroy(self.config.as_ptr()) };
        // SAFETY: the FILE came from fopen, is closed once, and its user is gone.
        unsafe { fclose(self.report.as_ptr()) };
    }
}

/// A file that libxlutil accepted.
pub struct Parsed {
    oracle: Oracle,
}

impl Parsed {
    /// The value of a key; absent when the file does not set it.
    ///
    /// # Panics
    /// When the key holds a NUL byte.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value> {
        let key = CString::new(key).expect("keys hold no NUL byte");
        let config = self.oracle.config.as_ptr();
        let mut text = ptr::null();
        // SAFETY: the config is live, `key` is a C string, and the pointer is written only on success.
        if unsafe { xlu_cfg_get_string(config, key.as_ptr(), &raw mut text, 1) } == 0 {
            return Some(Value::Atom(bytes(text)));
        }
        let mut list = ptr::null_mut();
        let mut entries = 0;
        // SAFETY: as above, for both pointers.
        let error = unsafe { xlu_cfg_get_list(config, key.as_ptr(), &raw mut list, &raw mut entries, 1) };
        (error == 0).then(|| self.list(list))
    }

    fn list(&self, list: *mut c_void) -> Value {
        let mut items = Vec::new();
        for entry in 0.. {
            // SAFETY: the list belongs to the live config; behind its end the function returns null.
            let item = unsafe { xlu_cfg_get_listitem2(list, entry) };
            if item.is_null() {
                break;
            }
            items.push(self.value(item));
        }
        Value::List(items)
    }

    fn value(&self, value: *mut c_void) -> Value {
        let config = self.oracle.config.as_ptr();
        // SAFETY: the value belongs to the live config.
        if unsafe { xlu_cfg_value_type(value) } == XLU_LIST {
            let mut list = ptr::null_mut();
            // SAFETY: the value is a list, so the call succeeds and sets the pointer.
            unsafe { xlu_cfg_value_get_list(config, value, &raw mut list, 1) };
            return self.list(list);
        }
        let mut text = ptr::null_mut();
        // SAFETY: the value is a string, so the call succeeds and sets the pointer.
        unsafe { xlu_cfg_value_get_string(config, value, &raw mut text, 1) };
        Value::Atom(bytes(text))
    }
}

fn bytes(text: *const c_char) -> Vec<u8> {
    // SAFETY: libxlutil gave a C string of a live config, which is copied here.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}

fn string(text: *const c_char) -> Option<String> {
    (!text.is_null()).then(|| String::from_utf8_lossy(&bytes(text)).into_owned())
}
