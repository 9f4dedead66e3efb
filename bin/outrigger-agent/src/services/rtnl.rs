//! The few requests of rtnetlink that bridge a tap, over a safe socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;
use nix::libc::{RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// The group of changes to interfaces (`RTMGRP_LINK`, `linux/rtnetlink.h`).
const GROUP_LINK: u32 = 1;
/// How long the kernel may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What is to be changed about an interface.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Up.
    Up,
    /// Its Ethernet address.
    Address([u8; 6]),
    /// The largest packet in bytes, without the Ethernet header.
    Mtu(u32),
    /// The bridge that it becomes a port of; 0 is none.
    Bridge(u32),
}

/// A socket for requests.
#[derive(Debug)]
pub(crate) struct Rtnl {
    socket: OwnedFd,
    sequence: u32,
}

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: route_socket(0)?, sequence: 0 })
    }

    /// Makes a bridge; one that exists is fine.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        match self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes an interface.
    pub(crate) fn remove(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.request(RTM_DELLINK, 0, &link)
    }

    /// Changes the interface with this number.
    pub(crate) fn change(&mut self, index: u32, changes: &[Change]) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        for change in changes {
            match change {
                Change::Up => {
                    link.header.flags |= LinkFlags::Up;
                    link.header.change_mask |= LinkFlags::Up;
                }
                Change::Address(address) => link.attributes.push(LinkAttribute::Address(address.to_vec())),
                Change::Mtu(mtu) => link.attributes.push(LinkAttribute::Mtu(*mtu)),
                Change::Bridge(bridge) => link.attributes.push(LinkAttribute::Controller(*bridge)),
            }
        }
        self.request(RTM_SETLINK, 0, &link)
    }

    fn request(&mut self, kind: u16, flags: u16, link: &LinkMessage) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        let head = header.buffer_len();
        let mut bytes = vec![0; head + link.buffer_len()];
        header.length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        header.message_type = kind;
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let (first, rest) = bytes.split_at_mut(head);
        header.emit(first);
        link.emit(rest);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.answer()
    }

    fn answer(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let timeout = PollTimeout::try_from(ANSWER).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let count = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if let Some(outcome) = outcome(buffer.get(..count).unwrap_or_default(), self.sequence) {
                return outcome;
            }
        }
    }
}

/// The kernel's answer to the request with this number; nothing when the message is about another.
///
/// Only the head of the message is looked at: to decode every kind of message would double the agent's size.
pub(crate) fn outcome(message: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let malformed = || Some(Err(io::Error::from(io::ErrorKind::InvalidData)));
    let Ok(message) = NetlinkBuffer::new_checked(message) else { return malformed() };
    if message.sequence_number() != sequence {
        return None;
    }
    if message.message_type() != NLMSG_ERROR {
        return malformed();
    }
    let Ok(answer) = ErrorBuffer::new_checked(message.payload()) else { return malformed() };
    Some(match answer.code() {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
    })
}

/// A socket that becomes readable when an interface came, went or changed.
#[derive(Debug)]
pub(crate) struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: route_socket(GROUP_LINK)? })
    }

    /// Forgets what came: the news is only that something changed.
    pub(crate) fn drain(&self) {
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS: more came than the socket keeps, which is news enough.
                Ok(1..) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn route_socket(groups: u32) -> io::Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of the kernel (`struct nlmsghdr` and `struct nlmsgerr`, `linux/netlink.h`).
    fn answer(kind: u16, sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(0_u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn answers_are_matched_by_their_number() {
        assert!(outcome(&answer(NLMSG_ERROR, 6, 0), 7).is_none());
        assert!(outcome(&answer(NLMSG_ERROR, 7, 0), 7).unwrap().is_ok());
    }

    #[test]
    fn a_refusal_is_the_kernels_errno() {
        let error = outcome(&answer(NLMSG_ERROR, 7, -17), 7).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn malformed_answers_are_errors() {
        for bytes in [&[][..], &answer(NLMSG_ERROR, 7, 0)[..20], &answer(16, 7, 0)] {
            assert!(outcome(bytes, 7).unwrap().is_err());
        }
    }
}
