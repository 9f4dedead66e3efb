//! The viewer's side on a real pseudo-terminal: this test starts itself once more as the viewer.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use console::attach::{AttachOptions, Ended, attach, connect};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use xen_types::DomId;

const FOLDER: &str = "OUTRIGGER_TEST_ATTACH";
const PATIENCE: Duration = Duration::from_secs(20);

/// Not a test of its own: the viewer that the others start.
#[test]
fn viewer() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let stream = connect(Path::new(&folder), DomId::new(5).unwrap(), 0).unwrap();
    let ended = attach(&stream, &AttachOptions::default()).unwrap();
    match ended {
        Ended::Escape => println!("ended by escape"),
        Ended::Closed => println!("ended by close"),
        Ended::Signal(number) => println!("ended by signal {number}"),
    }
}

struct Scene {
    _folder: tempfile::TempDir,
    console: UnixStream,
    /// The person's side of the terminal.
    person: File,
    /// What the viewer has as its standard input.
    terminal: File,
    before: Termios,
    viewer: Child,
    shown: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("5.0")).unwrap();
        let pty = openpty(None, None).unwrap();
        let (person, terminal) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&terminal).unwrap();
        let viewer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "viewer", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::from(terminal.try_clone().unwrap()))
            .spawn()
            .unwrap();
        assert!(readable(&listener), "the viewer did not come");
        let (console, _) = listener.accept().unwrap();
        let mut scene =
            Self { _folder: folder, console, person, terminal, before, viewer, shown: Vec::new() };
        scene.console.write_all(b"hello from the guest").unwrap();
        scene.until_shown(b"hello from the guest");
        assert!(!scene.is_cooked(), "the terminal is not raw");
        scene
    }

    fn is_cooked(&self) -> bool {
        tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    fn until_shown(&mut self, wanted: &[u8]) {
        while !self.shown.windows(wanted.len()).any(|part| part == wanted) {
            assert!(readable(&self.person), "was not shown: {:?}", String::from_utf8_lossy(wanted));
            let mut buffer = [0; 1024];
            let count = self.person.read(&mut buffer).unwrap();
            self.shown.extend_from_slice(&buffer[..count]);
        }
    }

    fn finish(mut self, said: &[u8]) {
        self.until_shown(said);
        assert!(wait(&mut self.viewer).success());
        assert_eq!(tcgetattr(&self.terminal).unwrap(), self.before, "the terminal is not as it was");
    }
}

fn readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()) == Ok(1)
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the viewer does not end");
        std::thread::yield_now();
    }
}

#[test]
fn the_escape_key_ends_it_and_what_was_typed_before_arrives() {
    let mut scene = Scene::new();
    scene.person.write_all(b"ab\x03\rc").unwrap();
    let mut typed = [0; 5];
    scene.console.set_read_timeout(Some(PATIENCE)).unwrap();
    scene.console.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"ab\x03\rc");
    scene.person.write_all(b"d\x1d").unwrap();
    scene.console.read_exact(&mut typed[..1]).unwrap();
    assert_eq!(typed[0], b'd');
    scene.finish(b"ended by escape");
}

#[test]
fn the_console_s_end_ends_it_after_its_last_bytes() {
    let mut scene = Scene::new();
    scene.console.write_all(b"last words").unwrap();
    scene.console.shutdown(std::net::Shutdown::Both).unwrap();
    scene.until_shown(b"last words");
    scene.finish(b"ended by close");
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_restored() {
    let scene = Scene::new();
    let pid = Pid::from_raw(i32::try_from(scene.viewer.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    scene.finish(b"ended by signal 15");
}
