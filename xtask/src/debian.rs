//! Debian packages that the build machine itself needs.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// What booting the embedded host needs.
pub(crate) const RUN_HOST: [&str; 3] = ["qemu-system-x86", "binutils", "util-linux"];
/// What building the workspace needs: Xen's headers and libraries, and a linker.
pub(crate) const BUILD: [&str; 5] = ["libxen-dev", "pkg-config", "binutils", "gcc", "libc6-dev"];

/// Makes sure that packages are installed: names those that are missing and installs them.
///
/// Asks first when there is a terminal and `yes` was not given. Without root it only says the command.
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
    if !yes && std::io::stdin().is_terminal() && !confirm("Install them now?")? {
        bail!("Debian packages are missing; install them with: {command}");
    }
    apt(&["update", "--quiet"])?;
    let mut install = vec!["install", "--quiet", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
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
        .context("Cannot start apt-get; this needs Debian 12 or a close relative")?;
    if !status.success() {
        bail!("apt-get {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}
