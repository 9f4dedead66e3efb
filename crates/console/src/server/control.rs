//! The control socket: clients that say in a line what they want, and become viewers or streams.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use tracing::debug;
use xen_types::DomId;

use super::ends::Role;
use super::id::ConsoleId;
use super::poller::{Poller, Slot, Source};
use super::{ACCEPT_REST, Due, Server, ServerError};
use crate::platform::Platform;
use crate::request::{CONTROL, LINE_MAX, Request, Wanted, Which};

/// Clients that have not said yet what they want.
const GUESTS_MAX: usize = 32;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    slot: Slot,
    path: PathBuf,
    guests: BTreeMap<u64, Guest>,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    stream: UnixStream,
    slot: Slot,
    line: Vec<u8>,
}

impl Control {
    pub(crate) fn open(folder: &std::path::Path, poller: &mut Poller) -> io::Result<Self> {
        let path = folder.join(CONTROL);
        // The lock file says that no other daemon lives here: what is there is stale.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let slot = poller.add(&listener, Source::Control, EpollFlags::EPOLLIN)?;
        Ok(Self { listener, slot, path, guests: BTreeMap::new(), next: 0 })
    }

    /// Ignores the listener for a while, or no longer.
    pub(crate) fn rest(&mut self, poller: &Poller, rest: bool) {
        let interest = if rest { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        poller.set(&mut self.slot, &self.listener, interest);
    }

    pub(crate) fn remove(self) {
        // It may be gone with the whole folder.
        let _ = fs::remove_file(self.path);
    }
}

/// Whether a client could not be accepted because of the client itself. With any other error, such as EMFILE, it still
/// waits, and the listener would be readable without end.
pub(crate) fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

impl<P: Platform> Server<P> {
    pub(crate) fn accept_guest(&mut self) {
        let stream = match self.control.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_of_client(&error) => return,
            Err(error) => {
                debug!(%error, "cannot accept a client now");
                self.control.rest(&self.poller, true);
                self.schedule(Instant::now() + ACCEPT_REST, Due::AcceptClients);
                return;
            }
        };
        if self.control.guests.len() >= GUESTS_MAX {
            debug!("refused a client: too many are connected");
            return;
        }
        let number = self.control.next;
        self.control.next += 1;
        let added = stream
            .set_nonblocking(true)
            .and_then(|()| self.poller.add(&stream, Source::Guest(number), EpollFlags::EPOLLIN));
        if let Ok(slot) = added {
            self.control.guests.insert(number, Guest { stream, slot, line: Vec::new() });
            self.schedule(Instant::now() + PATIENCE, Due::Dismiss(number));
        }
    }

    /// Takes leave of a client that has not said what it wants.
    pub(crate) fn dismiss_guest(&mut self, number: u64) {
        if let Some(guest) = self.control.guests.remove(&number) {
            self.poller.remove(&guest.slot, &guest.stream);
        }
    }

    pub(crate) fn hear_guest(&mut self, number: u64) -> Result<(), ServerError> {
        let Some(guest) = self.control.guests.get_mut(&number) else { return Ok(()) };
        // Byte by byte: what follows the line is for the console.
        loop {
            let mut byte = [0];
            match guest.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if guest.line.len() < LINE_MAX => guest.line.extend_from_slice(&byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.dismiss_guest(number);
                    return Ok(());
                }
            }
        }
        let Some(Guest { stream, slot, line }) = self.control.guests.remove(&number) else { return Ok(()) };
        self.poller.remove(&slot, &stream);
        let answered = match Request::parse(&String::from_utf8_lossy(&line)) {
            Ok(Request::List) => say(&stream, &format!("ok\n{}", self.report())),
            Ok(Request::View { console, since }) => {
                let since = since.and_then(|since| Instant::now().checked_sub(since));
                self.look_if_given_away(console.domid)?;
                self.introduce(stream, &console, Role::Viewer, since)
            }
            Ok(Request::Stream { console }) => {
                self.look_if_given_away(console.domid)?;
                self.introduce(stream, &console, Role::Stream, None)
            }
            Err(error) => say(&stream, &format!("error {error}\n")),
        };
        if let Err(error) = answered {
            debug!(%error, "cannot send an answer to a client");
        }
        Ok(())
    }

    /// Updates the domains if another one has the domid now: a request for a domid means the domain that has it.
    fn look_if_given_away(&mut self, domid: DomId) -> Result<(), ServerError> {
        let Some(uuid) = self.domains.get(&domid).copied() else { return Ok(()) };
        if self.is_still(domid, uuid) { Ok(()) } else { self.look_at_domains() }
    }

    fn introduce(
        &mut self,
        stream: UnixStream,
        wanted: &Wanted,
        role: Role,
        since: Option<Instant>,
    ) -> io::Result<()> {
        if let (Some(meant), Some(uuid)) = (wanted.uuid, self.domains.get(&wanted.domid))
            && meant != *uuid
        {
            let domid = wanted.domid;
            return say(&stream, &format!("error Domain {domid} now has the UUID {uuid}, not {meant}\n"));
        }
        let Some(key) = self.wanted(wanted) else {
            return say(&stream, &format!("error There is no console {wanted}\n"));
        };
        let Some(console) = self.consoles.get_mut(&key) else { return Ok(()) };
        if let Some(why) = console.refuses(role) {
            return say(&stream, &format!("error {why}\n"));
        }
        say(&stream, "ok\n")?;
        console.admit(&mut self.poller, stream, role, since)?;
        self.queue(key);
        Ok(())
    }

    fn wanted(&self, wanted: &Wanted) -> Option<u64> {
        match &wanted.which {
            Which::Number(number) => {
                self.names.get(&ConsoleId { domid: wanted.domid, number: *number }).copied()
            }
            Which::Name(name) => {
                let named = |key: &&u64| {
                    let console = self.consoles.get(key)?;
                    console.name.as_ref().filter(|(own, _)| own == name)
                };
                let first = ConsoleId { domid: wanted.domid, number: 0 };
                let last = ConsoleId { domid: wanted.domid, number: u32::MAX };
                self.names.range(first..=last).map(|(_, key)| key).find(|key| named(key).is_some()).copied()
            }
        }
    }

    /// A line a console.
    fn report(&self) -> String {
        let mut text = String::new();
        for (id, key) in &self.names {
            let Some(console) = self.consoles.get(key) else { continue };
            let connected = if console.wire.is_some() { "connected" } else { "waiting" };
            let tty = console.tty.as_deref().unwrap_or("-");
            let name = console.name.as_ref().map_or("-", |(name, _)| name);
            // Writing into a string does not fail.
            let (total, viewers) = (console.total(), console.viewers());
            let _ = writeln!(text, "{id} {connected} {total} {viewers} {tty} {name} {}", console.uuid);
        }
        text
    }
}

/// Sends a short answer, or one that the client has asked for: a client that does not read it at once gets less.
fn say(mut stream: &UnixStream, text: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(text.as_bytes())?;
    stream.set_write_timeout(None)?;
    stream.set_nonblocking(true)
}
