//! The judgement of the packaged xl, which parses a file and prints what it has understood without Xen.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs, io};

/// Where the package of xl has it.
const XL: &str = "usr/lib/xen-4.17/bin/xl";
const PACKAGE: &str = "xen-utils-4.17";

/// Whether this machine's Debian has the xl that is known: the one of Xen 4.17.
#[must_use]
pub const fn is_known() -> bool {
    cfg!(xlutil = "4.17")
}

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
/// When xl cannot be found, downloaded or started.
pub fn parse(file: &Path) -> io::Result<Judgement> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program =
        PROGRAM.get_or_init(program).as_ref().map_err(|problem| io::Error::other(problem.clone()))?;
    let output = Command::new(program)
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

/// Finds xl: the one that is named in `OUTRIGGER_XL`, else the one that is installed, else that of the package, which is
/// downloaded and unpacked beside the compiled programs and not installed.
fn program() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("OUTRIGGER_XL").map(PathBuf::from) {
        let missing = || format!("OUTRIGGER_XL names {}, which is not there", named.display());
        return if named.exists() { Ok(named) } else { Err(missing()) };
    }
    let unpacked = Path::new(env!("OUT_DIR")).join("xl");
    let places = [Path::new("/").join(XL), unpacked.join(XL)];
    match places.into_iter().find(|path| path.exists()) {
        Some(program) => Ok(program),
        None => download(&unpacked).map_err(|problem| {
            format!("{problem}; install {PACKAGE}, or name its xl in the environment variable OUTRIGGER_XL")
        }),
    }
}

/// Several tests may do this at once: what is unpacked gets its name when it is complete.
fn download(unpacked: &Path) -> Result<PathBuf, String> {
    let text = |error: io::Error| error.to_string();
    let folder = unpacked.with_extension(std::process::id().to_string());
    fs::create_dir_all(&folder).map_err(text)?;
    run(Command::new("apt-get").args(["--quiet", "download", PACKAGE]).current_dir(&folder))?;
    let package = fs::read_dir(&folder)
        .map_err(text)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| format!("apt-get has downloaded no {PACKAGE}"))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&folder))?;
    if fs::rename(&folder, unpacked).is_err() {
        // Another one was faster.
        fs::remove_dir_all(&folder).map_err(text)?;
    }
    Ok(unpacked.join(XL))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} has failed: {}", said.lines().next_back().unwrap_or_default()))
}
