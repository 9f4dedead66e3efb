//! What the agent and QEMU write below `/local/domain/<stub>/device-model/<target>/`, and how it is read back.
//!
//! Everything here comes out of the stubdomain, so that reading it is bounded and never fails: what is not
//! understood becomes an "unknown" value with its text made harmless.

use core::fmt;
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest value in bytes that is looked at in any key that the stubdomain writes.
pub const MAX_STUB_VALUE: usize = 256;

/// How often the agent writes [`DmKey::AgentHeartbeat`](crate::DmKey::AgentHeartbeat).
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// After this time without a new value of [`DmKey::AgentHeartbeat`](crate::DmKey::AgentHeartbeat) the agent is to be
/// taken for stuck. Six beats, because a busy host may not run the stubdomain for seconds.
pub const HEARTBEAT_STALE: Duration = Duration::from_secs(30);

/// What [`DmKey::AgentStep`](crate::DmKey::AgentStep) says while everything is prepared and QEMU is held
/// ([`HOLD_WORD`](crate::HOLD_WORD)).
pub const HELD_STEP: &str = "held";

/// What it says once QEMU was started.
pub const SERVING_STEP: &str = "serving";

/// What [`DmKey::State`](crate::DmKey::State) holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DmState {
    /// QEMU is ready: `running`. The guest may be unpaused.
    Running,
    /// Something else, of the older PCI hot-plug protocol (`pci-inserted`, `pci-removed`) or unknown.
    Other(String),
}

impl DmState {
    /// The text that says that QEMU is ready.
    pub const RUNNING: &str = "running";

    /// Reads the value of the key. Never fails.
    #[must_use]
    pub fn decode(value: &[u8]) -> Self {
        if value == Self::RUNNING.as_bytes() { Self::Running } else { Self::Other(harmless(value)) }
    }
}

/// What the stubdomain can do beyond `docs/misc/stubdom.txt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// `agent/exit` is written when QEMU ends, and the domain ends then.
    Exit,
    /// `agent/heartbeat` is written.
    Heartbeat,
    /// `control/shutdown` of the stubdomain is obeyed.
    Shutdown,
    /// QMP is served at `qmp-vchan`, with a fresh monitor session for each connection.
    QmpVchan,
    /// The graphics are served at `vnc-vchan`.
    VncVchan,
    /// The device's state is served framed at `state-vchan`.
    StateVchan,
    /// Consoles 1 and 2 carry frames ([`crate::stream`]) where the kernel's command line has
    /// [`STATE_FRAMES_WORD`](crate::STATE_FRAMES_WORD).
    StateFrames,
    /// QEMU is held until [`DmKey::Start`](crate::DmKey::Start) is written, where the kernel's command line has
    /// [`HOLD_WORD`](crate::HOLD_WORD).
    Hold,
}

impl Feature {
    /// All features, in the order in which they are written.
    pub const ALL: [Self; 8] = [
        Self::Exit,
        Self::Heartbeat,
        Self::Shutdown,
        Self::QmpVchan,
        Self::VncVchan,
        Self::StateVchan,
        Self::StateFrames,
        Self::Hold,
    ];

    /// The feature's word in xenstore.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Heartbeat => "heartbeat",
            Self::Shutdown => "shutdown",
            Self::QmpVchan => "qmp-vchan",
            Self::VncVchan => "vnc-vchan",
            Self::StateVchan => "state-vchan",
            Self::StateFrames => "state-frames",
            Self::Hold => "hold",
        }
    }
}

/// The value of [`DmKey::Features`](crate::DmKey::Features): words separated by one space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(BTreeSet<Feature>);

impl Features {
    /// Whether the stubdomain has this feature.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// The value of the key.
    #[must_use]
    pub fn encode(&self) -> String {
        let words: Vec<_> =
            Feature::ALL.into_iter().filter(|feature| self.has(*feature)).map(Feature::word).collect();
        words.join(" ")
    }

    /// Reads the value of the key. Words that are not known are passed over.
    #[must_use]
    pub fn decode(value: &[u8]) -> Self {
        let text = harmless(value);
        let words: BTreeSet<_> = text.split(' ').collect();
        Feature::ALL.into_iter().filter(|feature| words.contains(feature.word())).collect()
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        Self(features.into_iter().collect())
    }
}

/// How the device model ended: the value of [`DmKey::AgentExit`](crate::DmKey::AgentExit), written once, last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentExit {
    /// QEMU exited with this status: `exited 0`.
    Exited(u8),
    /// A signal ended QEMU: `killed 9`.
    Killed(u8),
    /// The stubdomain was told to shut down through its `control/shutdown`: `stopped`.
    Stopped,
    /// The agent could not start QEMU: `failed <what was tried and why>`.
    Failed(String),
    /// A text that is none of these.
    Unknown(String),
}

