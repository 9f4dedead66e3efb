//! `outrigger save`, `dump-core`, `restore`, `suspend` and `resume`.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use api::client::Client;
use api::types::{DumpParameters, GuestParameter, RestoreParameters, SaveParameters};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::follow::{Cancelling, Json, cancel_on_signal, follow};
use super::{change, console, create, each_of};
use crate::cli::{DumpCore, Restore, Save};
use crate::report::Usage;

/// The words for cancelling a save.
const SAVING: Cancelling = Cancelling {
    what: "the save",
    too_late: "the save has not begun, or its file is complete; press Ctrl-C again to exit",
};

/// The words for cancelling a dump.
const DUMPING: Cancelling = Cancelling {
    what: "the dump",
    too_late: "the dump has not begun, or its file is complete; press Ctrl-C again to exit",
};

/// Saves a guest and shows the steps.
pub(crate) fn save(
    connect: impl Fn() -> Result<Client> + Clone + Send + 'static,
    args: &Save,
) -> Result<ExitCode> {
    let pipe = if is_dash(&args.file) {
        if io::stdout().is_terminal() {
            bail!("Refusing to write a saved guest to a terminal: redirect standard output, or name a file");
        }
        Some(Pipe::to_stdout()?)
    } else {
        None
    };
    let parameters = SaveParameters {
        guest: args.guest.clone(),
        path: path_of(&args.file, pipe.as_ref())?,
        checkpoint: args.checkpoint,
        // Until the last byte has left this process, there has to be a guest to go on.
        paused: args.paused || (pipe.is_some() && !args.checkpoint),
    };
    let client = &mut connect()?;
    cancel_on_signal(connect, args.guest.clone(), SAVING)?;
    // Standard output may be the saved guest.
    let json = args.json.then_some(if pipe.is_some() { Json::Stderr } else { Json::Stdout });
    follow(client, "Save", &parameters, json)?;
    let Some(pipe) = pipe else { return Ok(ExitCode::SUCCESS) };
    let copied = pipe.finish();
    if args.paused || args.checkpoint {
        return copied.map(|()| ExitCode::SUCCESS);
    }
    let guest = GuestParameter { guest: args.guest.clone() };
    if let Err(error) = copied {
        let _: serde_json::Value = client.call("Unpause", &guest)?;
        return Err(error.context(format!("{} was not saved and continues to run", args.guest)));
    }
    follow(client, "Destroy", &guest, json)?;
    Ok(ExitCode::SUCCESS)
}

/// Dumps the memory of a guest and shows the steps.
pub(crate) fn dump_core(
    connect: impl Fn() -> Result<Client> + Clone + Send + 'static,
    args: &DumpCore,
) -> Result<ExitCode> {
    if is_dash(&args.file) {
        return Err(Usage("dump-core writes to a file, not to standard output".to_owned()).into());
    }
    let path = path_of(&args.file, None)?;
    let parameters = DumpParameters { guest: args.guest.clone(), path, live: args.live };
    let client = &mut connect()?;
    cancel_on_signal(connect, args.guest.clone(), DUMPING)?;
    follow(client, "DumpCore", &parameters, args.json.then_some(Json::Stdout))?;
    Ok(ExitCode::SUCCESS)
}

