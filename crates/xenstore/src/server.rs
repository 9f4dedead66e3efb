//! A xenstored in this process, for tests.
//!
//! It speaks the real protocol over sockets, so that the clients under test are the real ones. What it decides
//! (permissions, transactions, quotas, when watches fire, which error a request gets) follows the C xenstored of
//! Xen 4.17 (`tools/xenstore/`); the conformance cases of [`testing`](crate::testing) pass on both.
//!
//! It differs where there is no hypervisor: every domid that a request names counts as an existing domain, the page
//! and the event channel of an introduction are not looked at, and a domain dies only by
//! [`Server::destroy_domain`]. It answers a guest's SET_PERMS on a special event with `EACCES`, where xenstored 4.17.5
//! forgets to answer. It has no quota of memory and does not slow down a domain that writes much.

use core::fmt;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use xen_types::DomId;

use crate::path::SpecialWatch;
use crate::wire::ErrorCode;
use crate::{Connection, Permissions, Xenstore};

mod fault;
mod service;
mod socket;
mod tree;

use fault::Fault;
use socket::Shared;

/// A xenstored in this process; ends when it is dropped.
///
/// Methods panic when the operating system has no more sockets or threads: this is for tests.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::start()
    }
}

impl Server {
    /// Starts a server with the nodes that a fresh xenstored has: `/tool/xenstored` and those above it.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared::new().expect("a process can make a socket pair"));
        let thread = thread::Builder::new().name("xenstored".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve()
        });
        Self { shared, thread: Some(thread.expect("a process can start a thread")) }
    }

    /// Connects as a domain; one that is not introduced yet is, which fires `@introduceDomain`.
    #[must_use]
    pub fn connect(&self, domid: DomId) -> Xenstore {
        Xenstore::from_stream(self.stream(domid)).expect("a process can start a thread")
    }

    /// Connects as a domain with the client for one thread.
    #[must_use]
    pub fn connection(&self, domid: DomId) -> Connection {
        Connection::from_stream(self.stream(domid)).expect("a socket can be set to non-blocking mode")
    }

    /// Connects as a domain and gives the bare socket.
    #[must_use]
    pub fn stream(&self, domid: DomId) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a process can make a socket pair");
        self.shared.add(ours, domid).expect("a socket can be set to non-blocking mode");
        theirs
    }

    /// Serves clients on a socket at `path` too, each as domain 0, as xenstored's own socket does.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(&self, path: &Path) -> io::Result<()> {
        self.shared.listen(path)
    }

    /// All nodes with their values and permissions.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<String, (Vec<u8>, Permissions)> {
        self.shared.lock().tree.dump()
    }

    /// Whether a domain is introduced.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.shared.lock().is_introduced(domid)
    }

    /// Does what xenstored does when Xen tells it that a domain is gone: removes the nodes that it owned, drops its
    /// connections, fires `@releaseDomain`.
    pub fn destroy_domain(&self, domid: DomId) {
        self.shared.lock().release(domid);
        self.shared.wake();
    }

    /// Does what xenstored does when Xen tells it that a domain was shut down or has crashed: fires
    /// `@releaseDomain`.
    pub fn shut_down_domain(&self, _domid: DomId) {
        self.shared.lock().fire_special(SpecialWatch::ReleaseDomain);
        self.shared.wake();
    }

    /// How many requests domain 0 has made so far, those that failed too.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests_of(DomId::DOM0)
    }

    /// How many requests a domain has made so far, those that failed too.
    #[must_use]
    pub fn requests_of(&self, domid: DomId) -> u64 {
        self.shared.lock().requests.get(&domid).copied().unwrap_or(0)
    }

    /// Answers the `n`th request (1 is the next) of domain 0 with `EIO` instead of carrying it out.
    pub fn fail_nth_request(&self, n: u64) {
        self.fail_nth_request_of(DomId::DOM0, n, ErrorCode::Io);
    }

    /// Answers the `n`th request (1 is the next) of a domain with an error instead of carrying it out.
    pub fn fail_nth_request_of(&self, domid: DomId, n: u64, code: ErrorCode) {
        self.add_fault(domid, n, Some(code));
    }

    /// Drops the connection on which domain 0 sends its `n`th request (1 is the next), which is not carried out.
    pub fn drop_at_nth_request(&self, n: u64) {
        self.drop_at_nth_request_of(DomId::DOM0, n);
    }

    /// Drops the connection on which a domain sends its `n`th request (1 is the next), which is not carried out.
    pub fn drop_at_nth_request_of(&self, domid: DomId, n: u64) {
        self.add_fault(domid, n, None);
    }

    /// Forgets all faults that have not happened.
    ///
    /// Returns how many had not struck.
    pub fn clear_faults(&self) -> usize {
        std::mem::take(&mut self.shared.lock().faults).len()
    }

    fn add_fault(&self, domid: DomId, n: u64, code: Option<ErrorCode>) {
        let mut core = self.shared.lock();
        let at = core.requests.get(&domid).copied().unwrap_or(0) + n;
        core.faults.push(Fault { domid, at, code });
    }

    /// Stops answering, or answers again: requests wait meanwhile, as when xenstored hangs.
    pub fn stall(&self, stalled: bool) {
        self.shared.lock().stalled = stalled;
        self.shared.wake();
    }

    /// Waits so long before it carries out each request, as a busy xenstored does; requests wait for each other.
    pub fn delay(&self, delay: Duration) {
        *self.shared.delay() = delay;
    }

    /// Drops every connection and takes no more, as when xenstored dies.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.wake();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
