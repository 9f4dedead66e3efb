//! Links libxlutil, whose structures `src/lib.rs` knows for one version only.

use std::process::ExitCode;

const VERSION: &str = "4.17";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    match pkg_config::Config::new().probe("xlutil") {
        Ok(library) if library.version.starts_with(VERSION) => ExitCode::SUCCESS,
        Ok(library) => {
            println!(
                "cargo::error=libxlutil {} is installed; the comparison knows {VERSION} only: install that version's \
                 libxen-dev",
                library.version
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
            println!(
                "cargo::error=libxlutil was not found: install the Debian packages libxen-dev and pkg-config ({reason})"
            );
            ExitCode::FAILURE
        }
    }
}
