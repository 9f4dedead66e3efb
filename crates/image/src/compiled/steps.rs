//! Running configure, make and their like, with their words kept.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{ImageError, Result, files::create_dir_all, root::Root, tools::tells_of_full_disk};

use super::{Program, TREE, toolchain::command_in};

/// Where tools are looked for: Debian's, whatever else the machine has.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// So many of the last bytes of a log are looked at when something has failed.
const TAIL: i64 = 16 << 10;
/// So many of the last lines of a log are shown.
const LAST_LINES: usize = 12;

/// A build that is under way.
pub(super) struct Steps {
    program: Program,
    folder: PathBuf,
    log: PathBuf,
    file: File,
    jobs: usize,
    /// Where the tools are that compile, if they are not the machine's.
    tree: Option<PathBuf>,
}

impl Steps {
    /// Begins a build in a temporary folder; `log` keeps what its steps say.
    pub(super) fn begin(program: Program, folder: &Path, log: PathBuf, jobs: usize) -> Result<Self> {
        let file = File::create(&log).map_err(ImageError::io("create", &log))?;
        let this = Self { program, folder: folder.to_owned(), log, file, jobs: jobs.max(1), tree: None };
        create_dir_all(&this.kept())?;
        Ok(this)
    }

    /// Has commands run in a tree of tools from now on, and sources unpacked there.
    pub(super) fn enter(&mut self, tree: Option<PathBuf>) {
        self.tree = tree;
    }

    pub(super) fn program(&self) -> Program {
        self.program
    }

    /// Where sources are unpacked.
    pub(super) fn sources(&self) -> PathBuf {
        self.tree.as_ref().map_or_else(|| self.folder.join("sources"), |tree| tree.join("build/sources"))
    }

    /// Reads what a build has made below its sources. Where its compiler comes from, so may links, which lead nowhere else.
    pub(super) fn made(&self, path: &str) -> Result<Vec<u8>> {
        Root::of_folder(self.sources()).read(path)
    }

    /// How commands name a path.
    pub(super) fn inside(&self, path: &Path) -> PathBuf {
        let inner = self.tree.as_ref().and_then(|tree| path.strip_prefix(tree).ok());
        inner.map_or_else(|| path.to_owned(), |inner| Path::new("/").join(inner))
    }

    /// What is kept in the end.
    pub(super) fn output(&self) -> PathBuf {
        self.folder.join("output")
    }

    /// The files of it that go into images.
    fn kept(&self) -> PathBuf {
        self.output().join(TREE)
    }

    /// `-jN`.
    pub(super) fn jobs(&self) -> String {
        format!("-j{}", self.jobs)
    }

    /// A command in a folder with an environment in which nothing is left to chance.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
        match &self.tree {
            None => self.machines(program, folder),
            Some(tree) => fixed(command_in(tree, folder, program.as_ref())),
        }
    }

    /// The same with the machine's programs, wherever those are that compile.
    pub(super) fn machines(&self, program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
        let mut command = fixed(Command::new(program));
        command.current_dir(folder);
        command
    }

    /// Writes a line to the log.
    pub(super) fn note(&mut self, line: &str) {
        let _ = writeln!(self.file, "== {line}");
    }

    /// Runs a command to its end; its words go to the log.
    pub(super) fn run(&mut self, step: &'static str, command: &mut Command) -> Result<()> {
        let _ = writeln!(self.file, "== {step}: {command:?}");
        let start = self.file.stream_position().unwrap_or(0);
        let clone = || self.file.try_clone().map_err(ImageError::io("write", &self.log));
        let (output, errors) = (clone()?, clone()?);
        let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let words = self.last_words(start);
                Err(self.failed(step, if words.is_empty() { status.to_string() } else { words }))
            }
            Err(source) => Err(self.failed(step, format!("{}: {source}", command.get_program().display()))),
        }
    }

    /// The error of a step.
    pub(super) fn failed(&self, step: &'static str, last_words: String) -> ImageError {
        if tells_of_full_disk(&last_words) {
            return ImageError::DiskFull { path: self.folder.clone() };
        }
        ImageError::Compile { program: self.program.name(), step, log: self.log.clone(), last_words }
    }

    /// Puts a program that this machine is to run among the files that are kept.
    pub(super) fn put_program(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.put(path, bytes)?;
        let place = self.place(path);
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))
            .map_err(ImageError::io("set the mode of", &place))
    }

    /// Puts a file among those that go into images.
    pub(super) fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let place = self.place(path);
        create_dir_all(place.parent().unwrap_or(&place))?;
        fs::write(&place, bytes).map_err(ImageError::io("write", &place))
    }

    fn place(&self, path: &str) -> PathBuf {
        self.kept().join(path.trim_start_matches('/'))
    }

    /// The last lines of the log after a position.
    fn last_words(&self, start: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let end = file.seek(SeekFrom::End(0))?;
            let back = i64::try_from(end.saturating_sub(start)).unwrap_or(TAIL).min(TAIL);
            file.seek(SeekFrom::End(-back))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// An environment in which nothing is left to chance.
fn fixed(mut command: Command) -> Command {
    command
        .env_clear()
        .envs([("PATH", PATH), ("LC_ALL", "C"), ("TZ", "UTC"), ("HOME", "/nonexistent")])
        // 1 January 2020: some tools take zero for "not set".
        .env("SOURCE_DATE_EPOCH", "1577836800");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut steps = Steps::begin(Program::Qemu, dir.path(), log, 0).unwrap();
        assert_eq!(steps.jobs(), "-j1");
        let mut command = steps.command("/bin/sh", dir.path());
        steps.run("trying", command.args(["-c", script]))
    }

    #[test]
    fn test_run_failure_shows_the_last_words() {
        run("echo fine").unwrap();
        let error = run("seq 30; echo 'error: no such thing' >&2; exit 3").unwrap_err();
        let ImageError::Compile { step: "trying", last_words, .. } = error else { panic!("{error:?}") };
        assert!(last_words.starts_with("20\n") && last_words.ends_with("no such thing"), "{last_words}");
        let error = run("exit 4").unwrap_err().to_string();
        assert!(error.contains("status: 4"), "{error}");
    }

    #[test]
    fn test_run_full_disk_is_told_apart() {
        let error = run("echo 'ld: final link failed: No space left on device'; exit 1").unwrap_err();
        assert!(matches!(error, ImageError::DiskFull { .. }), "{error:?}");
    }

    #[test]
    fn test_what_was_made_is_no_file_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::begin(Program::Qemu, dir.path(), dir.path().join("log"), 0).unwrap();
        fs::create_dir(steps.sources()).unwrap();
        fs::write(dir.path().join("secret"), "the machine's").unwrap();
        for (name, target) in [("absolute", dir.path().join("secret")), ("up", "../secret".into())] {
            std::os::unix::fs::symlink(target, steps.sources().join(name)).unwrap();
            assert!(matches!(steps.made(name), Err(ImageError::NotInRoot { .. })), "{name}");
        }
        fs::write(steps.sources().join("made"), "1").unwrap();
        assert_eq!(steps.made("made").unwrap(), b"1");
    }

    #[test]
    fn test_command_has_nothing_of_the_environment() {
        run("test -z \"$CARGO\" && test \"$(printenv | wc -l)\" -le 8").unwrap();
    }
}
