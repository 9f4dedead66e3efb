//! What any PID 1 does first: mounts, modules, settings of the kernel.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use stubdom_abi::ImageConfig;

use crate::error::AgentError;

/// The devices that QEMU needs from modules or from the kernel.
const NEEDED: [&str; 4] = ["/dev/xen/xenbus", "/dev/xen/privcmd", "/dev/xen/evtchn", "/dev/xen/gntdev"];

/// A module that takes longer is named in the log.
const SLOW: Duration = Duration::from_millis(100);

/// Makes and mounts the folders that a running Linux has.
pub(crate) fn mount_all() -> Result<(), AgentError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let closed = quiet | MsFlags::MS_NODEV;
    let mounts: [(&str, &str, MsFlags, Option<&str>); 5] = [
        ("devtmpfs", "/dev", quiet, None),
        ("proc", "/proc", closed, None),
        ("sysfs", "/sys", closed, None),
        ("tmpfs", "/tmp", closed, Some("size=4m,mode=1777")),
        ("tmpfs", "/run", closed, Some("size=4m,mode=0755")),
    ];
    for (what, on, flags, data) in mounts {
        fs::create_dir_all(on).map_err(|e| AgentError::MakeDir(on.into(), e))?;
        match mount(Some(what), on, Some(what), flags, data) {
            // Some kernels mount /dev by themselves.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(source) => return Err(AgentError::Mount { what, on, source }),
        }
    }
    Ok(())
}

/// Reads the image's own description of itself; absent, the defaults hold.
pub(crate) fn read_config(path: &Path) -> Result<ImageConfig, AgentError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| AgentError::BadConfig(path.into(), e)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ImageConfig::default()),
        Err(error) => Err(AgentError::ReadConfig(path.into(), error)),
    }
}

/// Where Linux shows the devices that it has found in xenstore, such as `console-1`, with their drivers or without.
pub(crate) const XEN_DEVICES: &str = "/sys/bus/xen/devices";

/// Whether the stubdomain has the Xen device of this name. Listing all of them takes several milliseconds.
pub(crate) fn has_xen_device(name: &str) -> bool {
    Path::new(XEN_DEVICES).join(name).exists()
}