impl AgentExit {
    /// Whether the domain is powered off (true) or ends as a crash (false) after this.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        matches!(self, Self::Exited(0) | Self::Stopped)
    }

    /// The value of the key, at most [`MAX_STUB_VALUE`] bytes of printable ASCII.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Exited(status) => format!("exited {status}"),
            Self::Killed(signal) => format!("killed {signal}"),
            Self::Stopped => "stopped".to_owned(),
            Self::Failed(why) => harmless(format!("failed {why}").as_bytes()),
            Self::Unknown(text) => harmless(text.as_bytes()),
        }
    }

    /// Reads the value of the key. Never fails.
    #[must_use]
    pub fn decode(value: &[u8]) -> Self {
        let text = harmless(value);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let decoded = match word {
            "exited" => plain_u8(rest).map(Self::Exited),
            "killed" => plain_u8(rest).map(Self::Killed),
            "stopped" if text == "stopped" => Some(Self::Stopped),
            "failed" => Some(Self::Failed(rest.to_owned())),
            _ => None,
        };
        decoded.unwrap_or(Self::Unknown(text))
    }
}

impl fmt::Display for AgentExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "QEMU exited with status {status}"),
            Self::Killed(signal) => write!(f, "QEMU was killed by signal {signal}"),
            Self::Stopped => f.write_str("the stubdomain was told to shut down"),
            Self::Failed(why) => write!(f, "QEMU could not be started: {why}"),
            Self::Unknown(text) => {
                write!(f, "the stubdomain reported \"{text}\", which is not a known reason")
            }
        }
    }
}

/// The value of [`DmKey::AgentHeartbeat`](crate::DmKey::AgentHeartbeat): whole seconds since the stubdomain's start, decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heartbeat(pub u64);

impl Heartbeat {
    /// The value of the key.
    #[must_use]
    pub fn encode(self) -> String {
        self.0.to_string()
    }

    /// Reads the value of the key: plain decimal only.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(value).ok()?;
        if text.is_empty() || text.len() > 20 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        text.parse().ok().map(Self)
    }
}

/// Makes bytes from a stubdomain fit for a log or a terminal: at most [`MAX_STUB_VALUE`] of them, each that is
/// not printable ASCII replaced by `?`.
#[must_use]
pub fn harmless(value: &[u8]) -> String {
    let printable =
        |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    value.iter().take(MAX_STUB_VALUE).map(printable).collect()
}

fn plain_u8(text: &str) -> Option<u8> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exits_come_back_as_written() {
        let exits = [
            AgentExit::Exited(0),
            AgentExit::Exited(255),
            AgentExit::Killed(9),
            AgentExit::Stopped,
            AgentExit::Failed("argv: absent".to_owned()),
            AgentExit::Failed(String::new()),
        ];
        for exit in exits {
            assert_eq!(AgentExit::decode(exit.encode().as_bytes()), exit);
        }
    }

    #[test]
    fn absurd_exits_are_unknown() {
        for text in
            ["", "exited", "exited 256", "exited +1", "exited 1 2", "killed -9", "stopped now", "Exited 0"]
        {
            assert_eq!(AgentExit::decode(text.as_bytes()), AgentExit::Unknown(text.to_owned()));
        }
    }

    #[test]
    fn only_a_clean_end_is_clean() {
        assert!(AgentExit::Exited(0).is_clean() && AgentExit::Stopped.is_clean());
        assert!(!AgentExit::Exited(1).is_clean() && !AgentExit::Killed(15).is_clean());
        assert!(!AgentExit::Unknown("exited 0 ".to_owned()).is_clean());
    }

    #[test]
    fn unknown_features_are_passed_over() {
        let features = Features::decode(b"qmp-vchan teleport  exit\n heartbeat");
        assert_eq!(features, [Feature::Heartbeat, Feature::QmpVchan].into_iter().collect());
        assert_eq!(features.encode(), "heartbeat qmp-vchan");
        assert_eq!(
            Features::decode(Feature::ALL.map(Feature::word).join(" ").as_bytes()),
            Feature::ALL.into_iter().collect()
        );
    }

    #[test]
    fn a_heartbeat_is_plain_decimal() {
        assert_eq!(Heartbeat::decode(Heartbeat(17).encode().as_bytes()), Some(Heartbeat(17)));
        for bad in [&b""[..], b"+1", b"1 ", b"99999999999999999999", b"000000000000000000000", b"\xff"] {
            assert_eq!(Heartbeat::decode(bad), None);
        }
    }

    #[test]
    fn only_the_whole_word_says_running() {
        assert_eq!(DmState::decode(b"running"), DmState::Running);
        assert_eq!(DmState::decode(b"running\n"), DmState::Other("running?".to_owned()));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_bounded_printable_text(value in vec(any::<u8>(), 0..600)) {
            let text = harmless(&value);
            prop_assert!(text.len() <= MAX_STUB_VALUE && text.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert!(AgentExit::decode(&value).encode().len() <= MAX_STUB_VALUE);
            prop_assert!(Features::decode(&value).encode().len() <= MAX_STUB_VALUE);
        }

        #[test]
        fn what_was_decoded_encodes_to_the_same(text in "(exited|killed|stopped|failed)? ?[ -~]{0,40}") {
            let exit = AgentExit::decode(text.as_bytes());
            prop_assert_eq!(AgentExit::decode(exit.encode().as_bytes()), exit);
        }
    }
}
