//! The requests.

use xen_types::{DomId, EventPort, Gfn};

use super::{MessageType, WireError, encode};
use crate::operation::Operation;
use crate::path::{NodePath, WatchPath};
use crate::permissions::Permissions;

/// One request, ready to be sent with any request number and in any transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: MessageType,
    subject: String,
    payload: Vec<u8>,
}

impl Request {
    fn new(kind: MessageType, subject: &str, parts: &[&[u8]]) -> Self {
        Self { kind, subject: subject.to_owned(), payload: parts.concat() }
    }

    fn on_path(kind: MessageType, path: &str) -> Self {
        Self::new(kind, path, &[path.as_bytes(), b"\0"])
    }

    fn on_domain(kind: MessageType, domid: DomId) -> Self {
        let number = domid.to_string();
        Self::new(kind, &format!("domain {number}"), &[number.as_bytes(), b"\0"])
    }

    /// A command for xenstored itself. `help` lists its commands in C; oxenstored answers `OK` to what it does not know.
    #[must_use]
    pub fn control(command: &str) -> Self {
        Self::new(MessageType::Control, command, &[command.as_bytes(), b"\0"])
    }

    /// Reads a node's value.
    #[must_use]
    pub fn read(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Read, path.wire())
    }

    /// Writes a node's value, and makes the node and what is missing above it.
    #[must_use]
    pub fn write(path: &dyn NodePath, value: &[u8]) -> Self {
        Self::new(MessageType::Write, path.wire(), &[path.wire().as_bytes(), b"\0", value])
    }

    /// Makes a node with an empty value unless it is there.
    #[must_use]
    pub fn mkdir(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Mkdir, path.wire())
    }

    /// Removes a node and all below it.
    #[must_use]
    pub fn rm(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Rm, path.wire())
    }

    /// Lists a node's children.
    #[must_use]
    pub fn directory(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::Directory, path.wire())
    }

    /// Lists a node's children from a byte of the whole list on.
    #[must_use]
    pub fn directory_part(path: &dyn NodePath, offset: usize) -> Self {
        let offset = offset.to_string();
        Self::new(
            MessageType::DirectoryPart,
            path.wire(),
            &[path.wire().as_bytes(), b"\0", offset.as_bytes(), b"\0"],
        )
    }

    /// Reads a node's permissions.
    #[must_use]
    pub fn get_perms(path: &dyn NodePath) -> Self {
        Self::on_path(MessageType::GetPerms, path.wire())
    }

    /// Sets the permissions of a node, or (domain 0 only) who may watch a special event.
    #[must_use]
    pub fn set_perms(path: &dyn WatchPath, permissions: &Permissions) -> Self {
        let mut request = Self::on_path(MessageType::SetPerms, path.watch_wire());
        for text in permissions.to_strings() {
            request.payload.extend_from_slice(text.as_bytes());
            request.payload.push(0);
        }
        request
    }

    /// Sets a watch that names its events with `token`.
    #[must_use]
    pub fn watch(path: &dyn WatchPath, token: &str) -> Self {
        let path = path.watch_wire();
        Self::new(MessageType::Watch, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])
    }

    /// Removes a watch; path and token as when it was set.
    #[must_use]
    pub fn unwatch(path: &dyn WatchPath, token: &str) -> Self {
        let path = path.watch_wire();
        Self::new(MessageType::Unwatch, path, &[path.as_bytes(), b"\0", token.as_bytes(), b"\0"])
    }

    /// Removes all watches and transactions of the caller.
    #[must_use]
    pub fn reset_watches() -> Self {
        Self::new(MessageType::ResetWatches, "", &[b"\0"])
    }

    /// Starts a transaction.
    #[must_use]
    pub fn transaction_start() -> Self {
        Self::new(MessageType::TransactionStart, "", &[b"\0"])
    }

    /// Commits or drops the transaction that it is sent in.
    #[must_use]
    pub fn transaction_end(commit: bool) -> Self {
        Self::new(MessageType::TransactionEnd, "", &[if commit { b"T\0" } else { b"F\0" }])
    }

    /// Connects a domain to xenstored over the page `gfn` and the domain's unbound event channel `port`.
    #[must_use]
    pub fn introduce(domid: DomId, gfn: Gfn, port: EventPort) -> Self {
        let mut request = Self::on_domain(MessageType::Introduce, domid);
        request.payload.extend_from_slice(format!("{gfn}\0{port}\0").as_bytes());
        request
    }

    /// Disconnects a domain from xenstored.
    #[must_use]
    pub fn release(domid: DomId) -> Self {
        Self::on_domain(MessageType::Release, domid)
    }

    /// Lets `@releaseDomain` fire again for a domain that was resumed.
    #[must_use]
    pub fn resume(domid: DomId) -> Self {
        Self::on_domain(MessageType::Resume, domid)
    }

    /// Asks for a domain's directory.
    #[must_use]
    pub fn get_domain_path(domid: DomId) -> Self {
        Self::on_domain(MessageType::GetDomainPath, domid)
    }

    /// Asks whether a domain is connected to xenstored.
    #[must_use]
    pub fn is_domain_introduced(domid: DomId) -> Self {
        Self::on_domain(MessageType::IsDomainIntroduced, domid)
    }

    /// Gives `domid` all rights that `target` has.
    #[must_use]
    pub fn set_target(domid: DomId, target: DomId) -> Self {
        let mut request = Self::on_domain(MessageType::SetTarget, domid);
        request.payload.extend_from_slice(format!("{target}\0").as_bytes());
        request
    }

    /// What the request asks for.
    #[must_use]
    pub const fn kind(&self) -> MessageType {
        self.kind
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The request in words, for messages to people.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::new(self.kind, &self.subject)
    }

    /// The bytes of the request with this number in this transaction (0 for none).
    ///
    /// # Errors
    /// When path and value together are longer than [`PAYLOAD_MAX`](super::PAYLOAD_MAX).
    pub fn encode(&self, req_id: u32, tx_id: u32) -> Result<Vec<u8>, WireError> {
        encode(self.kind, req_id, tx_id, &self.payload)
    }
}
