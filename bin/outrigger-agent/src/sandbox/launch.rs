//! The launcher: gives everything up, step by step, and becomes QEMU.
//!
//! The order matters: file systems while it is still root, the user before the filter, the filter last, since it
//! forbids all that comes before it. Descriptors 0 to 5 pass through untouched.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::unistd::{Pid, chdir, chroot, setgroups, setresgid, setresuid};

use super::{CGROUP, Confinement, DEV, ROOT, filter};

/// The name under which the agent starts itself as the launcher.
pub(crate) const NAME: &str = "qemu-launcher";
/// The launcher's status when it could not become QEMU.
pub(crate) const FAILED: u8 = 126;
/// The most processes and threads of QEMU's user. QEMU's own pools have 64 threads each.
const PROCESSES: u64 = 256;

/// When the launcher becomes QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// As soon as it can.
    AtOnce,
    /// It stops itself as soon as it could, and becomes QEMU when it is continued (SIGCONT).
    WhenContinued,
}

impl Begin {
    /// Its word among the launcher's arguments.
    const fn word(self) -> &'static str {
        match self {
            Self::AtOnce => "at-once",
            Self::WhenContinued => "when-continued",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        [Self::AtOnce, Self::WhenContinued].into_iter().find(|known| known.word() == word)
    }
}

/// What could not be given up, and why.
#[derive(Debug)]
pub(crate) struct Unconfined {
    what: &'static str,
    why: String,
}

impl core::fmt::Display for Unconfined {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "outrigger-agent: QEMU is not started, because the launcher cannot {}: {}",
            self.what, self.why
        )
    }
}

fn failed<E: core::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Unconfined {
    move |error| Unconfined { what, why: error.to_string() }
}

/// Starts a command line for the launcher.
pub(crate) fn command(
    confinement: Confinement,
    mode: filter::Mode,
    begin: Begin,
    program: &str,
    args: &[OsString],
) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args([confinement.word(), mode.word(), begin.word(), program]).args(args);
    command
}

/// What the launcher does with its arguments; comes back only when it failed.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> Unconfined {
    let mut word = || args.next().and_then(|arg| arg.into_string().ok()).unwrap_or_default();
    let (confinement, mode, begin, program) = (word(), word(), word(), word());
    let known = (Confinement::of_word(&confinement), filter::Mode::of_word(&mode), Begin::of_word(&begin));
    let (Some(confinement), Some(mode), Some(begin)) = known else {
        return Unconfined { what: "read its arguments", why: confinement };
    };
    match give_up(confinement, mode, begin) {
        // The environment is what the agent gave.
        Ok(()) => failed("start QEMU")(Command::new(program).args(args).exec()),
        Err(unconfined) => unconfined,
    }
}

fn give_up(confinement: Confinement, mode: filter::Mode, begin: Begin) -> Result<(), Unconfined> {
    let filters = filter::compile(mode).map_err(failed("make the filter"))?;
    separate()?;
    build_root(confinement)?;
    enter_root()?;
    set_limits()?;
    drop_privileges(confinement)?;
    if begin == Begin::WhenContinued {
        // Here, since the filter has no call for it.
        raise(Signal::SIGSTOP).map_err(failed("wait"))?;
    }
    filters.apply().map_err(failed("install the filter"))
}

/// Namespaces of its own for mounts, and for names and System V objects where the kernel has them.
fn separate() -> Result<(), Unconfined> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("have its own mounts"))?;
    for more in [CloneFlags::CLONE_NEWIPC, CloneFlags::CLONE_NEWUTS] {
        match unshare(more) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(failed("have its own namespaces")(errno)),
        }
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(failed("make its mounts private"))
}

/// The image without what is mounted on it, and on it only what QEMU needs. All of it is read-only but `/run` and
/// `/tmp`, from which nothing can be run.
fn build_root(confinement: Confinement) -> Result<(), Unconfined> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    bind("/", Path::new(ROOT))?;
    bind_to(DEV, "dev", quiet | MsFlags::MS_RDONLY)?;
    for folder in ["run", "tmp"] {
        bind_to(&format!("/{folder}"), folder, quiet | MsFlags::MS_NODEV)?;
    }
    let proc = Path::new(ROOT).join("proc");
    // Only its own processes, and nothing of the kernel.
    let flags = quiet | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount(Some("proc"), &proc, Some("proc"), flags, Some("hidepid=2,subset=pid"))
        .map_err(failed("mount /proc"))?;
    if confinement == Confinement::Pci {
        bind_to("/sys", "sys", quiet | MsFlags::MS_NODEV)?;
    }
    remount(Path::new(ROOT), MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}

