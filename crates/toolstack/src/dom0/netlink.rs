//! The few rtnetlink requests that make a vif a bridge's port.
//!
//! One request, one acknowledgement, over a blocking socket with a receive time limit. Facts are from
//! `include/uapi/linux/{netlink,rtnetlink,if_link}.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
/// The interface is up.
pub(super) const IFF_UP: u32 = 0x1;
/// The interface does no ARP.
pub(super) const IFF_NOARP: u32 = 0x80;
/// The interface takes multicast packets.
pub(super) const IFF_MULTICAST: u32 = 0x1000;
/// The kernel answers a request within microseconds; only a broken one needs this long.
const ANSWER_SECONDS: i64 = 10;

/// A request to change one network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkChange {
    /// The interface's index.
    pub(super) index: i32,
    /// Values of the flags in `mask`.
    pub(super) flags: u32,
    /// Which flags change.
    pub(super) mask: u32,
    attributes: Vec<u8>,
}

impl LinkChange {
    pub(super) fn of(index: i32) -> Self {
        Self { index, ..Self::default() }
    }

    /// Sets the flags of `mask` to their values in `flags`.
    pub(super) fn flags(mut self, flags: u32, mask: u32) -> Self {
        self.flags = flags;
        self.mask = mask;
        self
    }

    /// Makes it a port of the bridge with this index; 0 takes it from its bridge.
    pub(super) fn master(self, index: i32) -> Self {
        self.attribute(IFLA_MASTER, &index.to_ne_bytes())
    }

    pub(super) fn address(self, mac: [u8; 6]) -> Self {
        self.attribute(IFLA_ADDRESS, &mac)
    }

    pub(super) fn mtu(self, bytes: u32) -> Self {
        self.attribute(IFLA_MTU, &bytes.to_ne_bytes())
    }

    /// Renames it; the interface must be down.
    pub(super) fn name(self, name: &str) -> Self {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        self.attribute(IFLA_IFNAME, &text)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.attributes.extend(length.to_ne_bytes());
        self.attributes.extend(kind.to_ne_bytes());
        self.attributes.extend(value);
        self.attributes.resize(self.attributes.len().next_multiple_of(4), 0);
        self
    }

    /// `struct nlmsghdr`, `struct ifinfomsg`, attributes.
    fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(16 + 16 + self.attributes.len()).unwrap_or(u32::MAX);
        let mut message = Vec::new();
        message.extend(length.to_ne_bytes());
        message.extend(RTM_NEWLINK.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend(1_u32.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend([0_u8; 4]);
        message.extend(self.index.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(self.mask.to_ne_bytes());
        message.extend(&self.attributes);
        message
    }

    /// Sends the request and waits for the kernel's acknowledgement.
    pub(super) fn send(&self) -> io::Result<()> {
        let socket = open()?;
        sendto(socket.as_raw_fd(), &self.encode(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0_u8; 4096];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        decode_answer(answer.get(..length).unwrap_or(&answer))
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    Ok(socket)
}

/// Reads `struct nlmsgerr`: 0 is success, otherwise a negative errno.
fn decode_answer(message: &[u8]) -> io::Result<()> {
    let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = message.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is not an acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        let bytes = LinkChange::of(7).master(3).flags(IFF_UP, IFF_UP).encode();
        assert_eq!(bytes.len(), 40);
        assert_eq!(u32::from_ne_bytes(bytes[0..4].try_into().unwrap()), 40);
        assert_eq!(i32::from_ne_bytes(bytes[20..24].try_into().unwrap()), 7);
        assert_eq!(u16::from_ne_bytes(bytes[32..34].try_into().unwrap()), 8);
        assert_eq!(u16::from_ne_bytes(bytes[34..36].try_into().unwrap()), IFLA_MASTER);
    }

    #[test]
    fn attributes_are_padded_to_four_bytes() {
        let change = LinkChange::of(1).name("ab").master(0);
        assert_eq!(change.attributes.len(), 16);
    }

    #[test]
    fn an_error_of_the_kernel_is_its_errno() {
        let mut answer = vec![0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(decode_answer(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-19_i32).to_ne_bytes());
        assert_eq!(decode_answer(&answer).unwrap_err().raw_os_error(), Some(19));
        assert!(decode_answer(&[]).is_err());
    }

    #[test]
    fn the_kernel_refuses_an_interface_that_is_not_there() {
        let error = LinkChange::of(i32::MAX).flags(IFF_UP, IFF_UP).send().unwrap_err();
        // EPERM without the right to change the network, ENODEV with it.
        assert!(matches!(error.raw_os_error(), Some(1 | 19)), "{error}");
    }
}
