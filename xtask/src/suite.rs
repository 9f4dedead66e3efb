//! The end-to-end suite, on the embedded host.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use image::packages::Store;
use testhost::{Job, Machine, Observer as _, Put, Request, TimeScale};

use crate::binaries::{self, Profile};
use crate::host::{self, BuildOptions};
use crate::view::View;
use crate::{emulator, guest, workspace};

/// The whole suite in dom0, scaled by OUTRIGGER_TIME_SCALE.
const SUITE_LIMIT: std::time::Duration = std::time::Duration::from_secs(40 * 60);
/// One boot's part of the trial of a reboot, scaled too.
const REBOOT_LIMIT: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// The disk of that trial, in bytes.
const DISK: u64 = 32 << 20;
/// Where the suite expects the disks of its guests.
pub(crate) const LINUX_DISK: &str = "/root/linux-guest.img";
const POWER_DISK: &str = "/root/power-guest.img";
const DISC_DISK: &str = "/root/disc-guest.img";
/// Where it expects the image of Debian's kernel and QEMU.
const DEBIAN_STUBDOM: &str = "/root/debian-stubdom";
/// Where it expects the program of the stubdomain that an attacker has taken over.
const HOSTILE_STUB: &str = "/root/hostile-stub";
/// Where the contract suites of the ground crates go in dom0.
const CONTRACTS: [(&str, &str); 2] =
    [("xenstore", "/usr/bin/xenstore-contract"), ("xen", "/usr/bin/xen-contract")];

/// Boots the embedded host with Xen's own tools in it and runs the suites in its dom0.
pub(crate) fn run(filter: Option<&str>, fresh: bool) -> Result<()> {
    let mut view = View::new(false, false);
    let host = host(&mut view)?;
    let scale = TimeScale::from_env()?;
    let disks = guest_disks(&mut view)?;
    let hostile = Put { source: binaries::hostile_stub()?, target: HOSTILE_STUB.into() };
    let debian = guest::debian_stubdom(&Store::from_environment()?, &mut view)?;
    let debian = Put { source: debian, target: DEBIAN_STUBDOM.into() };
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("suite");
    std::fs::write(&script, script_for(filter, scale))?;
    let request = Request {
        machine: emulator::machine(&mut view)?.stretched(scale),
        job: Job::Script(script),
        puts: [disks, vec![guest::console()?, hostile, debian]].concat(),
        timeout: Some(SUITE_LIMIT),
        fresh,
        logs: testhost::fresh_log_folder(&workspace::kept("logs")),
        scale,
    };
    let report = testhost::run(&host, &request, &mut view)?;
    view.progress(&format!("The logs are in {}", report.logs.display()));
    if report.status != 0 {
        bail!(
            "The suite in dom0 ended with status {}; the logs are in {}",
            report.status,
            report.logs.display()
        );
    }
    Ok(())
}

/// Boots a host, cuts its power while guests run, and boots it again with the same disk.
pub(crate) fn reboot() -> Result<()> {
    let mut view = View::new(false, false);
    let host = host(&mut view)?;
    let scale = TimeScale::from_env()?;
    let folder = tempfile::tempdir()?;
    let [disk, script] = ["disk", "script"].map(|name| folder.path().join(name));
    std::fs::File::create(&disk)?.set_len(DISK)?;
    let machine = Machine { disk: Some(disk), ..emulator::machine(&mut view)? }.stretched(scale);
    let logs = testhost::fresh_log_folder(&workspace::kept("logs"));
    for half in ["before-reboot", "after-reboot"] {
        let text = format!("#!/bin/sh\nexport {}={scale}\nexec vm-tests {half}\n", TimeScale::VARIABLE);
        std::fs::write(&script, text)?;
        let request = Request {
            machine: machine.clone(),
            job: Job::Script(script.clone()),
            puts: vec![guest::console()?],
            timeout: Some(REBOOT_LIMIT),
            fresh: true,
            logs: logs.join(half),
            scale,
        };
        // A run ends as by a power cut: the emulator is killed, whatever its guests do.
        let report = testhost::run(&host, &request, &mut view)?;
        if report.status != 0 {
            bail!(
                "vm-tests {half} ended with status {}; the logs are in {}",
                report.status,
                report.logs.display()
            );
        }
    }
    Ok(())
}

/// The host with Xen's own tools and the programs of the suite.
fn host(view: &mut View) -> Result<testhost::Host> {
    let build = BuildOptions { with_xen_tools: true, ..BuildOptions::default() };
    host::built(&build, &programs()?, view)
}

/// The script for dom0. Every suite runs, even when one before it failed.
fn script_for(filter: Option<&str>, scale: TimeScale) -> String {
    // A name of a test has none of the characters that a shell would read.
    let words: String =
        filter.unwrap_or_default().chars().filter(|c| c.is_alphanumeric() || "_:-".contains(*c)).collect();
    let contracts = if filter.is_some() {
        ""
    } else {
        "echo '-- the contract of xenstore, kept by the real xenstored'\n\
         xenstore-contract || status=1\n\
         echo '-- the contract of the hypervisor, kept by the real Xen'\n\
         xen-contract /usr/lib/xen-4.17/boot/hvmloader /usr/share/seabios/bios-256k.bin \
         /usr/lib/outrigger/stubdom/vmlinuz || status=1\n"
    };
    format!(
        "#!/bin/sh\nexport {}={scale}\nstatus=0\n{contracts}echo '-- cases'\n\
         vm-tests run {words} || status=1\nexit $status\n",
        TimeScale::VARIABLE
    )
}

/// Builds what runs in dom0 besides the product.
fn programs() -> Result<Vec<Put>> {
    // As the unit tests were built: nothing is compiled again, and arithmetic that overflows is found.
    let profile = Profile::Dev;
    let mut puts =
        vec![Put { source: binaries::program("vm-tests", profile)?, target: "/usr/bin/vm-tests".into() }];
    for (package, target) in CONTRACTS {
        puts.push(Put { source: binaries::contract(package, profile)?, target: target.into() });
    }
    Ok(puts)
}

/// The disks of the suite's guests and their places in dom0.
fn guest_disks(view: &mut View) -> Result<Vec<Put>> {
    let linux = linux_disk(view)?;
    let [power, disc] = ["power.img", "disc.img"].map(|name| workspace::kept("guests").join(name));
    testguest::power_disk(&power)?;
    testguest::disc_disk(&disc)?;
    Ok(vec![
        Put { source: linux, target: LINUX_DISK.into() },
        Put { source: power, target: POWER_DISK.into() },
        Put { source: disc, target: DISC_DISK.into() },
    ])
}

/// The Linux guest's disk, made once.
pub(crate) fn linux_disk(view: &mut View) -> Result<PathBuf> {
    let folder = workspace::kept("guests");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("linux.img");
    let own = std::env::current_exe()?;
    // The maker is part of this program: when that is newer than the disk, the disk may be out of date.
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if changed(&path) < changed(&own) {
        view.progress("Making the Linux guest's disk");
        testguest::linux_disk(&Store::from_environment()?, &path, &mut |_| {})?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_cannot_leave_its_command() {
        let script = script_for(Some("linux; rm -rf /"), TimeScale::default());
        assert!(script.contains("vm-tests run linuxrm-rf ||"), "{script}");
    }
}
