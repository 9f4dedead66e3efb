//! The few requests of rtnetlink that bridge a tap, over a safe socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;
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
    /// The bridge that it becomes a port of.
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

    /// Makes a bridge; one that is there is fine.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        match self.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
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
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
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
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer[..count])
                .map_err(|error| io::Error::other(error.to_string()))?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            return match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                _ => Ok(()),
            };
        }
    }
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
