//! The state of QEMU, as `xen-save-devices-state` writes it.

use crate::error::StreamError;

const MAGIC: &[u8; 4] = b"QEVM";
const VERSION: u32 = 3;
/// `QEMU_VM_SECTION_FULL`: the only kind of section in a state without memory.
const FULL: u8 = 4;
/// `QEMU_VM_EOF`.
const END: u8 = 0;

/// The largest state that is accepted, in bytes. A guest with an e1000 has 200 kB; nothing known has a tenth of this.
pub const MAX_STATE: usize = 16 << 20;

/// Checks that bytes are one whole state, as far as that can be known without their device's descriptions.
///
/// A state without section footers says little of itself: this finds what is empty, cut, or something else, not
/// every damage, and not the state of another machine type.
///
/// # Errors
/// When they cannot be one whole state.
pub fn check(state: &[u8]) -> Result<(), StreamError> {
    if state.is_empty() {
        return Err(StreamError::EmptyState);
    }
    let Some((head, sections)) = state.split_first_chunk::<8>() else {
        return Err(StreamError::State { offset: 0 });
    };
    let [a, b, c, d, version @ ..] = *head;
    if &[a, b, c, d] != MAGIC {
        return Err(StreamError::State { offset: 0 });
    }
    let version = u32::from_be_bytes(version);
    if version != VERSION {
        return Err(StreamError::Version { what: "QEMU's state", offset: 4, found: version, known: VERSION });
    }
    match sections {
        [] | [END] => return Err(StreamError::EmptyState),
        [FULL, .., END] => {}
        [FULL, ..] => return Err(StreamError::StateEnd { length: state.len() as u64 }),
        _ => return Err(StreamError::State { offset: 8 }),
    }
    second(state).map_or(Ok(()), |offset| Err(StreamError::TwoStates { offset }))
}

/// Where a second state begins, right behind the end of a first one. Stock xl appends a state to the last one of the
/// same stubdomain (`xl save -c`, twice).
fn second(state: &[u8]) -> Option<u64> {
    const BETWEEN: [u8; 10] = [END, b'Q', b'E', b'V', b'M', 0, 0, 0, 3, FULL];
    let at = state.windows(BETWEEN.len()).position(|window| window == BETWEEN)?;
    Some(at as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sections: &[u8]) -> Vec<u8> {
        [b"QEVM\0\0\0\x03".as_slice(), sections].concat()
    }

    #[test]
    fn whole_states_are_accepted_and_others_are_named() {
        let whole = state(b"\x04\0\0\0\0\x05timer\0");
        check(&whole).unwrap();
        assert!(matches!(check(b""), Err(StreamError::EmptyState)));
        assert!(matches!(check(&state(b"")), Err(StreamError::EmptyState)));
        assert!(matches!(check(&state(b"\0")), Err(StreamError::EmptyState)));
        assert!(matches!(check(b"QEVM"), Err(StreamError::State { offset: 0 })));
        assert!(matches!(check(b"QEVN\0\0\0\x03\x04\0"), Err(StreamError::State { offset: 0 })));
        assert!(matches!(check(b"QEVM\0\0\0\x02\x04\0"), Err(StreamError::Version { found: 2, .. })));
        assert!(matches!(check(&state(b"\x07\0\0")), Err(StreamError::State { offset: 8 })));
        assert!(matches!(check(&whole[..whole.len() - 1]), Err(StreamError::StateEnd { length: 19 })));
        let twice = [whole.clone(), whole].concat();
        assert!(matches!(check(&twice), Err(StreamError::TwoStates { offset: 20 })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_checked_without_panic(bytes: Vec<u8>) {
            let _ = check(&bytes);
            let _ = check(&state(&bytes));
        }
    }
}