/// Restores a guest and shows the steps.
pub(crate) fn restore(connect: impl Fn() -> Result<Client>, args: &Restore) -> Result<ExitCode> {
    if args.console && is_dash(&args.file) {
        bail!("Standard input is the saved guest, and cannot be its console: attach later, or name a file");
    }
    let pipe = if is_dash(&args.file) { Some(Pipe::from_stdin()?) } else { None };
    let parameters = RestoreParameters {
        path: path_of(&args.file, pipe.as_ref())?,
        name: args.name.clone().unwrap_or_default(),
        force: args.force,
        paused: args.paused,
    };
    let json = args.json.then_some(Json::Stdout);
    // Subscribed before the guest exists, so that no end is missed.
    let watcher = if args.foreground { Some(create::watch(&connect)?) } else { None };
    let restored = follow(&mut connect()?, "Restore", &parameters, json)?;
    let guest = restored.guest.context("outriggerd completed the restore without returning the guest")?;
    if args.console {
        return console::serial(&guest, 0, true);
    }
    if !args.json {
        let paused = if args.paused { ", paused" } else { "" };
        println!("{} is restored as domain {}{paused}", guest.name, guest.domid);
    }
    match watcher {
        Some(watcher) => create::until_its_end(watcher, &guest, args.json),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Suspends or resumes each guest and shows the steps.
pub(crate) fn each(client: &mut Client, method: &str, guests: &[String]) -> Result<ExitCode> {
    each_of(guests, |guest| {
        change::steps(client, method, &GuestParameter { guest: guest.to_owned() }).map(drop)
    })
}

fn is_dash(file: &Path) -> bool {
    file == Path::new("-")
}

/// What the daemon opens: it does not know this folder.
fn path_of(file: &Path, pipe: Option<&Pipe>) -> Result<String> {
    let path = match pipe {
        Some(pipe) => pipe.path.clone(),
        None => std::path::absolute(file)
            .with_context(|| format!("Cannot determine the absolute path of {}", file.display()))?,
    };
    Ok(path.to_str().context("A path that is not UTF-8 cannot be given to outriggerd")?.to_owned())
}

/// A named pipe in a folder of its own, between the daemon and one of this process's own streams.
struct Pipe {
    /// Removed when this ends, with what is in it.
    _folder: TempDir,
    path: PathBuf,
    copy: JoinHandle<io::Result<()>>,
}

impl Pipe {
    /// From the daemon to standard output.
    fn to_stdout() -> Result<Self> {
        Self::to(io::stdout())
    }

    /// From standard input to the daemon.
    fn from_stdin() -> Result<Self> {
        Self::from(io::stdin())
    }

    fn to(mut sink: impl Write + Send + 'static) -> Result<Self> {
        let (folder, path) = make()?;
        // Before the daemon is asked: it refuses a pipe that nobody reads.
        let mut pipe = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path)
            .with_context(|| format!("Cannot open the pipe {}", path.display()))?;
        let copy = std::thread::spawn(move || {
            // Until the daemon has opened it, reading would find an end.
            poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty()))?;
            io::copy(&mut pipe, &mut sink)?;
            // What standard output holds back would be written at this process's end, and an error not told.
            sink.flush()
        });
        Ok(Self { _folder: folder, path, copy })
    }

    fn from(mut source: impl Read + Send + 'static) -> Result<Self> {
        let (folder, path) = make()?;
        let opened = path.clone();
        let copy = std::thread::spawn(move || {
            // Waits for the daemon: a pipe forgets what is in it when nobody has it open.
            let mut pipe = OpenOptions::new().write(true).open(opened)?;
            io::copy(&mut source, &mut pipe).map(drop)
        });
        Ok(Self { _folder: folder, path, copy })
    }

    /// Waits until all of it is copied.
    fn finish(self) -> Result<()> {
        match self.copy.join() {
            Ok(copied) => copied.context("Cannot write the saved guest to standard output"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A named pipe, and the folder of its own that it is in.
fn make() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::Builder::new().prefix("outrigger-").tempdir();
    let folder = folder.context("Cannot make a folder for a pipe")?;
    let path = folder.path().join("stream");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
        .with_context(|| format!("Cannot make the pipe {}", path.display()))?;
    Ok((folder, path))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::ffi::OsStrExt as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// How long anything that has to come may take.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// More than a pipe holds, and less.
    fn contents() -> [Vec<u8>; 3] {
        [(0..1_000_003_u32).map(|n| n.to_le_bytes()[0]).collect(), b"\x00no newline".to_vec(), Vec::new()]
    }

    /// Sends what was written when it is flushed.
    struct Sink(Vec<u8>, mpsc::Sender<Vec<u8>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.1.send(self.0.clone()).map_err(io::Error::other)
        }
    }

    /// Runs it on a thread, and waits no longer than anything may take.
    fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || sender.send(work()));
        done.recv_timeout(PATIENCE).expect("it ends")
    }

    #[test]
    fn path_that_the_daemon_gets_depends_on_no_folder() {
        let absolute = path_of(Path::new("x/hello.save"), None).unwrap();
        assert_eq!(Path::new(&absolute), std::env::current_dir().unwrap().join("x/hello.save"));
        assert_eq!(path_of(Path::new("/srv/hello.save"), None).unwrap(), "/srv/hello.save");
        let strange = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        assert!(path_of(strange, None).unwrap_err().to_string().contains("UTF-8"));
        let pipe = Pipe::from(io::empty()).unwrap();
        let path = path_of(Path::new("-"), Some(&pipe)).unwrap();
        assert_eq!(Path::new(&path), pipe.path);
        assert!(is_dash(Path::new("-")) && !is_dash(Path::new("./-")));
    }

    #[test]
    fn everything_that_the_daemon_writes_is_copied_and_flushed() {
        for content in contents() {
            let (sender, flushed) = mpsc::channel();
            let pipe = Pipe::to(Sink(Vec::new(), sender)).unwrap();
            let (path, written) = (pipe.path.clone(), content.clone());
            soon(move || {
                // As the daemon: it finds a reader at once.
                let flags = OFlag::O_NONBLOCK.bits();
                let mut end = OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap();
                fcntl(&end, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
                end.write_all(&written).unwrap();
            });
            let path = pipe.path.clone();
            soon(move || pipe.finish()).unwrap();
            assert_eq!(flushed.recv_timeout(PATIENCE).unwrap(), content);
            assert!(!path.exists() && !path.parent().unwrap().exists());
        }
    }

    #[test]
    fn everything_is_copied_to_a_daemon_that_opens_the_pipe_late() {
        for content in contents() {
            let pipe = Pipe::from(io::Cursor::new(content.clone())).unwrap();
            let path = pipe.path.clone();
            assert_eq!(soon(move || fs::read(path)).unwrap(), content);
            soon(move || pipe.finish()).unwrap();
        }
    }

    #[test]
    fn pipe_that_the_daemon_never_opens_holds_nobody_up() {
        let pipes = soon(|| [Pipe::to(io::sink()).unwrap(), Pipe::from(io::repeat(0)).unwrap()]);
        for pipe in pipes {
            let path = pipe.path.clone();
            soon(move || drop(pipe));
            assert!(!path.parent().unwrap().exists());
        }
    }

    #[test]
    fn output_that_cannot_be_written_is_told() {
        let pipe = Pipe::to(File::options().write(true).open("/dev/full").unwrap()).unwrap();
        let path = pipe.path.clone();
        soon(move || fs::write(path, b"saved")).unwrap();
        let error = soon(move || pipe.finish()).unwrap_err();
        assert!(error.to_string().contains("standard output"), "{error:#}");
    }
}
