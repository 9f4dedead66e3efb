//! Finding consoles: domains that come and go, and the handshakes in xenstore.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use xen_types::{DomId, Gfn, GrantRef};
use xenstore::{EventPath, SpecialWatch, StoreError, WatchEvent};

use super::console::{Console, Wire, with_cause};
use super::ends::{StreamFd, pipe_path};
use super::id::ConsoleId;
use super::journal::Journal;
use super::tree::{Tree, backend_of, backends, console_number, frontend_dir, primary_dir, soft};
use super::{Due, Server, ServerError};
use crate::logfile::{LogFile, file_stem};
use crate::output::{Direction, Output};
use crate::platform::{Platform, RESERVED_CONSOLE_GRANT};
use crate::pty::Pty;
use crate::ring::BackendRing;
use crate::xenbus::{Link, Offer, Step, XenbusState, next_step};

/// Steps of one handshake in one go; a sound one takes two or three.
const STEPS_MAX: usize = 8;

/// Events of watches that are taken in one turn.
const WATCH_EVENTS_MAX: usize = 1024;
/// When a primary console that could not be had is tried again: another daemon may have let go of it.
const RETRY: Duration = Duration::from_secs(5);

/// What the events of watches say to look at again.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    domains: bool,
    /// Consoles, and whether looking was put off before (then the look needs no share of its own).
    consoles: BTreeMap<ConsoleId, bool>,
}

impl Dirty {
    pub(crate) fn all() -> Self {
        Self { domains: true, consoles: BTreeMap::new() }
    }

    pub(crate) fn is_clean(&self) -> bool {
        !self.domains && self.consoles.is_empty()
    }

    pub(crate) fn add_due(&mut self, id: ConsoleId) {
        self.consoles.insert(id, true);
    }

    fn add(&mut self, id: ConsoleId) {
        self.consoles.entry(id).or_insert(false);
    }

    pub(crate) fn note(&mut self, event: &WatchEvent) {
        match &event.path {
            EventPath::Special(_) => self.domains = true,
            EventPath::Node(path) => {
                if let Some(id) = backend_of(path) {
                    self.add(id);
                } else if let Some(id) = token_id(&event.token) {
                    self.add(id);
                }
            }
            EventPath::Relative(_) | EventPath::Other(_) => {}
        }
    }
}

/// Watches of one console's directory have its name as their token.
fn token_id(token: &str) -> Option<ConsoleId> {
    let (domid, number) = token.split_once('.')?;
    let number = if number == "0" { 0 } else { console_number(number)? };
    Some(ConsoleId { domid: domid.parse().ok()?, number })
}

impl<P: Platform> Server<P> {
    /// Sets the watches that find everything else.
    pub(crate) fn watch_host(&self) -> Result<(), StoreError> {
        self.store.watch(&SpecialWatch::IntroduceDomain, "introduce")?;
        self.store.watch(&SpecialWatch::ReleaseDomain, "release")?;
        self.store.watch(&backends(), "backends")
    }

    /// Takes the events that have come.
    pub(crate) fn read_watches(&mut self) -> Result<(), StoreError> {
        for _ in 0..WATCH_EVENTS_MAX {
            let Some(event) = self.store.next_event(Instant::now())? else {
                self.unread = false;
                return Ok(());
            };
            self.dirty.note(&event);
        }
        self.unread = true;
        Ok(())
    }

    /// Looks at what has changed.
    pub(crate) fn look(&mut self) -> Result<(), ServerError> {
        let dirty = core::mem::take(&mut self.dirty);
        if dirty.domains {
            self.look_at_domains()?;
        }
        for (id, due) in dirty.consoles {
            if self.domains.contains(&id.domid) && (due || self.may_look(id)) {
                self.look_at(id)?;
            }
        }
        Ok(())
    }

    /// Bounds how often a guest that keeps writing to xenstore is looked at.
    fn may_look(&mut self, id: ConsoleId) -> bool {
        let now = Instant::now();
        let Some(console) = self.console_mut(id) else { return true };
        match console.looks.take(now) {
            Ok(()) => true,
            Err(at) => {
                if !core::mem::replace(&mut console.look_is_due, true) {
                    self.schedule(at, Due::Look(id));
                }
                false
            }
        }
    }

    fn look_at(&mut self, id: ConsoleId) -> Result<(), ServerError> {
        let done = if id.number == 0 { self.look_at_primary(id) } else { self.look_at_secondary(id) };
        Ok(done?)
    }

    fn look_at_domains(&mut self) -> Result<(), ServerError> {
        let listed = self.platform.domains().map_err(ServerError::Domains)?;
        let alive: Vec<DomId> =
            listed.iter().filter(|domain| !domain.dying).map(|domain| domain.domid).collect();
        let gone: Vec<DomId> = self.domains.iter().copied().filter(|domid| !alive.contains(domid)).collect();
        for domid in gone {
            self.forget_domain(domid)?;
        }
        for domid in alive {
            if domid != DomId::DOM0 && self.domains.insert(domid) {
                self.meet_domain(domid)?;
            }
        }
        Ok(())
    }

