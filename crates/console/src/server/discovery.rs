//! Finding consoles: domains that come and go, and the handshakes in xenstore.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use tracing::debug;
use uuid::Uuid;
use xen_types::{DomId, Gfn, GrantRef};
use xenbus::XenbusState;
use xenstore::StoreError;

use super::console::{Console, with_cause};
use super::id::ConsoleId;
use super::looks::LookError;
use super::scheduler::Due;
use super::tree::{Reader, Writer, frontend_dir, primary_dir, secondaries, soft};
use super::{Server, ServerError};
use crate::handshake::{Link, Offer, Step, next_step};
use crate::platform::{Platform, RESERVED_CONSOLE_GRANT};
use crate::ring::BackendRing;

/// Steps of one handshake in one go; a sound one takes two or three.
const STEPS_MAX: usize = 8;

/// Events of watches that are taken in one turn.
const WATCH_EVENTS_MAX: usize = 1024;
/// When an unavailable primary console is tried again: another daemon may have released it.
const RETRY: Duration = Duration::from_secs(5);

/// Whether the domain with this UUID has the domid now, according to Xen.
fn has_number<P: Platform>(platform: &mut P, domid: DomId, uuid: Uuid) -> bool {
    platform.domain_uuid(domid).is_ok_and(|now| now == Some(uuid))
}

impl<P: Platform> Server<P> {
    /// Takes the events that have come.
    pub(crate) fn read_watches(&mut self) {
        if self.reconnect.is_lost() {
            self.dirty.set_unread(false);
        } else if let Err(error) = self.take_watch_events() {
            self.lose_store(&error);
        }
    }

    fn take_watch_events(&mut self) -> Result<(), StoreError> {
        for _ in 0..WATCH_EVENTS_MAX {
            let Some(event) = self.store.next_event(Instant::now())? else {
                self.dirty.set_unread(false);
                return Ok(());
            };
            if let Some(id) = self.dirty.note(&event) {
                self.looks.forget(id);
            }
        }
        self.dirty.set_unread(true);
        Ok(())
    }

    /// Looks at what has changed for a while, and then leaves the loop to the rings for as long as it took.
    pub(crate) fn look_for_a_while(&mut self) -> Result<(), ServerError> {
        self.looks.begin(Instant::now());
        let looked = self.look();
        self.store.set_deadline(None);
        if let Some(took) = self.looks.end() {
            self.scheduler.schedule(Instant::now() + took, Due::Looks);
        }
        self.survive(looked)
    }

    /// Looks at what has changed.
    pub(crate) fn look(&mut self) -> Result<(), ServerError> {
        if self.dirty.take_domains() {
            self.look_at_domains()?;
        }
        while !self.looks.is_up()
            && let Some((id, due)) = self.dirty.next_console()
        {
            // Without xenstore there is nothing to look at; when it answers again, everything is looked at.
            if !self.reconnect.is_lost()
                && self.consoles.domain(id.domid).is_some()
                && (due || self.scheduler.may_look(id, Instant::now()))
            {
                self.look_at(id)?;
            }
        }
        Ok(())
    }

    /// Begins to look at something: xenstored has the time of one answer for what cannot be put off in the middle, a
    /// transaction. The loop waits no longer, whether xenstored is slow or does not answer at all.
    fn limit_look(&mut self) {
        if self.looks.is_limited() {
            self.store.set_deadline(Some(Instant::now() + self.settings.store_timeout));
        }
    }

