//! What bytes come out of: a file that grows, a pseudo-terminal, a console's socket, the ring itself.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::platform::{Platform as _, RESERVED_CONSOLE_GRANT};
use console::ring::{BackendRing, OUT_SIZE};
use console::xen_platform::XenPlatform;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::harness::console_guest::ConsoleGuest;
use crate::harness::seconds;

/// Bytes of a line of the guest's.
const LINE: usize = 16;

/// The number of the last whole line of a file that may have been rotated a moment ago.
pub(super) fn last_line(path: &Path) -> Option<u64> {
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(".1");
    [path.to_owned(), PathBuf::from(rotated)]
        .iter()
        .filter_map(|path| last_line_of(path).ok().flatten())
        .max()
}

fn last_line_of(path: &Path) -> Result<Option<u64>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let start = size.saturating_sub(2 * LINE as u64);
    let mut bytes = vec![0; usize::try_from(size - start)?];
    file.read_exact_at(&mut bytes, start)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes[end.saturating_sub(LINE - 1)..end]).into_owned();
    Ok((text.len() == LINE - 1).then(|| u64::from_str_radix(&text, 16).ok()).flatten())
}

/// Bytes a second that reach files, all together.
pub(super) fn file_rate(paths: &[PathBuf], window: Duration) -> Result<f64> {
    let read = || paths.iter().map(|path| last_line(path).unwrap_or(0)).sum::<u64>();
    let deadline = Instant::now() + seconds(60);
    while !paths.iter().all(|path| last_line(path).is_some()) {
        ensure!(Instant::now() < deadline, "nothing comes to {paths:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (start, before) = (Instant::now(), read());
    std::thread::sleep(window);
    let (took, after) = (start.elapsed(), read());
    let bytes = (after - before) * LINE as u64;
    Ok(precise(bytes) / took.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "counts of bytes in a few seconds")]
pub(super) fn precise(number: u64) -> f64 {
    number as f64
}

/// A pseudo-terminal, raw and non-blocking.
pub(super) fn open_tty(path: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_NONBLOCK).bits())
        .open(path)
        .with_context(|| format!("cannot open {path}"))?;
    let mut attributes = tcgetattr(&file)?;
    cfmakeraw(&mut attributes);
    tcsetattr(&file, SetArg::TCSANOW, &attributes)?;
    Ok(file)
}

/// Bytes a second that can be read, all together.
pub(super) fn read_rate(mut files: Vec<File>, window: Duration) -> Result<f64> {
    let mut buffer = [0; 16384];
    let mut bytes = 0_u64;
    let mut start = None;
    loop {
        let mut fds: Vec<PollFd<'_>> =
            files.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
        ensure!(poll(&mut fds, PollTimeout::try_from(seconds(20))?)? > 0, "nothing comes");
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for (file, _) in files.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            match file.read(&mut buffer) {
                Ok(count) => bytes += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What waited before the start does not count.
        let begun = *start.get_or_insert_with(|| (Instant::now(), bytes));
        let took = begun.0.elapsed();
        if took >= window {
            return Ok(precise(bytes - begun.1) / took.as_secs_f64());
        }
    }
}

fn ptys(count: usize) -> Result<(Vec<console::pty::Pty>, Vec<File>)> {
    let mut both = (Vec::new(), Vec::new());
    for _ in 0..count {
        let pty = console::pty::Pty::open()?;
        both.1.push(open_tty(&pty.path().to_string_lossy())?);
        both.0.push(pty);
    }
    Ok(both)
}

/// Bytes a second that pseudo-terminals carry when nothing else is done: their own limit here.
pub(super) fn pty_rate(count: usize, window: Duration) -> Result<f64> {
    const PIECE: [u8; 2048] = [b'x'; 2048];
    let (masters, slaves) = ptys(count)?;
    let (done, stopped) = std::sync::mpsc::channel::<()>();
    // One thread, as the daemons have it.
    let writer = std::thread::spawn(move || -> Result<()> {
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let mut fds: Vec<PollFd<'_>> =
                masters.iter().map(|master| PollFd::new(master.as_fd(), PollFlags::POLLOUT)).collect();
            poll(&mut fds, PollTimeout::from(1000_u16))?;
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            for (master, _) in masters.iter().zip(ready).filter(|(_, ready)| *ready) {
                while nix::unistd::write(master, &PIECE).is_ok_and(|count| count == PIECE.len()) {}
            }
        }
        Ok(())
    });
    let rate = read_rate(slaves, window);
    drop(done);
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    rate
}

/// Bytes a second that come out of guests' rings when nothing is done with them: no daemon may have them.
pub(super) fn ring_rate(guests: &[ConsoleGuest], window: Duration) -> Result<f64> {
    let start = Instant::now();
    let bytes = relay(guests, |_, _| Ok(()), || start.elapsed() < window)?;
    Ok(precise(bytes) / start.elapsed().as_secs_f64())
}

