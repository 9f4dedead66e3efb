//! Debian packages that the build machine itself needs.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

/// What booting the embedded host needs.
pub(crate) const RUN_HOST: [&str; 3] = ["qemu-system-x86", "binutils", "util-linux"];
/// What building the workspace needs: Xen's headers and libraries, and a linker.
pub(crate) const BUILD: [&str; 5] = ["libxen-dev", "pkg-config", "binutils", "gcc", "libc6-dev"];
/// What compiling the fuzz targets needs: libFuzzer is C++.
pub(crate) const FUZZ: [&str; 1] = ["g++"];

/// Makes sure that packages are installed: names those that are missing and installs them.
///
/// Asks first when there is a terminal and `yes` was not given, and again when other packages would have to go: one from
/// backports may not bear Debian 12's own beside it. Without root it only says the command.
pub(crate) fn ensure(packages: &[&str], yes: bool) -> Result<()> {
    let wanted: BTreeSet<&str> = packages.iter().copied().collect();
    let missing: Vec<&str> = wanted.into_iter().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    eprintln!("Missing Debian packages: {}", missing.join(", "));
    if !is_root() {
        bail!("Debian packages are missing; as root, run: {command}");
    }
    let asks = !yes && std::io::stdin().is_terminal();
    let refused = || anyhow!("Debian packages are missing; install them with: {command}");
    if asks && !confirm("Install them now?")? {
        return Err(refused());
    }
    apt(&["update", "--quiet"])?;
    let mut install = vec!["install", "--quiet", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    let removed = removed_by(&install)?;
    if !removed.is_empty() {
        eprintln!("This removes conflicting packages: {}", removed.join(", "));
        if asks && !confirm("Remove them?")? {
            return Err(refused());
        }
    }
    apt(&install)
}

/// The packages that apt-get would remove.
fn removed_by(arguments: &[&str]) -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .arg("--simulate")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("Cannot start apt-get; this needs Debian 12 or 13, or a close relative")?;
    // What keeps apt-get from planning is said when it is to act.
    Ok(removals(&String::from_utf8_lossy(&output.stdout)))
}

/// The packages on the lines `Remv NAME [VERSION] …` of apt-get's plan, with their versions.
fn removals(plan: &str) -> Vec<String> {
    let lines = plan.lines().filter_map(|line| line.strip_prefix("Remv "));
    let words = lines.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    words.collect()
}

fn is_installed(package: &str) -> bool {
    let output =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn confirm(question: &str) -> Result<bool> {
    eprint!("{question} [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // What this program prints on standard output may be for machines.
        .stdout(std::io::stderr())
        .status()
        .context("Cannot start apt-get; this needs Debian 12 or 13, or a close relative")?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_read_from_a_plan() {
        let plan = "NOTE: This is only a simulation!\n\
            Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]\n\
            Inst ipxe-qemu (1.0.0+git-20190125.36a4c85-5.1 Debian:12.12/oldstable [all])\n\
            Conf ipxe-qemu (1.0.0+git-20190125.36a4c85-5.1 Debian:12.12/oldstable [all])\n";
        assert_eq!(removals(plan), ["qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]"]);
        assert_eq!(removals("Inst a (1)\nConf a (1)\n"), [""; 0]);
    }
}
