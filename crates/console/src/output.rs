//! Where a console's bytes go beside its log and its socket: what the toolstack says in xenstore.
//!
//! | key | value |
//! |---|---|
//! | `output` | `pty` (also when absent), `file:PATH`, `pipe:PATH`, `socket:PATH`, `null` |
//! | `connection`, `path` | `pty`, or `socket` and its path: libxl's words for a channel; read when `output` says nothing or `chardev:…` |
//! | `name` | the channel's name: the console can be asked for by it |
//! | `log` | `none`, or `file:PATH` instead of the daemon's own choice |
//! | `output-limit` | bytes at which a `file:` is rotated, at least 4096 |
//! | `output-sync` | when a `file:` is brought to the disk: `never`, `rotation`, `always` |
//! | `output-overflow` | what becomes of bytes that nobody takes: `drop` (the oldest go) or `block` (the domain waits) |
//!
//! `output-*` and `log` are Outrigger's own. Paths are absolute.

use std::path::PathBuf;

use thiserror::Error;

use crate::logfile::Sync;

/// The longest name of a channel that is honoured, in bytes.
const NAME_MAX: usize = 128;
/// The least size at which a file is rotated, in bytes.
const LIMIT_MIN: u64 = 4096;

/// The main output of one console, as the key `output` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A pseudo-terminal whose path is written to the key `tty`, as stock tools expect.
    #[default]
    Pty,
    /// A regular file that is appended to, size-limited and rotated like a log.
    File(PathBuf),
    /// A named pipe that someone else made.
    Pipe(PathBuf),
    /// A unix socket that is made here: everyone who connects gets the bytes, the first of them may write.
    Socket(PathBuf),
    /// Nothing: only the log and the console's own socket.
    Null,
}

/// What becomes of bytes that an output does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest are dropped and the reader is told how many.
    Drop,
    /// They stay in the ring: the domain waits, and no other one does.
    Block,
}

/// Everything that xenstore says about where one console's bytes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The main output.
    pub output: Output,
    /// Nothing when the toolstack leaves it to the daemon.
    pub overflow: Option<Overflow>,
    /// Bytes at which a file is rotated, when they are not the daemon's usual ones.
    pub limit: Option<u64>,
    /// When a file is brought to the disk, when it is not the daemon's usual time.
    pub sync: Option<Sync>,
    /// The log beside the output.
    pub log: LogChoice,
    /// The channel's name, made fit for a file's name.
    pub name: Option<String>,
}

/// The log of one console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogChoice {
    /// As the daemon was told for all.
    #[default]
    Usual,
    /// None.
    None,
    /// This file.
    File(PathBuf),
}

/// Which way the bytes of a named pipe go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the pipe to the guest.
    In,
    /// From the guest to the pipe.
    Out,
}

impl Direction {
    /// The direction of a pipe at the console with this number: console 2 of a stubdomain is where it reads its
    /// incoming state (`docs/misc/stubdom.txt`), at all others the guest's output is what a pipe is for.
    #[must_use]
    pub const fn of_console(number: u32) -> Self {
        if number == 2 { Self::In } else { Self::Out }
    }
}

/// Why a key is not understood; the usual value is taken in its place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OutputError {
    /// The path is relative, and to what would be anybody's guess.
    #[error("The console's key {key} says \"{value}\": an absolute path is required")]
    RelativePath {
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// The value is none of those that there are.
    #[error("The console's key {key} says \"{value}\", which is not one of {choices}")]
    Unknown {
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// What there is.
        choices: &'static str,
    },
}

impl Output {
    /// Reads the value of the key `output`; nothing at all means a pseudo-terminal.
    ///
    /// # Errors
    /// When the kind is not known or a path is not absolute.
    pub fn parse(value: &str) -> Result<Self, OutputError> {
        const CHOICES: &str = "pty, file:PATH, pipe:PATH, socket:PATH, null";
        let path = |path| absolute("output", value, path);
        match value.split_once(':') {
            None if value.is_empty() || value == "pty" => Ok(Self::Pty),
            None if value == "null" => Ok(Self::Null),
            Some(("file", rest)) => path(rest).map(Self::File),
            Some(("pipe", rest)) => path(rest).map(Self::Pipe),
            Some(("socket", rest)) => path(rest).map(Self::Socket),
            _ => Err(unknown("output", value, CHOICES)),
        }
    }
}

