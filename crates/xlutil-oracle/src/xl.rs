//! The judgement of the packaged xl, which parses a file and prints what it has understood without Xen.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// What xl makes of a file.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The guest as libxl's JSON, before libxl's defaults; absent if xl refuses the file.
    pub json: Option<String>,
    /// What xl says.
    pub messages: String,
}

/// Has xl parse a configuration file.
///
/// # Errors
/// When xl cannot be started.
pub fn parse(file: &Path) -> io::Result<Judgement> {
    let output = Command::new(env!("XL_PROGRAM"))
        .env("LD_PRELOAD", env!("XL_SHIM"))
        .args(["create", "-n"])
        .arg(file)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Before it, xl says what it parses.
    let json = text.find('{').filter(|_| output.status.success()).and_then(|start| text.get(start..));
    Ok(Judgement {
        json: json.map(str::to_owned),
        messages: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
