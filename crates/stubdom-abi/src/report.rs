//! The one reader of what a stubdomain writes below its own directory in xenstore.

use xen_types::DomId;
use xenstore::{Store, StoreError};

use crate::{AgentExit, DmKey, DmState, Features, HELD_STEP, SERVING_STEP, harmless};

/// What a stubdomain has reported in `/local/domain/<stub>/device-model/<target>/`, at the moment of reading.
///
/// The stubdomain is not trusted. Each value is cut to [`MAX_STUB_VALUE`](crate::MAX_STUB_VALUE) bytes of printable
/// ASCII before it is stored, and none is ever an error: a value that is not understood is an unknown one, and one
/// that is missing has not been reported.
///
/// ```
/// use stubdom_abi::{AgentExit, DmKey, Feature, StubReport};
/// let report = StubReport::of([
///     (DmKey::Features, b"exit teleport".as_slice()),
///     (DmKey::AgentExit, b"killed 9".as_slice()),
///     (DmKey::AgentStep, b"\x1b[2Jserving".as_slice()),
/// ]);
/// assert!(report.features().has(Feature::Exit) && !report.is_running());
/// assert_eq!(report.exit(), Some(AgentExit::Killed(9)));
/// assert_eq!(report.step(), Some("?[2Jserving"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StubReport {
    /// In the order of [`Self::KEYS`], each at most once.
    texts: Vec<(DmKey, String)>,
}

impl StubReport {
    /// The keys that are read.
    pub const KEYS: [DmKey; 6] = [
        DmKey::State,
        DmKey::AgentVersion,
        DmKey::AgentStep,
        DmKey::AgentHeartbeat,
        DmKey::Features,
        DmKey::AgentExit,
    ];

    /// Reads all keys, one round trip each.
    ///
    /// # Errors
    /// When xenstore itself fails; never for what the stubdomain wrote.
    pub fn read(store: &impl Store, stub: DomId, target: DomId) -> Result<Self, StoreError> {
        Self::read_keys(store, stub, target, &Self::KEYS)
    }