    fn meet_domain(&mut self, domid: DomId) -> Result<(), ServerError> {
        debug!(domain = %domid, "new domain");
        let id = ConsoleId { domid, number: 0 };
        soft(self.store.watch(&primary_dir(domid), &id.to_string()).map(Some))?;
        self.look_at(id)?;
        for number in Tree::new(&self.store).secondaries(domid)? {
            self.look_at(ConsoleId { domid, number })?;
        }
        Ok(())
    }

    fn forget_domain(&mut self, domid: DomId) -> Result<(), ServerError> {
        debug!(domain = %domid, "domain is gone");
        self.domains.remove(&domid);
        let id = ConsoleId { domid, number: 0 };
        soft(self.store.unwatch(&primary_dir(domid), &id.to_string()).map(Some))?;
        let first = ConsoleId { domid, number: 0 };
        let last = ConsoleId { domid, number: u32::MAX };
        let ids: Vec<ConsoleId> = self.names.range(first..=last).map(|(id, _)| *id).collect();
        for id in ids {
            self.forget(id)?;
        }
        Ok(())
    }

    fn forget(&mut self, id: ConsoleId) -> Result<(), StoreError> {
        if id.number != 0 {
            soft(self.store.unwatch(&frontend_dir(id), &id.to_string()).map(Some))?;
        }
        self.disconnect(id);
        info!(console = %id, "console is gone");
        self.retire(id);
        Ok(())
    }

    fn look_at_primary(&mut self, id: ConsoleId) -> Result<(), StoreError> {
        let Some(primary) = Tree::new(&self.store).primary(id.domid)? else { return Ok(()) };
        self.open_console(id)?;
        // The frame number serves as the grant's in the note of what was mapped.
        let frame_note = GrantRef(u32::try_from(primary.frame & 0xffff_ffff).unwrap_or_default());
        let offer = Offer { ring: frame_note, port: primary.port };
        let had = self.console_mut(id).map(|console| console.link);
        match had {
            Some(Link::Connected { offer: mapped, .. } | Link::Refused(mapped)) if mapped == offer => {
                return Ok(());
            }
            _ => self.disconnect(id),
        }
        let page = self
            .platform
            .map_grant(id.domid, RESERVED_CONSOLE_GRANT)
            .or_else(|_| self.platform.map_frame(id.domid, Gfn(primary.frame)));
        self.connect(id, offer, page);
        Ok(())
    }

    fn look_at_secondary(&mut self, id: ConsoleId) -> Result<(), StoreError> {
        for _ in 0..STEPS_MAX {
            let picture = Tree::new(&self.store).picture(id)?;
            let known = self.console_mut(id).map(|console| console.link);
            let step = match known {
                Some(link) => next_step(&picture, &link),
                None if picture.backend.is_none() || !Tree::new(&self.store).is_ours(id)? => return Ok(()),
                None => {
                    self.open_console(id)?;
                    soft(self.store.watch(&frontend_dir(id), &id.to_string()).map(Some))?;
                    continue;
                }
            };
            match step {
                Step::Rest => return Ok(()),
                Step::Confirm => self.confirm(id),
                Step::Write(state) => Tree::new(&self.store).write_state(id, state)?,
                Step::Connect(offer) => {
                    let page = self.platform.map_grant(id.domid, offer.ring);
                    let connected = self.connect(id, offer, page);
                    if connected {
                        // Again: when the backend's nodes came first, there was no place for it.
                        self.tell_tty(id)?;
                    }
                    let state = if connected { XenbusState::Connected } else { XenbusState::Closed };
                    Tree::new(&self.store).write_state(id, state)?;
                }
                Step::Disconnect(state) => {
                    self.disconnect(id);
                    if let Some(state) = state {
                        Tree::new(&self.store).write_state(id, state)?;
                    }
                }
                Step::Forget => return self.forget(id),
            }
        }
        Ok(())
    }

    fn confirm(&mut self, id: ConsoleId) {
        if let Some(console) = self.console_mut(id)
            && let Link::Connected { confirmed, .. } = &mut console.link
        {
            *confirmed = true;
        }
    }

