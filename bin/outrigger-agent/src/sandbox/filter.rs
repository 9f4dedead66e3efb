//! The filter of system calls (seccomp) that QEMU is started under.
//!
//! Two filters, and the kernel takes the stricter answer:
//! - What QEMU and its libraries were seen to use, or use for devices that a guest can have, is *allowed*, some of it
//!   with certain arguments only. All else fails with `ENOSYS`, as on a kernel that lacks it: libraries have other
//!   ways then, and a guest is not ended because a new library tries a new call first.
//! - What no QEMU uses, and only an attacker in control of it would try, *kills* the process. The agent then reports
//!   `killed 31`.
//!
//! A third one is there for QEMU's sake and refuses nothing: see [`unneeded`].
//!
//! Starting a program stays allowed, since the launcher has to become QEMU under the filter. It gains nothing: the
//! image has QEMU and the agent, and neither file nor capability gives new rights.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Whether the filter refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It does.
    Enforce,
    /// It has the kernel log what it would refuse, for finding out what a new QEMU uses.
    Log,
}

impl Mode {
    /// What the kernel's command line asks for.
    pub(crate) fn of_cmdline(cmdline: &str) -> Self {
        let is_logging = cmdline.split_whitespace().any(|word| word == super::LOG_WORD);
        if is_logging { Self::Log } else { Self::Enforce }
    }

    /// Its word among the launcher's arguments.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        [Self::Enforce, Self::Log].into_iter().find(|known| known.word() == word)
    }
}

/// The compiled filters, the last one applied first would forbid the others.
#[derive(Debug)]
pub(crate) struct Filters([BpfProgram; 3]);

impl Filters {
    /// Puts the calling thread and all that it starts under the filters, for ever.
    pub(crate) fn apply(&self) -> Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|program| apply_filter(program))
    }
}

/// Makes the filters.
pub(crate) fn compile(mode: Mode) -> Result<Filters, BackendError> {
    let (refuse, kill) = match mode {
        Mode::Enforce => (SeccompAction::Errno(libc::ENOSYS.unsigned_abs()), SeccompAction::KillProcess),
        Mode::Log => (SeccompAction::Log, SeccompAction::Log),
    };
    let allowed = SeccompFilter::new(allowed()?, refuse, SeccompAction::Allow, TargetArch::x86_64)?;
    let deadly = SeccompFilter::new(deadly()?, SeccompAction::Allow, kill, TargetArch::x86_64)?;
    // An error of 0 is success.
    let unneeded =
        SeccompFilter::new(unneeded()?, SeccompAction::Allow, SeccompAction::Errno(0), TargetArch::x86_64)?;
    Ok(Filters([
        BpfProgram::try_from(unneeded)?,
        BpfProgram::try_from(deadly)?,
        BpfProgram::try_from(allowed)?,
    ]))
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn allowed() -> Result<Rules, BackendError> {
    let mut rules: Rules = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    // Only sockets within the domain: the stubdomain has no address, and raw packets are for the bridge.
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(number, vec![rule(&[(0, SeccompCmpOp::Eq, u64::from(libc::AF_UNIX.unsigned_abs()))])?]);
    }
    // Threads and helper processes, no namespaces. clone3 hides its flags in memory and is refused.
    rules.insert(libc::SYS_clone, vec![rule(&[(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)])?]);
    // No memory becomes code: not made executable later, and from the start only from a file.
    let (exec, anonymous) =
        (u64::from(libc::PROT_EXEC.unsigned_abs()), u64::from(libc::MAP_ANONYMOUS.unsigned_abs()));
    let write_exec = exec | u64::from(libc::PROT_WRITE.unsigned_abs());
    rules.insert(libc::SYS_mprotect, vec![rule(&[(2, SeccompCmpOp::MaskedEq(exec), 0)])?]);
    let data = rule(&[(2, SeccompCmpOp::MaskedEq(exec), 0)])?;
    let code =
        rule(&[(2, SeccompCmpOp::MaskedEq(write_exec), exec), (3, SeccompCmpOp::MaskedEq(anonymous), 0)])?;
    rules.insert(libc::SYS_mmap, vec![data, code]);
    Ok(rules)
}