/// Bytes a second that the barest relay brings from guests' rings into files: no daemon may have them.
pub(super) fn file_relay_rate(guests: &[ConsoleGuest], folder: &Path, window: Duration) -> Result<f64> {
    let files: Vec<File> = (0..guests.len())
        .map(|nth| Ok(File::create(folder.join(format!("relay-{nth}")))?))
        .collect::<Result<_>>()?;
    let start = Instant::now();
    let into = |nth: usize, bytes: &[u8]| Ok((&files[nth]).write_all(bytes)?);
    let bytes = relay(guests, into, || start.elapsed() < window)?;
    Ok(precise(bytes) / start.elapsed().as_secs_f64())
}

/// Bytes a second that the barest relay brings from guests' rings through pseudo-terminals: no daemon may have them.
pub(super) fn pty_relay_rate(guests: Vec<ConsoleGuest>, window: Duration) -> Result<f64> {
    let (masters, slaves) = ptys(guests.len())?;
    let (done, stopped) = std::sync::mpsc::channel::<()>();
    let relaying = std::thread::spawn(move || -> Result<u64> {
        let into = |nth: usize, mut bytes: &[u8]| -> Result<()> {
            while !bytes.is_empty() {
                match nix::unistd::write(&masters[nth], bytes) {
                    Ok(count) => bytes = &bytes[count..],
                    Err(nix::errno::Errno::EAGAIN) => {
                        let mut fds = [PollFd::new(masters[nth].as_fd(), PollFlags::POLLOUT)];
                        poll(&mut fds, PollTimeout::from(1000_u16))?;
                        // At the end nobody reads any more.
                        if fds[0].revents() != Some(PollFlags::POLLOUT) {
                            return Ok(());
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        relay(&guests, into, || stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty))
    });
    let rate = read_rate(slaves, window);
    drop(done);
    relaying.join().map_err(|_| anyhow::anyhow!("the relay panicked"))??;
    rate
}

/// Takes bytes out of guests' rings and hands them on, with no more than that, and counts them.
fn relay(
    guests: &[ConsoleGuest],
    mut into: impl FnMut(usize, &[u8]) -> Result<()>,
    goes_on: impl Fn() -> bool,
) -> Result<u64> {
    let mut platform = XenPlatform::open()?;
    let mut rings = Vec::new();
    for guest in guests {
        let page = platform
            .map_grant(guest.domid, RESERVED_CONSOLE_GRANT)
            .or_else(|_| platform.map_frame(guest.domid, guest.frame))?;
        rings.push((BackendRing::new(page), platform.bind(guest.domid, guest.port)?));
    }
    let mut buffer = [0; OUT_SIZE];
    let mut bytes = 0_u64;
    while goes_on() {
        let fired = platform.next_event()?;
        for (nth, (ring, port)) in rings.iter_mut().enumerate() {
            let count = ring.take(&mut buffer)?;
            if count > 0 {
                bytes += count as u64;
                platform.notify(*port);
                into(nth, &buffer[..count])?;
            }
        }
        match fired {
            Some(port) => platform.unmask(port),
            None => {
                let mut fds = [PollFd::new(platform.event_fd(), PollFlags::POLLIN)];
                ensure!(poll(&mut fds, PollTimeout::try_from(seconds(20))?)? > 0, "no event comes");
            }
        }
    }
    Ok(bytes)
}

/// How long a byte takes to the guest and back, in milliseconds, so many times. What else comes back is an error.
pub(super) fn echoes(mut end: impl Read + Write, times: u32) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for time in 0..times {
        let sent = [b'a' + u8::try_from(time % 26)?];
        let start = Instant::now();
        end.write_all(&sent)?;
        let mut got = [0];
        end.read_exact(&mut got).context("no echo")?;
        ensure!(got == sent, "{got:?} came back for {sent:?}");
        took.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}

/// A pseudo-terminal that is waited for.
pub(super) fn open_tty_blocking(path: &str) -> Result<File> {
    let file = open_tty(path)?;
    let flags =
        nix::fcntl::OFlag::from_bits_truncate(nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL)?);
    let blocking = nix::fcntl::FcntlArg::F_SETFL(flags & !nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&file, blocking)?;
    Ok(file)
}

/// A console's socket, with a deadline.
pub(super) fn socket(guest: &ConsoleGuest) -> Result<UnixStream> {
    let deadline = Instant::now() + seconds(30);
    loop {
        match console::attach::connect(Path::new(console::attach::SOCKET_DIR), guest.domid, 0) {
            Ok(stream) => {
                stream.set_read_timeout(Some(seconds(30)))?;
                return Ok(stream);
            }
            Err(error) => ensure!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a file has so many bytes.
pub(super) fn wait_for_size(path: &Path, size: u64) -> Result<()> {
    let deadline = Instant::now() + seconds(60);
    while fs::metadata(path).map_or(0, |about| about.len()) < size {
        ensure!(Instant::now() < deadline, "{} does not grow to {size} bytes", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes what earlier measurements left.
pub(super) fn fresh_folder(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(fs::create_dir_all(path)?)
}
