//! The connection between two hosts' daemons, as clients make it, which can be lost.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use tempfile::TempDir;

/// The type of the message after which the guest is the receiver's if that wants it.
const GO: u16 = 7;

/// Where a connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nowhere.
    Never,
    /// Before GO arrives.
    BeforeGo,
    /// After GO has arrived: its answer does not.
    AfterGo,
}

/// Two sockets, for the daemons of two hosts.
pub(crate) struct Link {
    folder: TempDir,
}

impl Link {
    /// Makes two sockets, and connects the clients of one with those of the other.
    pub(crate) fn new(cut: Cut) -> Self {
        let link = Self { folder: tempfile::tempdir().unwrap() };
        let listeners = [link.sender(), link.receiver()].map(|path| UnixListener::bind(path).unwrap());
        thread::spawn(move || {
            let [sender, receiver] = listeners.map(|listener| listener.accept().unwrap().0);
            let (answers, back) = (receiver.try_clone().unwrap(), sender.try_clone().unwrap());
            if cut != Cut::AfterGo {
                thread::spawn(move || pass_on(answers, back));
                return pass_frames(sender, receiver, cut);
            }
            let (mut answers, mut back) = (answers, back);
            // What comes after the last frame that the sender may see is lost.
            let passer = thread::spawn(move || copy_until_lost(&mut answers, &mut back));
            pass_frames(sender, receiver, cut);
            let _ = passer.join();
        });
        link
    }

    /// The sender's.
    pub(crate) fn sender(&self) -> String {
        self.path("sender")
    }

    /// The receiver's.
    pub(crate) fn receiver(&self) -> String {
        self.path("receiver")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn copy_until_lost(from: &mut UnixStream, to: &mut UnixStream) {
    // The sender's end is shut down before GO is passed on: writing there fails.
    let _ = io::copy(from, to);
    // The receiver does not notice.
    let _ = io::copy(from, &mut io::sink());
}

/// Passes the sender's frames on, up to where the connection is lost.
fn pass_frames(mut from: UnixStream, mut to: UnixStream, cut: Cut) {
    while let Ok((kind, frame)) = frame(&mut from) {
        if kind == GO && cut != Cut::Never {
            from.shutdown(Shutdown::Both).unwrap();
        }
        if (kind == GO && cut == Cut::BeforeGo) || to.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The next frame and its type; `docs/migration.md` has its form.
fn frame(from: &mut UnixStream) -> io::Result<(u16, Vec<u8>)> {
    let mut frame = vec![0; 6];
    from.read_exact(&mut frame)?;
    let length = u32::from_le_bytes(frame[..4].try_into().unwrap());
    let kind = u16::from_le_bytes(frame[4..].try_into().unwrap());
    frame.resize(6 + usize::try_from(length).unwrap() + 4, 0);
    from.read_exact(&mut frame[6..])?;
    Ok((kind, frame))
}
