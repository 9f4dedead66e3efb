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
use super::listener::is_of_client;
use super::poller::{Poller, Slot, Source};
use super::scheduler::Due;
use super::{ACCEPT_REST, Server, ServerError};
use crate::platform::Platform;
use crate::request::{CONTROL, LINE_MAX, Request, Wanted, Which};

/// Clients that have not said yet what they want.
const CLIENTS_MAX: usize = 32;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    slot: Slot,
    path: PathBuf,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
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
        Ok(Self { listener, slot, path, clients: BTreeMap::new(), next: 0 })
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

impl<P: Platform> Server<P> {
    pub(crate) fn accept_client(&mut self) {
        let stream = match self.control.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_of_client(&error) => return,
            Err(error) => {
                debug!(%error, "cannot accept a client now");
                self.control.rest(&self.poller, true);
                self.scheduler.schedule(Instant::now() + ACCEPT_REST, Due::AcceptClients);
                return;
            }
        };
        if self.control.clients.len() >= CLIENTS_MAX {
            debug!("refused a client: too many are connected");
            return;
        }
        let number = self.control.next;
        self.control.next += 1;
        let added = stream
            .set_nonblocking(true)
            .and_then(|()| self.poller.add(&stream, Source::Client(number), EpollFlags::EPOLLIN));
        if let Ok(slot) = added {
            self.control.clients.insert(number, Client { stream, slot, line: Vec::new() });
            self.scheduler.schedule(Instant::now() + PATIENCE, Due::Dismiss(number));
        }
    }

    /// Takes leave of a client that has not said what it wants.
    pub(crate) fn dismiss_client(&mut self, number: u64) {
        if let Some(client) = self.control.clients.remove(&number) {
            self.poller.remove(&client.slot, &client.stream);
        }
    }

    pub(crate) fn read_client(&mut self, number: u64) -> Result<(), ServerError> {
        let Some(client) = self.control.clients.get_mut(&number) else { return Ok(()) };
        // Byte by byte: what follows the line is for the console.
        loop {
            let mut byte = [0];
            match client.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if client.line.len() < LINE_MAX => client.line.extend_from_slice(&byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.dismiss_client(number);
                    return Ok(());
                }
            }
        }
        let Some(Client { stream, slot, line }) = self.control.clients.remove(&number) else { return Ok(()) };
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
        let Some(uuid) = self.consoles.domain(domid) else { return Ok(()) };
        if self.is_still(domid, uuid) { Ok(()) } else { self.look_for_a_while() }
    }

    fn introduce(
        &mut self,
        stream: UnixStream,
        wanted: &Wanted,
        role: Role,
        since: Option<Instant>,
    ) -> io::Result<()> {
        if let (Some(meant), Some(uuid)) = (wanted.uuid, self.consoles.domain(wanted.domid))
            && meant != uuid
        {
            let domid = wanted.domid;
            return say(&stream, &format!("error Domain {domid} now has the UUID {uuid}, not {meant}\n"));
        }
        let Some(key) = self.wanted(wanted) else {
            return say(&stream, &format!("error There is no console {wanted}\n"));
        };
        let Some(console) = self.consoles.get_mut(key) else { return Ok(()) };
        if let Some(why) = console.viewers().refuses(role) {
            return say(&stream, &format!("error {why}\n"));
        }
        say(&stream, "ok\n")?;
        console.admit(&mut self.poller, stream, role, since)?;
        self.after_console(key);
        Ok(())
    }

    fn wanted(&self, wanted: &Wanted) -> Option<u64> {
        match &wanted.which {
            Which::Number(number) => self.consoles.key(ConsoleId { domid: wanted.domid, number: *number }),
            Which::Name(name) => {
                let is_named = |key| {
                    let console = self.consoles.get(key);
                    console.and_then(|console| console.outputs().name()) == Some(name.as_str())
                };
                let mut keys = self.consoles.of_domain(wanted.domid).map(|(_, key)| key);
                keys.find(|key| is_named(*key))
            }
        }
    }

    /// A line a console.
    fn report(&self) -> String {
        let mut text = String::new();
        for console in self.consoles.all_named() {
            let connected = if console.ring().is_connected() { "connected" } else { "waiting" };
            let tty = console.outputs().tty().unwrap_or("-");
            let name = console.outputs().name().unwrap_or("-");
            let (id, total, viewers) = (console.id(), console.total(), console.viewers().count());
            // Writing into a string does not fail.
            let _ = writeln!(text, "{id} {connected} {total} {viewers} {tty} {name} {}", console.uuid());
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