fn deadly() -> Result<Rules, BackendError> {
    let mut rules: Rules = DEADLY.iter().map(|number| (*number, Vec::new())).collect();
    // Typing into a terminal for someone else.
    let typing = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| rule(&[(1, SeccompCmpOp::Eq, request)]));
    rules.insert(libc::SYS_ioctl, typing.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}

/// What succeeds without being done. QEMU cuts the file that it writes its state to down to nothing, also when that is
/// a descriptor of a set (`/dev/fdset/1`), and gives up when it cannot: a console or a pipe has no length to cut.
fn unneeded() -> Result<Rules, BackendError> {
    Ok(Rules::from([(libc::SYS_ftruncate, vec![rule(&[(1, SeccompCmpOp::Eq, 0)])?])]))
}

/// A rule of conditions about arguments: number, comparison, value.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// The flags of clone that make namespaces (`CLONE_NEW…`, `linux/sched.h`).
const NAMESPACES: u64 = 0x7e02_0080;

/// What QEMU and its libraries use.
const ALLOWED: &[libc::c_long] = &[
    // Files: what it has open and what its small root holds.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_getdents64,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_umask,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    // Devices: Xen's, block devices, terminals, taps. What each ioctl may do, its driver checks.
    libc::SYS_ioctl,
    // Linux's asynchronous I/O (`aio=native`).
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets: which, is decided above.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    // Threads, signals, time.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_futex,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_get_priority_max,
    libc::SYS_getcpu,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_pause,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_times,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    // Questions about itself. prlimit64 also sets: QEMU sets its address space; a limit that was lowered stays low.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgrp,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getpriority,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_arch_prctl,
    // Names of threads, and QEMU's own filter on top of this one.
    libc::SYS_prctl,
    libc::SYS_seccomp,
];

/// What no QEMU uses. Whatever else is not allowed fails, and the guest goes on.
const DEADLY: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Large interfaces with many past holes.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // File systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_open_by_handle_at,
    libc::SYS_personality,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_deadly() {
        let (allowed, deadly) = (allowed().unwrap(), deadly().unwrap());
        let both: Vec<_> = deadly.keys().filter(|number| allowed.contains_key(number)).collect();
        // Its terminal requests alone are deadly.
        assert_eq!(both, [&libc::SYS_ioctl]);
        for list in [ALLOWED, DEADLY] {
            assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len(), "a call is listed twice");
        }
    }

    #[test]
    fn the_command_line_makes_it_log() {
        assert_eq!(Mode::of_cmdline("console=hvc0 quiet\n"), Mode::Enforce);
        assert_eq!(Mode::of_cmdline("quiet outrigger.filter=log\n"), Mode::Log);
        assert_eq!(Mode::of_word(Mode::Log.word()), Some(Mode::Log));
    }

    #[test]
    fn under_the_filter_only_what_qemu_needs_works() {
        // A filter is for ever, but for one thread.
        let tried = std::thread::spawn(|| {
            compile(Mode::Enforce).unwrap().apply().unwrap();
            let inet = TcpListener::bind("127.0.0.1:0").map_err(|error| error.kind());
            let memfd = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::empty());
            let thread = std::thread::spawn(|| 7).join().unwrap();
            let (_end, pipe) = std::io::pipe().unwrap();
            let cuts = [0, 1].map(|length| nix::unistd::ftruncate(&pipe, length));
            (inet.err(), memfd.err(), UnixStream::pair().is_ok(), thread, cuts)
        });
        let (inet, memfd, unix, thread, cuts) = tried.join().unwrap();
        assert_eq!(cuts, [Ok(()), Err(nix::errno::Errno::EINVAL)], "the way out of the state cannot be used");
        assert_eq!(inet, Some(ErrorKind::Unsupported));
        assert_eq!(memfd, Some(nix::errno::Errno::ENOSYS));
        assert!(unix);
        assert_eq!(thread, 7);
    }
}
