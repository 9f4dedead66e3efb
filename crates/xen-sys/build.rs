//! Chooses the bindings that fit the installed Xen libraries, and links them.

use std::process::ExitCode;

/// The Xen versions that have a module in `src/`.
const KNOWN: [&str; 1] = ["4.17"];

/// The libraries that are used directly, by the names of their pkg-config files.
const LIBRARIES: [&str; 4] = ["xencontrol", "xenguest", "xentoollog", "xenforeignmemory"];

fn main() -> ExitCode {
    match choose() {
        Ok(version) => {
            println!("cargo::rustc-cfg=xen=\"{version}\"");
            println!("cargo::metadata=version={version}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

/// Finds the libraries, tells Cargo how to link them, and returns which of [`KNOWN`] they are.
fn choose() -> Result<&'static str, String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(xen, values(\"{}\"))", KNOWN.join("\", \""));
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
    let found = found.unwrap_or_default();
    // libxenctrl has no stable ABI: only the exact minor version that the bindings were made from may be linked.
    KNOWN.into_iter().find(|known| found == *known || found.starts_with(&format!("{known}."))).ok_or_else(|| {
        format!(
            "The installed Xen libraries are version {found}, and there are bindings for {} only: install that \
             version's libxen-dev, or make bindings (see crates/xen-sys/bindgen.args)",
            KNOWN.join(", ")
        )
    })
}
