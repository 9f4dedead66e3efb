//! Links libxlutil, whose structures `src/lib.rs` knows for one version only, and finds the xl of that version.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const VERSION: &str = "4.17";
/// Where the package of xl has it.
const XL: &str = "usr/lib/xen-4.17/bin/xl";
const PACKAGE: &str = "xen-utils-4.17";
const SHIM: &str = "xl-shim.c";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SHIM}");
    println!("cargo::rerun-if-env-changed=OUTRIGGER_XL");
    match link().and_then(|()| xl()) {
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
    if library.version.starts_with(VERSION) {
        return Ok(());
    }
    let installed = library.version;
    Err(format!(
        "libxlutil {installed} is installed; the comparison knows {VERSION} only: install that version's libxen-dev"
    ))
}

/// Compiles what is preloaded, and finds xl: the one that is named or installed, else that of the package, which is
/// downloaded and unpacked here and not installed.
fn xl() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let shim = out.join("xl-shim.so");
    run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(SHIM))?;
    println!("cargo::rustc-env=XL_SHIM={}", shim.display());

    let named = env::var_os("OUTRIGGER_XL").map(PathBuf::from);
    let program =
        match named.into_iter().chain([Path::new("/").join(XL), out.join(XL)]).find(|path| path.exists()) {
            Some(program) => program,
            None => download(&out)?,
        };
    println!("cargo::rustc-env=XL_PROGRAM={}", program.display());
    Ok(())
}

fn download(out: &Path) -> Result<PathBuf, String> {
    let help = |problem: String| {
        format!("{problem}; xl {VERSION} is needed: install {PACKAGE}, or name the program in OUTRIGGER_XL")
    };
    run(Command::new("apt-get").args(["--quiet", "download", PACKAGE]).current_dir(out)).map_err(help)?;
    let entries = fs::read_dir(out).map_err(|error| help(error.to_string()))?;
    let package = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| help(format!("apt-get has downloaded no {PACKAGE}")))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(out)).map_err(help)?;
    Ok(out.join(XL))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} has failed: {}", said.lines().next_back().unwrap_or_default()))
}
