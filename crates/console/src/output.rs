//! Where a console's bytes go beside its log and its socket: the `output` key of xenstore.

use std::path::PathBuf;

use thiserror::Error;

/// The main output of one console, as the key `output` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// A pseudo-terminal whose path is written to the key `tty`, as stock tools expect.
    #[default]
    Pty,
    /// A regular file that is appended to, size-limited and rotated like a log.
    File(PathBuf),
    /// A named pipe that someone else made; a full pipe holds up this one domain, nothing is dropped.
    Pipe(PathBuf),
    /// Nothing: only the log and the socket.
    Null,
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

/// Why the key `output` is not understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OutputError {
    /// The path is relative, and to what would be anybody's guess.
    #[error("The console output \"{0}\" needs an absolute path")]
    RelativePath(String),
    /// The word before the colon is none of ours.
    #[error("The console output \"{0}\" is not known (pty, file:PATH, pipe:PATH, null)")]
    Unknown(String),
}

impl Output {
    /// Reads the value of the key; nothing at all means a pseudo-terminal.
    ///
    /// # Errors
    /// When the kind is not known or a path is not absolute.
    pub fn parse(value: &str) -> Result<Self, OutputError> {
        let path = |path: &str| {
            let absolute = path.starts_with('/') && !path.contains('\0');
            if absolute { Ok(PathBuf::from(path)) } else { Err(OutputError::RelativePath(short(value))) }
        };
        match value.split_once(':') {
            None if value.is_empty() || value == "pty" => Ok(Self::Pty),
            None if value == "null" => Ok(Self::Null),
            Some(("file", rest)) => path(rest).map(Self::File),
            Some(("pipe", rest)) => path(rest).map(Self::Pipe),
            _ => Err(OutputError::Unknown(short(value))),
        }
    }
}

fn short(value: &str) -> String {
    value.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_are_told_apart() {
        for (value, output) in [
            ("", Output::Pty),
            ("pty", Output::Pty),
            ("null", Output::Null),
            ("file:/a:b", Output::File("/a:b".into())),
            ("pipe:/run/p", Output::Pipe("/run/p".into())),
        ] {
            assert_eq!(Output::parse(value), Ok(output));
        }
        assert_eq!(Output::parse("file:x"), Err(OutputError::RelativePath("file:x".to_owned())));
        assert_eq!(Output::parse("tcp:1"), Err(OutputError::Unknown("tcp:1".to_owned())));
        assert_eq!(Output::parse("vc"), Err(OutputError::Unknown("vc".to_owned())));
    }
}