/// The names of the stubdomain's Xen devices.
pub(crate) fn xen_devices() -> Vec<String> {
    let Ok(devices) = fs::read_dir(XEN_DEVICES) else { return Vec::new() };
    devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Modules that are being loaded.
#[derive(Debug, Default)]
pub(crate) struct Loading {
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// Starts to load the modules in order, each frontend in a thread of its own: its initialisation returns only when
/// its devices are connected, which may take as long as a busy dom0 likes.
pub(crate) fn start_modules(config: &ImageConfig) -> Loading {
    let (fronts, others): (Vec<String>, Vec<String>) =
        config.modules.iter().cloned().partition(|path| module_name(path).ends_with("front"));
    let groups = core::iter::once(others).chain(fronts.into_iter().map(|path| vec![path]));
    // A kernel with all of it built in has none, and a thread takes longer to start than all of this.
    let groups = groups.filter(|group| !group.is_empty());
    let spawn = |group: Vec<String>| {
        let options = config.module_options.clone();
        std::thread::spawn(move || group.iter().filter_map(|path| load_reported(&options, path)).collect())
    };
    Loading { threads: groups.map(spawn).collect() }
}

impl Loading {
    /// Waits for all; returns what went wrong or was slow, for people.
    ///
    /// One that does not load is no error by itself, because a kernel may have it built in: what counts is
    /// [`check_devices`], and that disks and NICs appear.
    pub(crate) fn wait(self) -> Vec<String> {
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    }
}

type Options = BTreeMap<String, String>;

fn load_reported(options: &Options, path: &str) -> Option<String> {
    let begin = Instant::now();
    let loaded = load_module(options, path);
    let took = begin.elapsed();
    match loaded {
        Err(trouble) => Some(format!("module not loaded: {trouble}")),
        Ok(()) if took >= SLOW => Some(format!("module {} took {} ms", module_name(path), took.as_millis())),
        Ok(()) => None,
    }
}

fn load_module(options: &Options, path: &str) -> Result<(), String> {
    let file = fs::File::open(path).map_err(|e| format!("{path}: {e}"))?;
    let options = options.get(&module_name(path)).map_or("", String::as_str);
    let options = CString::new(options).map_err(|_| format!("{path}: its options contain NUL"))?;
    match finit_module(&file, &options, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(format!("{path}: {}", errno.desc())),
    }
}

/// A module's name as the options have it: its file's name without `.ko`, with hyphens.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".ko").unwrap_or(file).replace('_', "-")
}

/// Checks that the devices exist that QEMU cannot do without.
pub(crate) fn check_devices() -> Result<(), AgentError> {
    match NEEDED.into_iter().find(|device| !Path::new(device).exists()) {
        Some(device) => Err(AgentError::NoDevice(device)),
        None => Ok(()),
    }
}

/// A setting of the kernel that QEMU needs from its first moment.
pub(crate) fn tune() {
    set(&[
        // QEMU reserves address space for the guest's whole memory and fills little of it.
        ("/proc/sys/vm/overcommit_memory", "1"),
    ]);
}

/// Settings of the kernel that leave QEMU less to try, and those that count once it runs. Each one may be absent.
pub(crate) fn harden() {
    set(&[
        // The agent is killed last: it reports who was.
        ("/proc/self/oom_score_adj", "-1000"),
        // Its default of 1024 pages is too low for the vchans beside QEMU's own grants.
        ("/sys/module/xen_gntalloc/parameters/limit", "1048576"),
        // The stubdomain itself sends nothing on the guest's networks.
        ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
        ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
        // Nothing that reveals where the kernel is, and no way to change it: all modules are loaded.
        ("/proc/sys/kernel/kptr_restrict", "2"),
        ("/proc/sys/kernel/dmesg_restrict", "1"),
        ("/proc/sys/kernel/perf_event_paranoid", "3"),
        ("/proc/sys/kernel/unprivileged_bpf_disabled", "1"),
        ("/proc/sys/kernel/kexec_load_disabled", "1"),
        ("/proc/sys/kernel/yama/ptrace_scope", "2"),
        ("/proc/sys/kernel/modules_disabled", "1"),
        ("/proc/sys/fs/protected_symlinks", "1"),
    ]);
}

fn set(settings: &[(&str, &str)]) {
    for (path, value) in settings {
        let _ = fs::write(path, value);
    }
}

/// Puts this binary where the kernel and QEMU look for helpers. Our image has the links already.
pub(crate) fn link_helpers() -> Result<(), AgentError> {
    ImageConfig::HELPERS.into_iter().map(Path::new).filter(|path| !path.exists()).try_for_each(link_helper)
}

fn link_helper(path: &Path) -> Result<(), AgentError> {
    let this = std::env::current_exe().map_err(|e| AgentError::System("find the agent's own path", e))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| AgentError::MakeDir(folder.into(), e))?;
    }
    match std::os::unix::fs::symlink(&this, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(AgentError::System("link a helper", error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_find_their_module_by_either_spelling() {
        assert_eq!(module_name("/lib/modules/6.1/xen-privcmd.ko"), "xen-privcmd");
        assert_eq!(module_name("xen_privcmd.ko"), "xen-privcmd");
    }

    #[test]
    fn an_absent_description_has_defaults_and_a_broken_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stubdom.json");
        assert_eq!(read_config(&path).unwrap(), ImageConfig::default());
        fs::write(&path, r#"{"qemu": "/qemu", "modules": ["/a.ko"]}"#).unwrap();
        assert_eq!(read_config(&path).unwrap().modules, ["/a.ko"]);
        fs::write(&path, "{").unwrap();
        assert!(matches!(read_config(&path), Err(AgentError::BadConfig(..))));
    }

    #[test]
    fn a_module_that_is_absent_is_reported() {
        let config = ImageConfig { modules: vec!["/nonexistent/x.ko".to_owned()], ..ImageConfig::default() };
        assert!(start_modules(&config).wait()[0].starts_with("module not loaded: /nonexistent/x.ko: "));
    }
}