impl Plan {
    /// Reads all keys by `get`, which gives a key's value if it is there. What is not understood is told in the second
    /// part, and the usual taken in its place.
    ///
    /// # Errors
    /// Those of `get`.
    pub fn read<E>(
        mut get: impl FnMut(&'static str) -> Result<Option<String>, E>,
    ) -> Result<(Self, Vec<OutputError>), E> {
        let mut wrong = Vec::new();
        let mut plan = Self::default();
        // libxl's `output` of a channel names a character device of QEMU's.
        let output = get("output")?.filter(|value| !value.starts_with("chardev:"));
        let output = match output {
            Some(value) => Output::parse(&value),
            None => channel(get("connection")?.as_deref(), get("path")?.as_deref()),
        };
        plan.output = or_usual(output, &mut wrong);
        plan.name = get("name")?.and_then(|name| channel_name(&name));
        if let Some(value) = get("output-overflow")? {
            plan.overflow = or_usual(overflow(&value).map(Some), &mut wrong);
        }
        if let Some(value) = get("output-limit")? {
            plan.limit = or_usual(limit(&value).map(Some), &mut wrong);
        }
        if let Some(value) = get("output-sync")? {
            plan.sync = or_usual(sync(&value).map(Some), &mut wrong);
        }
        if let Some(value) = get("log")? {
            plan.log = or_usual(log(&value), &mut wrong);
        }
        Ok((plan, wrong))
    }
}

fn or_usual<T: Default>(read: Result<T, OutputError>, wrong: &mut Vec<OutputError>) -> T {
    read.unwrap_or_else(|error| {
        wrong.push(error);
        T::default()
    })
}

fn channel(connection: Option<&str>, path: Option<&str>) -> Result<Output, OutputError> {
    match connection {
        None | Some("" | "pty") => Ok(Output::Pty),
        Some("socket") => {
            let path = path.unwrap_or_default();
            absolute("path", path, path).map(Output::Socket)
        }
        Some(other) => Err(unknown("connection", other, "pty, socket")),
    }
}

/// A name that is no number, since it stands where a number may stand too.
fn channel_name(name: &str) -> Option<String> {
    let name = xen_types::file_name(name);
    let fits = name.len() <= NAME_MAX && !name.bytes().all(|byte| byte.is_ascii_digit());
    fits.then_some(name)
}

fn overflow(value: &str) -> Result<Overflow, OutputError> {
    match value {
        "drop" => Ok(Overflow::Drop),
        "block" => Ok(Overflow::Block),
        _ => Err(unknown("output-overflow", value, "drop, block")),
    }
}

fn limit(value: &str) -> Result<u64, OutputError> {
    let size = value.parse().ok().filter(|size| *size >= LIMIT_MIN);
    size.ok_or_else(|| unknown("output-limit", value, "the numbers from 4096 on"))
}

fn sync(value: &str) -> Result<Sync, OutputError> {
    match value {
        "never" => Ok(Sync::Never),
        "rotation" => Ok(Sync::Rotation),
        "always" => Ok(Sync::Always),
        _ => Err(unknown("output-sync", value, "never, rotation, always")),
    }
}

fn log(value: &str) -> Result<LogChoice, OutputError> {
    match value.split_once(':') {
        None if value == "none" => Ok(LogChoice::None),
        Some(("file", path)) => absolute("log", value, path).map(LogChoice::File),
        _ => Err(unknown("log", value, "none, file:PATH")),
    }
}

fn absolute(key: &'static str, value: &str, path: &str) -> Result<PathBuf, OutputError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(OutputError::RelativePath { key, value: short(value) })
    }
}

fn unknown(key: &'static str, value: &str, choices: &'static str) -> OutputError {
    OutputError::Unknown { key, value: short(value), choices }
}

fn short(value: &str) -> String {
    value.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;

    use super::*;

    #[test]
    fn the_kinds_are_told_apart() {
        for (value, output) in [
            ("", Output::Pty),
            ("pty", Output::Pty),
            ("null", Output::Null),
            ("file:/a:b", Output::File("/a:b".into())),
            ("pipe:/run/p", Output::Pipe("/run/p".into())),
            ("socket:/run/s", Output::Socket("/run/s".into())),
        ] {
            assert_eq!(Output::parse(value), Ok(output));
        }
        let relative = OutputError::RelativePath { key: "output", value: "file:x".to_owned() };
        assert_eq!(Output::parse("file:x"), Err(relative));
        for unknown in ["tcp:1", "vc"] {
            assert!(matches!(Output::parse(unknown), Err(OutputError::Unknown { .. })), "{unknown}");
        }
    }

    fn plan(keys: &[(&str, &str)]) -> (Plan, Vec<OutputError>) {
        let get = |key: &str| {
            let found = keys.iter().find(|(name, _)| *name == key);
            Ok::<_, Infallible>(found.map(|(_, value)| (*value).to_owned()))
        };
        let Ok(read) = Plan::read(get);
        read
    }

    #[test]
    fn libxl_s_channels_are_understood() {
        let (read, wrong) = plan(&[
            ("output", "chardev:libxl-channel0"),
            ("connection", "socket"),
            ("path", "/run/c"),
            ("name", "org.example"),
        ]);
        assert_eq!((read.output, wrong), (Output::Socket("/run/c".into()), Vec::new()));
        assert_eq!(read.name.as_deref(), Some("org.example"));
        assert_eq!(plan(&[("connection", "pty"), ("name", "12")]).0, Plan::default());
    }

    #[test]
    fn own_keys_are_read_and_nonsense_is_told() {
        let (read, wrong) = plan(&[
            ("output", "file:/a"),
            ("output-limit", "8192"),
            ("output-sync", "always"),
            ("output-overflow", "block"),
            ("log", "file:/b"),
        ]);
        let wanted = Plan {
            output: Output::File("/a".into()),
            overflow: Some(Overflow::Block),
            limit: Some(8192),
            sync: Some(Sync::Always),
            log: LogChoice::File("/b".into()),
            name: None,
        };
        assert_eq!((read, wrong), (wanted, Vec::new()));
        let (read, wrong) =
            plan(&[("output-limit", "12"), ("output-sync", "x"), ("log", "file:b"), ("connection", "tcp")]);
        assert_eq!((read, wrong.len()), (Plan::default(), 4));
    }
}
