//! A machine's place in a pair of hosts: who it is, and its end of the network.

use std::path::{Path, PathBuf};

use crate::escape::escape;

/// Which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `host-a`.
    A,
    /// `host-b`.
    B,
}

impl Role {
    /// Both, in the order of everything that comes in twos here.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];
    /// The environment variable that holds the letter, of the script and of all else in dom0.
    pub const VARIABLE: &'static str = "OUTRIGGER_HOST";

    /// The letter.
    #[must_use]
    pub const fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The host's name, in `/etc/hosts` of both.
    #[must_use]
    pub const fn host_name(self) -> &'static str {
        match self {
            Self::A => "host-a",
            Self::B => "host-b",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The MAC address of `pair0`: one of QEMU's, which guests of Xen do not get.
    pub(crate) const fn mac(self) -> &'static str {
        match self {
            Self::A => "52:54:00:10:77:01",
            Self::B => "52:54:00:10:77:02",
        }
    }
}

/// A machine's place in a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    role: Role,
    /// The folder of the network's two sockets.
    network: PathBuf,
}

impl Member {
    /// The same place, wherever the network's sockets are: what a snapshot depends on.
    pub(crate) fn anywhere(&self) -> Self {
        Self { network: PathBuf::new(), ..*self }
    }

    /// That of `role`, with the network's sockets in the folder `network`.
    pub(crate) fn new(role: Role, network: &Path) -> Self {
        Self { role, network: network.to_owned() }
    }

    /// QEMU's arguments for its end of the network.
    ///
    /// One frame is one datagram, so neither machine waits for the other to connect, and what is sent to one that is not
    /// up is lost, as on a cable that is not plugged in.
    pub(crate) fn qemu_arguments(&self) -> [String; 4] {
        let socket = |role: Role| escape(&self.network.join(role.letter()));
        let (own, other) = (socket(self.role), socket(self.role.other()));
        [
            "-netdev".to_owned(),
            format!("dgram,id=pair,local.type=unix,local.path={own},remote.type=unix,remote.path={other}"),
            "-device".to_owned(),
            // No option ROM: nothing boots from this network.
            format!("virtio-net-pci,netdev=pair,mac={},romfile=", self.role.mac()),
        ]
    }

    /// The kernel argument that identifies this host. dom0's kernel passes it to init as an environment variable.
    pub(crate) fn kernel_word(&self) -> String {
        format!("{}={}", Role::VARIABLE, self.role.letter())
    }
}
