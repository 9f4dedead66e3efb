//! Tells the crate how the release of Xen that `xen-sys` was built for describes a new domain and restores one.

use std::process::ExitCode;

/// The forms of alternate p2m tables in `xen_domctl_createdomain`, each with the first release (4.N) that has it.
const ALTP2M: [(u16, &str); 3] = [(0, "parameter"), (19, "options"), (21, "options-and-count")];

/// The first release (4.N) whose `xc_domain_restore` takes memory flags.
const MEMORY_FLAGS: u16 = 22;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-check-cfg=cfg(altp2m, values(\"{}\"))",
        ALTP2M.map(|(_, form)| form).join("\", \"")
    );
    println!("cargo::rustc-check-cfg=cfg(restore, values(\"with-memory-flags\"))");
    // Without the feature `libxenctrl` there are no bindings, and nothing depends on a release.
    let Ok(version) = std::env::var("DEP_XENCTRL_VERSION") else { return ExitCode::SUCCESS };
    let minor = version.strip_prefix("4.").and_then(|minor| minor.parse().ok());
    if minor.is_some_and(|minor| minor >= MEMORY_FLAGS) {
        println!("cargo::rustc-cfg=restore=\"with-memory-flags\"");
    }
    let form = minor.and_then(|minor: u16| ALTP2M.iter().rev().find(|(first, _)| minor >= *first));
    match form {
        Some((_, form)) => {
            println!("cargo::rustc-cfg=altp2m=\"{form}\"");
            ExitCode::SUCCESS
        }
        None => {
            println!("cargo::error=the bindings are for Xen {version}, which this crate does not know");
            ExitCode::FAILURE
        }
    }
}