    /// Reads only some of [`Self::KEYS`], in their order here; the others are as if they were missing.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_keys(
        store: &impl Store,
        stub: DomId,
        target: DomId,
        keys: &[DmKey],
    ) -> Result<Self, StoreError> {
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = store.read(&key.path(stub, target))? {
                found.push((*key, value));
            }
        }
        Ok(Self::of(found))
    }

    /// Makes a report of values that were read already. Other keys than [`Self::KEYS`] are left out, and of several
    /// values of a key the first counts.
    pub fn of<V: AsRef<[u8]>>(values: impl IntoIterator<Item = (DmKey, V)>) -> Self {
        let mut slots = Self::KEYS.map(|key| (key, None));
        for (key, value) in values {
            if let Some((_, slot)) = slots.iter_mut().find(|(each, _)| *each == key) {
                slot.get_or_insert_with(|| harmless(value.as_ref()));
            }
        }
        Self { texts: slots.into_iter().filter_map(|(key, text)| Some((key, text?))).collect() }
    }

    /// What was found, as text that is safe to show, in the order of [`Self::KEYS`].
    pub fn texts(&self) -> impl Iterator<Item = (DmKey, &str)> {
        self.texts.iter().map(|(key, text)| (*key, text.as_str()))
    }

    /// QEMU's state; `None` before it has reported one.
    #[must_use]
    pub fn state(&self) -> Option<DmState> {
        self.text(DmKey::State).map(|text| DmState::decode(text.as_bytes()))
    }

    /// Whether QEMU has reported that it is ready.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state() == Some(DmState::Running)
    }

    /// What the stubdomain can do; nothing before it has said so.
    #[must_use]
    pub fn features(&self) -> Features {
        self.text(DmKey::Features).map(|text| Features::decode(text.as_bytes())).unwrap_or_default()
    }

    /// The agent's name and version, for people.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.text(DmKey::AgentVersion)
    }

    /// The step of its start that the agent is at, for people.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        self.text(DmKey::AgentStep)
    }

    /// Whether everything is prepared for QEMU, and the agent waits for [`DmKey::Start`] to start it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.step() == Some(HELD_STEP)
    }

    /// Whether QEMU was started.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.step() == Some(SERVING_STEP)
    }

    /// The last heartbeat, only to be compared with the one before: any change is a sign of life, and as a number
    /// it would prove no more.
    #[must_use]
    pub fn heartbeat(&self) -> Option<&str> {
        self.text(DmKey::AgentHeartbeat)
    }

    /// How the device model ended; `None` while it has not.
    #[must_use]
    pub fn exit(&self) -> Option<AgentExit> {
        self.text(DmKey::AgentExit).map(|text| AgentExit::decode(text.as_bytes()))
    }

    fn text(&self, key: DmKey) -> Option<&str> {
        self.texts().find(|(each, _)| *each == key).map(|(_, text)| text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use xenstore::server::Server;

    use super::*;
    use crate::{Feature, MAX_STUB_VALUE};

    fn dom(n: u16) -> DomId {
        DomId::new(n).unwrap()
    }

    /// The report of a stubdomain 8 of guest 7 that wrote these values.
    fn written(values: &[(DmKey, &[u8])], keys: &[DmKey]) -> StubReport {
        let server = Server::start();
        let store = server.connect(DomId::DOM0);
        for (key, value) in values {
            store.write(&key.path(dom(8), dom(7)), value).unwrap();
        }
        StubReport::read_keys(&store, dom(8), dom(7), keys).unwrap()
    }

    #[test]
    fn a_stubdomain_that_has_written_nothing_has_reported_nothing() {
        let report = written(&[], &StubReport::KEYS);
        assert_eq!(report, StubReport::default());
        assert_eq!((report.state(), report.exit(), report.heartbeat()), (None, None, None));
        assert!(!report.is_running() && report.features() == Features::default());
    }

    #[test]
    fn what_an_agent_writes_is_read_back() {
        let report = written(
            &[
                (DmKey::State, b"running"),
                (DmKey::AgentVersion, b"outrigger-agent 1"),
                (DmKey::AgentStep, b"serving"),
                (DmKey::AgentHeartbeat, b"5"),
                (DmKey::Features, b"heartbeat exit"),
                (DmKey::AgentExit, b"exited 0"),
            ],
            &StubReport::KEYS,
        );
        assert!(report.is_running());
        assert_eq!((report.version(), report.step()), (Some("outrigger-agent 1"), Some("serving")));
        assert_eq!(report.heartbeat(), Some("5"));
        assert_eq!(report.features(), [Feature::Exit, Feature::Heartbeat].into_iter().collect());
        assert_eq!(report.exit(), Some(AgentExit::Exited(0)));
        assert!(report.texts().map(|(key, _)| key).eq(StubReport::KEYS));
    }

    #[test]
    fn a_qemu_is_held_at_one_step_only() {
        let held = |step: &str| StubReport::of([(DmKey::AgentStep, step)]).is_held();
        assert!(held("held") && !held("serving") && !held("held "));
        assert!(!StubReport::default().is_held());
    }

    #[test]
    fn only_the_keys_that_are_asked_for_are_read() {
        let values = [(DmKey::State, b"running".as_slice()), (DmKey::AgentExit, b"stopped".as_slice())];
        let report = written(&values, &[DmKey::AgentExit]);
        assert_eq!((report.state(), report.exit()), (None, Some(AgentExit::Stopped)));
    }

    #[test]
    fn what_the_toolstack_writes_there_is_no_report() {
        let values = [(DmKey::Command, b"pci-ins".as_slice()), (DmKey::StateEnd, b"1".as_slice())];
        assert_eq!(written(&values, &[DmKey::Command, DmKey::StateEnd]), StubReport::default());
    }

    #[test]
    fn hostile_values_are_cut_and_made_harmless() {
        let report = written(
            &[(DmKey::State, &[b'x'; 4000]), (DmKey::AgentStep, b"\x1b]0;root\x07\xff")],
            &StubReport::KEYS,
        );
        assert_eq!(report.state(), Some(DmState::Other("x".repeat(MAX_STUB_VALUE))));
        assert_eq!(report.step(), Some("?]0;root??"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_bounded_report(
            values in vec((0..StubReport::KEYS.len(), vec(any::<u8>(), 0..600)), 0..12),
        ) {
            let report = StubReport::of(values.iter().map(|(key, value)| (StubReport::KEYS[*key], value)));
            prop_assert!(report.texts().count() <= StubReport::KEYS.len());
            for (_, text) in report.texts() {
                prop_assert!(text.len() <= MAX_STUB_VALUE && text.bytes().all(|b| (0x20..0x7f).contains(&b)));
            }
            let first = |key| values.iter().find(|(index, _)| StubReport::KEYS[*index] == key);
            // The text that is kept decodes to the same as the whole value.
            prop_assert_eq!(report.state(), first(DmKey::State).map(|(_, value)| DmState::decode(value)));
            prop_assert_eq!(report.exit(), first(DmKey::AgentExit).map(|(_, value)| AgentExit::decode(value)));
            let features = first(DmKey::Features).map(|(_, value)| Features::decode(value));
            prop_assert_eq!(report.features(), features.unwrap_or_default());
        }
    }
}
