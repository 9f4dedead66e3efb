//! Tells the crate how the release of Xen that `xen-sys` was built for describes a new domain.

use std::process::ExitCode;

/// The forms of alternate p2m tables in `xen_domctl_createdomain`, each with the first release (4.N) that has it.
const ALTP2M: [(u16, &str); 3] = [(0, "parameter"), (19, "options"), (21, "options-and-count")];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-check-cfg=cfg(altp2m, values(\"{}\"))",
        ALTP2M.map(|(_, form)| form).join("\", \"")
    );
    // Without the feature `libxenctrl` there are no bindings, and nothing depends on a release.
    let Ok(version) = std::env::var("DEP_XENCTRL_VERSION") else { return ExitCode::SUCCESS };
    let minor = version.strip_prefix("4.").and_then(|minor| minor.parse().ok());
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
