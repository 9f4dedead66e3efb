//! Links libxlutil, whose structures `src/lib.rs` knows for the releases of Xen in Debian 12 and 13, and compiles what is
//! preloaded into xl.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const KNOWN: [&str; 2] = ["4.17", "4.20"];
const SHIM: &str = "xl-shim.c";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SHIM}");
    match link().and_then(|()| shim()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("cargo::error={problem}");
            ExitCode::FAILURE
        }
    }
}

fn link() -> Result<(), String> {
    let library = pkg_config::Config::new().probe("xlutil").map_err(|error| {
        let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
        format!("libxlutil was not found: install the Debian packages libxen-dev and pkg-config ({reason})")
    })?;
    let installed = library.version;
    println!("cargo::rustc-check-cfg=cfg(xlutil, values(\"{}\"))", KNOWN.join("\", \""));
    for known in KNOWN {
        if installed == known || installed.starts_with(&format!("{known}.")) {
            println!("cargo::rustc-cfg=xlutil=\"{known}\"");
            return Ok(());
        }
    }
    let known = KNOWN.join(" and ");
    Err(format!(
        "libxlutil {installed} is installed; the comparison knows {known} only: install such a version's libxen-dev"
    ))
}

/// Compiles what is preloaded into xl.
fn shim() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let shim = out.join("xl-shim.so");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(SHIM);
    let output = command.output().map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} has failed: {}", said.lines().next_back().unwrap_or_default()));
    }
    println!("cargo::rustc-env=XL_SHIM={}", shim.display());
    Ok(())
}
