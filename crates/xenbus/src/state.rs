use std::fmt;

/// How far one end of a device is (`enum xenbus_state` in `xen/include/public/io/xenbus.h`).
///
/// The order is that of the numbers. `XenbusStateUnknown` (0) is what Xen's headers call an end without a state, which
/// is `None` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// 1: the device is being set up. Both ends begin here.
    Initialising = 1,
    /// 2: the end has what it needs and waits for the other end.
    InitWait,
    /// 3: the end has written what the other end needs to connect.
    Initialised,
    /// 4: the device works.
    Connected,
    /// 5: the end is closing, or has been asked to close.
    Closing,
    /// 6: the end has closed.
    Closed,
    /// 7: devices behind a PCI frontend are being added or removed.
    Reconfiguring,
    /// 8: that is done.
    Reconfigured,
}

impl XenbusState {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// Reads a state as it is written in xenstore: one digit. Anything else, which any guest can write, is no state.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.value() == value)
    }

    /// The value that is written to xenstore.
    #[must_use]
    pub const fn value(self) -> &'static [u8] {
        self.text().as_bytes()
    }

    /// The number in `xenbus.h`.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// What it is called, for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Initialising => "initialising",
            Self::InitWait => "waiting for the other end",
            Self::Initialised => "initialised",
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reconfiguring => "reconfiguring",
            Self::Reconfigured => "reconfigured",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }
}

/// As it is written to xenstore.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn states_are_written_as_their_numbers_and_read_back() {
        for (number, state) in (1..).zip(XenbusState::ALL) {
            assert_eq!(state.number(), number);
            assert_eq!(state.to_string(), number.to_string());
            assert_eq!(state.value(), number.to_string().as_bytes());
            assert_eq!(XenbusState::parse(state.value()), Some(state));
        }
        assert!(XenbusState::ALL.is_sorted());
    }

    #[test]
    fn what_is_no_state_is_not_read_as_one() {
        for bad in ["", "0", "9", "4 ", " 4", "+4", "04", "4\0", "44", "four", "18446744073709551620"] {
            assert_eq!(XenbusState::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn only_a_states_own_value_is_read_as_it(value in any::<Vec<u8>>()) {
            if let Some(state) = XenbusState::parse(&value) {
                prop_assert_eq!(state.value(), &*value);
            }
        }
    }
}