    /// Binds the port, and puts the console into service; says whether it worked.
    fn connect(&mut self, id: ConsoleId, offer: Offer, page: std::io::Result<P::Page>) -> bool {
        let bound = page.and_then(|page| Ok((page, self.platform.bind(id.domid, offer.port)?)));
        let key = self.names.get(&id).copied();
        let Some(console) = self.console_mut(id) else { return false };
        match bound {
            Ok((page, port)) => {
                console.take_up(Wire { ring: BackendRing::new(page), port });
                console.link = Link::Connected { offer, confirmed: false };
                info!(console = %id, "console is connected");
                if let Some(key) = key {
                    self.ports.insert(port, key);
                    // What was written before the port was bound made no event.
                    self.queue(key);
                }
                true
            }
            Err(error) => {
                // A frontend can make another offer; a primary console has but one.
                console.link = if id.number == 0 { Link::None } else { Link::Refused(offer) };
                console.complain(&format_args!(
                    "its ring or port cannot be had ({}); if another console daemon such as xenconsoled runs, stop it",
                    with_cause(&error)
                ));
                if id.number == 0 {
                    self.schedule(Instant::now() + RETRY, Due::Look(id));
                }
                false
            }
        }
    }

    /// Drains and lets go of a ring.
    pub(crate) fn disconnect(&mut self, id: ConsoleId) {
        let Some(key) = self.names.get(&id).copied() else { return };
        let Some(console) = self.consoles.get_mut(&key) else { return };
        console.link = Link::None;
        if let Some(wire) = console.take_wire(&mut self.poller) {
            self.ports.remove(&wire.port);
            self.platform.unbind(wire.port);
        }
    }

    /// Makes the console's log, socket and output, if this was not done yet.
    fn open_console(&mut self, id: ConsoleId) -> Result<(), StoreError> {
        if self.names.contains_key(&id) {
            return Ok(());
        }
        let name = Tree::new(&self.store).domain_name(id.domid)?;
        let stem = name.map_or_else(|| format!("domain-{}", id.domid), |name| file_stem(&name));
        let key = self.next_key;
        self.next_key += 1;
        let mut console = Console::new(id, key, Instant::now());
        if self.settings.log_style.limit > 0 {
            let path = self.settings.log_dir.join(format!("{stem}.{}.log", id.number));
            match LogFile::open(path, self.settings.log_style) {
                Ok(log) => {
                    let journal = self.settings.socket_dir.join(format!("{id}.journal"));
                    console.set_log(log, Journal::open(journal).ok());
                }
                Err(error) => console.complain(&with_cause(&error)),
            }
        }
        self.open_socket(&mut console);
        self.open_output(&mut console)?;
        self.names.insert(id, key);
        self.consoles.insert(key, console);
        self.tell_tty(id)
    }

    fn open_socket(&mut self, console: &mut Console<P::Page>) {
        let path = self.settings.socket_dir.join(console.id.to_string());
        // The lock file says that no other daemon lives here: what is there is stale.
        let _ = fs::remove_file(&path);
        let opened = UnixListener::bind(&path).and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            console.set_listener(&mut self.poller, listener, path.clone())
        });
        if let Err(error) = opened {
            console.complain(&format_args!("its socket {} cannot be made: {error}", path.display()));
        }
    }

    fn open_output(&mut self, console: &mut Console<P::Page>) -> Result<(), StoreError> {
        let id = console.id;
        let value = Tree::new(&self.store).output(id)?.unwrap_or_default();
        let output = match Output::parse(&value) {
            Ok(output) => output,
            Err(error) => {
                console.complain(&error);
                Output::Pty
            }
        };
        match output {
            Output::Null => {}
            Output::Pty => self.open_pty(console),
            Output::File(path) => match LogFile::open(path, self.settings.log_style) {
                Ok(file) => console.set_file(file),
                Err(error) => console.complain(&with_cause(&error)),
            },
            Output::Pipe(path) => {
                let (path, direction) = pipe_path(&path, id.number);
                let opened = StreamFd::pipe(&path, direction).and_then(|fd| {
                    console.set_stream(
                        &mut self.poller,
                        fd,
                        direction == Direction::Out,
                        direction == Direction::In,
                    )
                });
                if let Err(error) = opened {
                    console.complain(&format_args!("its pipe {} cannot be opened: {error}", path.display()));
                }
            }
        }
        Ok(())
    }

    fn open_pty(&mut self, console: &mut Console<P::Page>) {
        let opened = Pty::open().and_then(|pty| {
            let path = pty.path().to_string_lossy().into_owned();
            console.set_stream(&mut self.poller, StreamFd::Pty(pty), true, true)?;
            Ok(path)
        });
        match opened {
            Ok(path) => console.tty = Some(path),
            Err(error) => console.complain(&format_args!("no pseudo-terminal can be had: {error}")),
        }
    }

    /// Writes the path of the console's pseudo-terminal, if it has one, to where stock tools look.
    fn tell_tty(&mut self, id: ConsoleId) -> Result<(), StoreError> {
        let tty = self.console_mut(id).and_then(|console| console.tty.clone());
        tty.map_or(Ok(()), |tty| Tree::new(&self.store).write_tty(id, &tty))
    }
}