    /// Looks at a console, or continues to look at it.
    fn look_at(&mut self, id: ConsoleId) -> Result<(), ServerError> {
        self.limit_look();
        let looked = if id.number == 0 { self.look_at_primary(id) } else { self.look_at_secondary(id) };
        match looked.and_then(|()| self.tell_tty(id)) {
            Ok(()) => self.looks.forget(id),
            Err(LookError::Later) => self.dirty.add_due(id),
            Err(LookError::Store(error)) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether a domid still belongs to the same domain. If not, the domains are checked in the next turn.
    pub(crate) fn is_still(&mut self, domid: DomId, uuid: Uuid) -> bool {
        let is_still = has_number(&mut self.platform, domid, uuid);
        if !is_still {
            self.dirty.add_domains();
        }
        is_still
    }

    /// The same for a console's domain. If not, the console is checked again later, since Xen may only have failed to
    /// answer.
    pub(crate) fn is_owner(&mut self, id: ConsoleId, uuid: Uuid) -> bool {
        let is_still = self.is_still(id.domid, uuid);
        if !is_still {
            self.scheduler.schedule(Instant::now() + RETRY, Due::Look(id));
        }
        is_still
    }

    /// The domains that may have consoles, with their UUIDs.
    pub(crate) fn alive(&mut self) -> Result<BTreeMap<DomId, Uuid>, ServerError> {
        let listed = self.platform.domains().map_err(ServerError::Domains)?;
        let alive = listed.iter().filter(|domain| !domain.dying && domain.domid != DomId::DOM0);
        Ok(alive.map(|domain| (domain.domid, domain.uuid)).collect())
    }

    /// Removes domains that are gone before it adds new ones: a domid that was reused between two checks belongs to
    /// another domain.
    pub(crate) fn look_at_domains(&mut self) -> Result<(), ServerError> {
        let alive = self.alive()?;
        let is_gone = |(domid, uuid): &(DomId, Uuid)| alive.get(domid) != Some(uuid);
        let gone: Vec<DomId> = self.consoles.domains().filter(is_gone).map(|(domid, _)| domid).collect();
        for domid in gone {
            if self.looks.is_up() {
                self.dirty.add_domains();
                return Ok(());
            }
            self.limit_look();
            self.forget_domain(domid)?;
        }
        if self.reconnect.is_lost() {
            return Ok(());
        }
        for (domid, uuid) in alive {
            if self.looks.is_up() {
                self.dirty.add_domains();
                return Ok(());
            }
            if self.consoles.add_domain(domid, uuid) {
                self.meet_domain(domid)?;
            }
        }
        Ok(())
    }

    fn meet_domain(&mut self, domid: DomId) -> Result<(), ServerError> {
        debug!(domain = %domid, "new domain");
        let id = ConsoleId { domid, number: 0 };
        self.limit_look();
        soft(self.store.watch(&primary_dir(domid), &id.to_string()).map(Some))?;
        self.dirty.add_due(id);
        for number in secondaries(&self.store, domid)? {
            self.dirty.add_due(ConsoleId { domid, number });
        }
        Ok(())
    }

    fn forget_domain(&mut self, domid: DomId) -> Result<(), ServerError> {
        debug!(domain = %domid, "domain is gone");
        self.consoles.remove_domain(domid);
        self.scheduler.remove_domain(domid);
        self.looks.forget_domain(domid);
        let first = ConsoleId { domid, number: 0 };
        let ids: Vec<ConsoleId> = self.consoles.of_domain(domid).map(|(id, _)| id).collect();
        // Their last bytes come first: xenstored may not answer.
        for id in &ids {
            self.forget(*id);
        }
        self.unwatch(first)?;
        for id in ids.into_iter().filter(|id| *id != first) {
            self.unwatch(id)?;
        }
        Ok(())
    }

    fn forget(&mut self, id: ConsoleId) {
        self.disconnect(id, false);
        if let Some(console) = self.consoles.named(id) {
            console.report("console is gone");
        }
        self.retire(id);
    }

    fn unwatch(&self, id: ConsoleId) -> Result<(), StoreError> {
        // A lost connection has no watches.
        if self.reconnect.is_lost() {
            return Ok(());
        }
        soft(self.store.unwatch(&frontend_dir(id), &id.to_string()).map(Some)).map(drop)
    }

    fn look_at_primary(&mut self, id: ConsoleId) -> Result<(), LookError> {
        let Some(primary) = self.reader(id).primary()? else { return Ok(()) };
        if self.consoles.key(id).is_none() {
            let wishes = self.wishes(id)?;
            if !self.open_console(id, wishes) {
                return Ok(());
            }
        }
        // The frame number serves as the grant's in the note of what was mapped.
        let frame_note = GrantRef(u32::try_from(primary.frame & 0xffff_ffff).unwrap_or_default());
        let offer = Offer { ring: frame_note, port: primary.port };
        let had = self.consoles.named(id).map(|console| console.ring().handshake());
        match had {
            Some(Link::Connected { offer: mapped, .. } | Link::Refused(mapped)) if mapped == offer => {
                return Ok(());
            }
            _ => self.disconnect(id, false),
        }
        let page = self
            .platform
            .map_grant(id.domid, RESERVED_CONSOLE_GRANT)
            .or_else(|_| self.platform.map_frame(id.domid, Gfn(primary.frame)));
        self.connect(id, offer, page);
        Ok(())
    }

    fn reader(&self, id: ConsoleId) -> Reader<'_> {
        Reader::new(&self.store, &self.looks, id)
    }

    fn look_at_secondary(&mut self, id: ConsoleId) -> Result<(), LookError> {
        for _ in 0..STEPS_MAX {
            let picture = self.reader(id).picture()?;
            let known = self.consoles.named(id).map(|console| console.ring().handshake());
            let step = match known {
                Some(link) => next_step(&picture, &link),
                None if picture.backend.is_none() || !self.reader(id).is_ours()? => return Ok(()),
                None if !self.meet_secondary(id)? => return Ok(()),
                None => continue,
            };
            if !self.take_step(id, step)? {
                return Ok(());
            }
            self.looks.forget(id);
        }
        Ok(())
    }

    /// Opens a secondary console and watches its frontend. Returns false when another domain has the domid now.
    fn meet_secondary(&mut self, id: ConsoleId) -> Result<bool, LookError> {
        let wishes = self.wishes(id)?;
        self.looks.must_have_time()?;
        soft(self.store.watch(&frontend_dir(id), &id.to_string()).map(Some))?;
        self.looks.forget(id);
        let is_open = self.open_console(id, wishes);
        if !is_open {
            self.unwatch(id)?;
        }
        Ok(is_open)
    }

    /// Takes one step of a secondary console's handshake; returns whether there may be more. What a step writes may be put
    /// off: the console knows the step, and another look writes the same.
    fn take_step(&mut self, id: ConsoleId, step: Step) -> Result<bool, LookError> {
        match step {
            Step::Rest => return Ok(false),
            Step::Confirm => self.confirm(id),
            Step::Write(state) => self.write_state(id, state)?,
            Step::Connect(offer) => {
                let page = self.platform.map_grant(id.domid, offer.ring);
                let Some(connected) = self.connect(id, offer, page) else { return Ok(false) };
                if connected && let Some(console) = self.consoles.named_mut(id) {
                    // When the backend's nodes came first, there was no place for it.
                    console.outputs_mut().tell_tty_again();
                }
                self.write_state(id, if connected { XenbusState::Connected } else { XenbusState::Closed })?;
            }
            Step::Disconnect(state) => {
                self.disconnect(id, false);
                if let Some(state) = state {
                    self.write_state(id, state)?;
                }
            }
            Step::Forget => {
                self.looks.must_have_time()?;
                self.forget(id);
                self.unwatch(id)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn confirm(&mut self, id: ConsoleId) {
        if let Some(console) = self.consoles.named_mut(id) {
            console.ring_mut().confirm();
        }
    }

    /// Writes a secondary console's state for the frontend, if the domid still belongs to the console's domain.
    fn write_state(&mut self, id: ConsoleId, state: XenbusState) -> Result<(), LookError> {
        // Who sees the state looks for the path.
        self.tell_tty(id)?;
        self.looks.must_have_time()?;
        Ok(self.as_owner(id, |writer, is_owner| writer.write_state(id, state, is_owner))?)
    }

    /// Writes the path of the console's pseudo-terminal, if it has one that is not told yet, to where stock tools look.
    fn tell_tty(&mut self, id: ConsoleId) -> Result<(), LookError> {
        let console = self.consoles.named(id);
        let Some(tty) = console.and_then(|console| console.outputs().untold_tty().map(str::to_owned)) else {
            return Ok(());
        };
        self.looks.must_have_time()?;
        self.as_owner(id, |writer, is_owner| writer.write_tty(id, &tty, is_owner))?;
        if let Some(console) = self.consoles.named_mut(id) {
            console.outputs_mut().tty_is_told();
        }
        Ok(())
    }

    /// Runs `work` on xenstore with a function that asks Xen whether the domid still belongs to the console's domain.
    fn as_owner(
        &mut self,
        id: ConsoleId,
        work: impl FnOnce(&Writer<'_>, &mut dyn FnMut() -> bool) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(uuid) = self.consoles.named(id).map(Console::uuid) else { return Ok(()) };
        let platform = &mut self.platform;
        let mut was_owner = true;
        let done = work(&Writer::new(&self.store), &mut || {
            was_owner = has_number(platform, id.domid, uuid);
            was_owner
        });
        if !was_owner {
            self.dirty.add_domains();
            self.scheduler.schedule(Instant::now() + RETRY, Due::Look(id));
        }
        done
    }

    /// Binds the port and puts the console into service; returns whether it worked. Returns `None` when another domain
    /// may have the domid now, and so the page and the port may be that domain's: both are then released.
    fn connect(&mut self, id: ConsoleId, offer: Offer, page: io::Result<P::Page>) -> Option<bool> {
        let bound = page.and_then(|page| Ok((page, self.platform.bind(id.domid, offer.port)?)));
        let key = self.consoles.key(id)?;
        let uuid = self.consoles.get(key)?.uuid();
        // Checked after the bind: a domain that still has the domid had it all the time.
        if !self.is_owner(id, uuid) {
            if let Ok((_, port)) = bound {
                self.platform.unbind(port);
            }
            return None;
        }
        let console = self.consoles.get_mut(key)?;
        Some(match bound {
            Ok((page, port)) => {
                let ring = BackendRing::new(page);
                ring.mark_connected();
                console.attach(ring, port);
                console.ring_mut().set_handshake(Link::Connected { offer, confirmed: false });
                console.report("console is connected");
                self.consoles.set_port(port, key);
                self.scheduler.add(key, id.domid);
                // What was written before the port was bound made no event, here or there: a daemon that was
                // killed may have moved bytes and told nobody, and the guest would wait for room for ever.
                self.scheduler.queue(key);
                self.platform.notify(port);
                true
            }
            Err(error) => {
                // A frontend can make another offer; a primary console has but one.
                let link = if id.number == 0 { Link::None } else { Link::Refused(offer) };
                console.ring_mut().set_handshake(link);
                console.complain(&format_args!(
                    "its ring or port is not available ({}); if another console daemon such as xenconsoled is \
                     running, stop it",
                    with_cause(&error)
                ));
                if id.number == 0 {
                    self.scheduler.schedule(Instant::now() + RETRY, Due::Look(id));
                }
                false
            }
        })
    }

    /// Drains and releases a ring; one that is `corrupt` is only released.
    pub(crate) fn disconnect(&mut self, id: ConsoleId, corrupt: bool) {
        let Some(key) = self.consoles.key(id) else { return };
        let Some(console) = self.consoles.get_mut(key) else { return };
        console.ring_mut().set_handshake(Link::None);
        let port = console.detach(&mut self.poller, corrupt);
        if let Some(at) = console.unscheduled_files() {
            self.scheduler.schedule(at, Due::Files(key));
        }
        self.scheduler.remove(key);
        if let Some(port) = port {
            self.consoles.remove_port(port);
            self.platform.unbind(port);
        }
    }
}