fn bind_to(from: &str, name: &str, flags: MsFlags) -> Result<(), Unconfined> {
    let to = Path::new(ROOT).join(name);
    bind(from, &to)?;
    remount(&to, flags)
}

fn bind(from: &str, to: &Path) -> Result<(), Unconfined> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed("bind a folder"))
}

fn remount(on: &Path, flags: MsFlags) -> Result<(), Unconfined> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(None::<&str>, on, None::<&str>, flags, None::<&str>).map_err(failed("make a folder read-only"))
}

/// Makes the new root the root. The initial root of a kernel cannot be left by `pivot_root`: it is covered instead,
/// and what was mounted on it goes away.
fn enter_root() -> Result<(), Unconfined> {
    for folder in ["/dev", "/sys/fs/cgroup", "/sys", "/run", "/tmp", "/proc", DEV] {
        let _ = umount2(folder, MntFlags::MNT_DETACH);
    }
    chdir(ROOT).map_err(failed("enter its root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed("move its root"))?;
    chroot(".").map_err(failed("change its root"))?;
    chdir("/").map_err(failed("enter its root"))
}

fn set_limits() -> Result<(), Unconfined> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("limit core files"))?;
    setrlimit(Resource::RLIMIT_NPROC, PROCESSES, PROCESSES).map_err(failed("limit processes"))
}

fn drop_privileges(confinement: Confinement) -> Result<(), Unconfined> {
    let kept: &[Capability] = match confinement {
        Confinement::User => &[],
        // Configuration space beyond its head, and /dev/mem for the table of MSI-X.
        Confinement::Pci => &[Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_RAWIO],
    };
    // What is not in the bounding set cannot come back by running a program, not even for root.
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed("drop a capability"))?;
        }
    }
    set_no_new_privs().map_err(failed("rule out new privileges"))?;
    let (user, group) = confinement.ids();
    setgroups(&[]).map_err(failed("leave its groups"))?;
    setresgid(group, group, group).map_err(failed("change its group"))?;
    // Another user than root loses all capabilities by this.
    setresuid(user, user, user).map_err(failed("change its user"))
}

/// Puts a process into a group with a limit of memory; does nothing where the kernel has no such groups.
///
/// The limit leaves room for the agent, so that a QEMU that wants too much is ended before the whole domain is short.
pub(crate) fn limit_memory(pid: Pid) {
    const RESERVE_KIB: u64 = 12 * 1024;
    let root = PathBuf::from(CGROUP).parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("cgroup2"), &root, Some("cgroup2"), flags, None::<&str>);
    let has_memory = fs::read_to_string(root.join("cgroup.controllers"))
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"));
    let total = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total_kib);
    let (true, Some(total)) = (has_memory, total) else { return };
    if fs::write(root.join("cgroup.subtree_control"), "+memory").is_ok() && fs::create_dir_all(CGROUP).is_ok()
    {
        let limit = total.saturating_sub(RESERVE_KIB).max(total / 2) * 1024;
        let _ = fs::write(Path::new(CGROUP).join("memory.max"), limit.to_string());
        let _ = fs::write(Path::new(CGROUP).join("cgroup.procs"), pid.to_string());
    }
}

fn total_kib(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_understands_its_arguments() {
        for confinement in [Confinement::User, Confinement::Pci] {
            assert_eq!(Confinement::of_word(confinement.word()), Some(confinement));
        }
        for begin in [Begin::AtOnce, Begin::WhenContinued] {
            assert_eq!(Begin::of_word(begin.word()), Some(begin));
        }
        let unknown = run(["root", "enforce", "at-once", "/bin/true"].into_iter().map(OsString::from));
        assert!(unknown.to_string().contains("cannot read its arguments: root"));
    }

    #[test]
    fn the_kernels_memory_is_found() {
        assert_eq!(total_kib("MemTotal:         163840 kB\nMemFree: 1 kB\n"), Some(163_840));
        assert_eq!(total_kib("MemFree: 1 kB\n"), None);
    }
}
