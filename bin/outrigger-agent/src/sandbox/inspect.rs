//! What the kernel reports about QEMU's confinement, for the log: not what was asked for, but what is.

use std::fs;

use nix::unistd::Pid;

/// One line about a process that runs, from `/proc`.
pub(crate) fn describe(pid: Pid) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
    line(&read("status"), &read("mountinfo"), field(&own, "VmRSS"))
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
