//! The socket to which the daemon connects for a connection to another host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket;

/// A socket in a folder of its own, on which one connection is waited for.
pub(super) struct Channel<T> {
    path: String,
    /// Dropped, the wait ends.
    call: UnixStream,
    thread: JoinHandle<Result<Option<T>>>,
}

impl<T: Send + 'static> Channel<T> {
    /// Listens; the connection goes to `connected`, on a thread.
    pub(super) fn listen(connected: impl FnOnce(UnixStream) -> Result<T> + Send + 'static) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("outrigger-").tempdir();
        let folder = folder.context("Cannot make a folder for a socket")?;
        let path = folder.path().join("channel");
        let listener =
            UnixListener::bind(&path).with_context(|| format!("Cannot listen on {}", path.display()))?;
        let path =
            path.to_str().context("A path that is not UTF-8 cannot be given to outriggerd")?.to_owned();
        let (call, ended) = UnixStream::pair().context("Cannot wait for outriggerd")?;
        let thread = std::thread::spawn(move || {
            let mut wanted =
                [&listener.as_fd(), &ended.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
            while let Err(error) = poll(&mut wanted, PollTimeout::NONE) {
                if error != Errno::EINTR {
                    return Err(error).context("Cannot wait for outriggerd");
                }
            }
            // It may have connected and ended the call since.
            if wanted[0].any() != Some(true) {
                return Ok(None);
            }
            let (stream, _) = listener.accept().context("Cannot accept outriggerd's connection")?;
            // Nobody has to find it any more, and this process may be killed.
            drop((listener, folder));
            connected(stream).map(Some)
        });
        Ok(Self { path, call, thread })
    }

    /// The socket's absolute path.
    pub(super) fn path(&self) -> String {
        self.path.clone()
    }

    /// The call has ended. Waits for what becomes of the connection, if the daemon has made it.
    pub(super) fn finish(self) -> Result<Option<T>> {
        drop(self.call);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// How much is passed on at once, in bytes: a guest's memory passes, and `io::copy` takes 8 KiB.
const PIECE: usize = 64 << 10;

/// Passes on what comes, as it comes, until the end.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The ends of this process that the other host's bytes come from and go to.
pub(super) struct Ends {
    /// Such as standard input.
    pub(super) input: OwnedFd,
    /// Such as standard output.
    pub(super) output: OwnedFd,
}

impl Ends {
    /// Standard input and output, which nothing else of this process uses from now on.
    pub(super) fn standard() -> Result<Self> {
        let own = |fd: io::Result<OwnedFd>| fd.context("Cannot use standard input and output");
        let input = own(io::stdin().as_fd().try_clone_to_owned())?;
        let output = own(io::stdout().as_fd().try_clone_to_owned())?;
        // The other host sees the end as soon as the last copy is closed.
        let null = own(File::options().write(true).open("/dev/null").map(OwnedFd::from))?;
        nix::unistd::dup2_stdout(&null).context("Cannot use standard output")?;
        Ok(Self { input, output })
    }

    /// Copies in both directions until the daemon has closed its end; what it wrote last is copied then.
    pub(super) fn relay(self, daemon: UnixStream) -> Result<()> {
        let Self { input, output } = self;
        let mut to_daemon = daemon.try_clone().context("Cannot use outriggerd's connection")?;
        // Where the other host waits for the end of this one, it would never end: it is not waited for.
        std::thread::spawn(move || {
            // The daemon finds an end or a failure alike.
            let _ = pass(&mut File::from(input), &mut to_daemon);
            let _ = to_daemon.shutdown(Shutdown::Write);
        });
        let (mut from_daemon, mut sink) = (daemon, File::from(output));
        let copied = pass(&mut from_daemon, &mut sink);
        // Nobody takes any more of it: the daemon finds that when it writes.
        let _ = from_daemon.shutdown(Shutdown::Read);
        // An sshd has one socket for both directions, and it stays open for the other one.
        let _ = socket::shutdown(sink.as_raw_fd(), socket::Shutdown::Write);
        copied.context("Cannot pass on what outriggerd sends to the other host")
    }
}
