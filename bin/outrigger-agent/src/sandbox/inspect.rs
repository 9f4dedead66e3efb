//! What the kernel reports about QEMU's confinement, for the log: not what was asked for, but what is.

use std::fs;

use nix::unistd::Pid;

/// One line about a process that runs, from `/proc`.
pub(crate) fn describe(pid: Pid) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    line(&read("status"), &read("mountinfo"), field(&own, "VmRSS"))
}

/// Says of a QEMU that was killed that memory was short, unless the kernel counts what it ends for that and has ended
/// nothing, and where the memory was.
pub(crate) fn shortage() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    out_of_memory(&read("/proc/vmstat"), &read("/proc/meminfo"))
}

fn out_of_memory(vmstat: &str, meminfo: &str) -> Option<String> {
    // A minimal kernel does not count, but nothing else kills a QEMU inside of its stubdomain.
    if vmstat.lines().any(|line| line.trim_end() == "oom_kill 0") {
        return None;
    }
    let of = |name| field(meminfo, name);
    Some(format!(
        "the stubdomain's memory was used up: give it more with stubdomain_memory (total {}, free {}, page cache {}, anonymous {}, unevictable {}, \
         being written {}, kernel {} and {}, stacks {}, page tables {})",
        of("MemTotal"),
        of("MemFree"),
        of("Cached"),
        of("AnonPages"),
        of("Unevictable"),
        of("Writeback"),
        of("SUnreclaim"),
        of("VmallocUsed"),
        of("KernelStack"),
        of("PageTables"),
    ))
}

fn line(status: &str, mounts: &str, agent: &str) -> String {
    let of = |name| field(status, name);
    let user = of("Uid").split_whitespace().next().unwrap_or("?");
    format!(
        "confined: user {user}, capabilities {} of {}, no new privileges {}, seccomp {} with {} filters, root {}, \
         {} resident; the agent {agent}",
        of("CapEff"),
        of("CapBnd"),
        of("NoNewPrivs"),
        of("Seccomp"),
        of("Seccomp_filters"),
        root(mounts),
        of("VmRSS"),
    )
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).map_or("?", str::trim)
}

/// `ro` or `rw` of what is mounted on `/`, of several the last (`proc(5)`, fields 5 and 6).
fn root(mounts: &str) -> &str {
    let of_root = |line: &str| line.split(' ').nth(4) == Some("/");
    let options = mounts.lines().rfind(|line| of_root(line)).and_then(|line| line.split(' ').nth(5));
    options.and_then(|options| options.split(',').next()).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_used_up_is_noticed() {
        let meminfo =
            "MemTotal:          57344 kB\nMemFree:             812 kB\nCached:            25600 kB\n";
        assert_eq!(out_of_memory("pgfault 7\noom_kill 0\n", meminfo), None);
        assert!(out_of_memory("", meminfo).is_some());
        let said = out_of_memory("oom_kill 1\n", meminfo).unwrap();
        assert!(
            said.contains("stubdomain_memory (total 57344 kB, free 812 kB, page cache 25600 kB,"),
            "{said}"
        );
    }

    #[test]
    fn status_and_mounts_make_one_line() {
        let status = "Name:\tqemu\nUid:\t1000\t1000\t1000\t1000\nVmRSS:\t   30000 kB\nCapEff:\t0000000000000000\n\
                      CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let mounts = "1 1 0:2 / / rw - rootfs none rw\n30 1 0:2 / / ro,nosuid,nodev - rootfs none rw\n\
                      31 30 0:5 / /dev rw - tmpfs tmpfs rw\n";
        assert_eq!(
            line(status, mounts, "1000 kB"),
            "confined: user 1000, capabilities 0000000000000000 of 0000000000000000, no new privileges 1, \
             seccomp 2 with 3 filters, root ro, 30000 kB resident; the agent 1000 kB"
        );
        assert!(line("", "", "?").contains("user ?"));
    }
}
