//! Chooses the bindings that fit the installed Xen libraries, and links them.

use std::process::ExitCode;

/// The releases of Xen that have a module in `src/`.
const KNOWN: [&str; 6] = ["4.17", "4.18", "4.19", "4.20", "4.21", "4.22"];

/// The environment variable with the release whose module is only to be checked (`cargo check`): no library is looked
/// for, and nothing can be linked.
const CHECKED: &str = "XEN_SYS_CHECK";

/// The libraries that are used directly, by the names of their pkg-config files.
const LIBRARIES: [&str; 4] = ["xencontrol", "xenguest", "xentoollog", "xenforeignmemory"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={CHECKED}");
    println!("cargo::rustc-check-cfg=cfg(xen, values(\"{}\"))", KNOWN.join("\", \""));
    match choose() {
        Ok(version) => {
            println!("cargo::rustc-cfg=xen=\"{version}\"");
            println!("cargo::rustc-env=XEN_RELEASE={version}");
            println!("cargo::metadata=version={version}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

/// Returns which of [`KNOWN`] is to be built: the one that is to be checked, or the one that is installed.
fn choose() -> Result<&'static str, String> {
    if let Ok(checked) = std::env::var(CHECKED) {
        return known(&checked).ok_or_else(|| {
            format!("{CHECKED} is {checked}, and there are bindings for {} only", KNOWN.join(", "))
        });
    }
    let found = link()?;
    // libxenctrl has no stable ABI: only the exact minor version that the bindings were made from may be linked.
    known(&found).ok_or_else(|| {
        format!(
            "The installed Xen libraries are version {found}, and there are bindings for {} only: install that \
             version's libxen-dev, or make bindings (cargo xtask bindings)",
            KNOWN.join(", ")
        )
    })
}

fn known(version: &str) -> Option<&'static str> {
    KNOWN.into_iter().find(|known| version == *known || version.starts_with(&format!("{known}.")))
}

/// Finds the libraries, tells Cargo how to link them, and returns their version.
fn link() -> Result<String, String> {
    let mut found = None;
    for name in LIBRARIES {
        let library = pkg_config::Config::new().probe(name).map_err(|error| {
            let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
            format!(
                "Xen's library \"{name}\" was not found through pkg-config: install the Debian packages \
                 libxen-dev and pkg-config ({reason})"
            )
        })?;
        if name == "xencontrol" {
            found = Some(library.version);
        }
    }
    Ok(found.unwrap_or_default())
}
