//! libxc's stream: what is accepted, and what is refused by which name.
#![expect(clippy::unwrap_used, reason = "a test that cannot make its stream has failed")]

use migration_stream::StreamError;
use migration_stream::libxc::{Checker, Summary};
use proptest::prelude::*;

fn headers() -> Vec<u8> {
    let mut bytes = vec![0xff; 8];
    bytes.extend_from_slice(b"XENF\0\0\0\x03\0\0\0\0\0\0\0\0");
    bytes.extend_from_slice(b"\x02\0\0\0\x0c\0\0\0\x04\0\0\0\x11\0\0\0");
    bytes
}

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn pages(entries: &[u64]) -> Vec<u8> {
    let mut body = u64::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
    body.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    let count = entries.iter().filter(|entry| *entry >> 60 < 13).count();
    body.resize(body.len() + 4096 * count, 0xaa);
    record(1, &body)
}

fn params(count: u64) -> Vec<u8> {
    let mut body = count.to_le_bytes().to_vec();
    body.resize(8 + usize::try_from(count).unwrap() * 16, 7);
    record(10, &body)
}

/// The records of a small stream, in order.
fn records() -> Vec<Vec<u8>> {
    vec![
        record(0x11, &[1; 48]),
        record(0x12, &[2; 32]),
        record(0x10, b""),
        pages(&[0, 1, 0xf000_0000_0000_0002]),
        pages(&[0xd000_0000_0000_0003]),
        record(8, &[3; 24]),
        record(0x8000_0077, b"skip"),
        record(9, &[4; 13]),
        params(2),
        record(0, b""),
    ]
}

fn stream(records: &[Vec<u8>]) -> Vec<u8> {
    [headers(), records.concat()].concat()
}

fn check(bytes: &[u8]) -> Result<(usize, Summary), StreamError> {
    let mut checker = Checker::default();
    let used = checker.take(bytes)?;
    Ok((used, checker.finish()?))
}

fn refused(bytes: &[u8]) -> StreamError {
    check(bytes).expect_err("the stream is accepted")
}

/// The small stream with another record in place of one.
fn with(at: usize, other: Vec<u8>) -> StreamError {
    let mut all = records();
    all[at] = other;
    refused(&stream(&all))
}

#[test]
fn whole_stream_is_summed_up_and_its_end_is_found() {
    let mut bytes = stream(&records());
    let length = bytes.len();
    bytes.extend_from_slice(b"more");
    let summary =
        Summary { xen_major: 4, xen_minor: 17, pages: 2, entries: 4, bytes: u64::try_from(length).unwrap() };
    assert_eq!(check(&bytes).unwrap(), (length, summary));
    let mut checker = Checker::default();
    assert_eq!(checker.take(&bytes[..length]).unwrap(), length);
    assert!(checker.is_complete());
    assert_eq!(checker.take(b"more").unwrap(), 0);
}

#[test]
fn every_cut_is_named() {
    let bytes = stream(&records());
    // Within a page, every cut is like the next.
    let cuts = (0..bytes.len()).filter(|cut| *cut < 300 || *cut > bytes.len() - 300 || cut % 61 == 0);
    for cut in cuts {
        let error = refused(&bytes[..cut]);
        let at_cut = u64::try_from(cut).unwrap();
        assert!(
            matches!(error, StreamError::Truncated { offset, missing: 1.., .. } if offset == at_cut),
            "{cut}"
        );
    }
}

#[test]
fn every_changed_byte_of_headers_and_records_is_an_error_or_another_valid_value() {
    let bytes = stream(&records());
    let whole = check(&bytes).unwrap();
    for at in 0..bytes.len() {
        if bytes[at] == 0xaa {
            continue;
        }
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        match check(&changed) {
            Ok((used, summary)) => {
                // Xen's version, what records contain, page numbers, the type of the one that can be skipped.
                assert_eq!(
                    (used, summary.bytes, summary.entries),
                    (whole.0, whole.1.bytes, whole.1.entries),
                    "{at}"
                );
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    for at in 0..32 {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert!(check(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn headers_of_other_streams_are_named() {
    let changed = |at: usize, byte: u8| {
        let mut bytes = stream(&records());
        bytes[at] = byte;
        refused(&bytes)
    };
    assert!(matches!(changed(0, 0), StreamError::Mark { offset: 0, .. }));
    assert!(matches!(changed(8, 0), StreamError::Mark { .. }));
    assert!(matches!(changed(15, 2), StreamError::Version { found: 2, .. }));
    assert!(matches!(changed(17, 1), StreamError::Options { .. }));
    assert!(matches!(changed(24, 1), StreamError::GuestType { offset: 24, found: 1 }));
    assert!(matches!(changed(28, 13), StreamError::PageSize { found: 13, .. }));
    assert!(matches!(changed(30, 1), StreamError::Options { .. }));
}

#[test]
fn order_is_kept() {
    for at in 0..records().len() {
        if [3, 4, 6].contains(&at) {
            continue;
        }
        let mut missing = records();
        let gone = missing.remove(at);
        assert!(
            matches!(
                refused(&stream(&missing)),
                StreamError::OutOfOrder { .. } | StreamError::Truncated { .. }
            ),
            "without {at}"
        );
        let mut doubled = records();
        if at + 1 < doubled.len() {
            doubled.insert(at, gone);
            assert!(matches!(refused(&stream(&doubled)), StreamError::OutOfOrder { .. }), "twice {at}");
        }
    }
    assert!(matches!(with(6, pages(&[5])), StreamError::OutOfOrder { kind: 1, expected: "HVM_CONTEXT", .. }));
}

#[test]
fn records_without_a_place_are_named() {
    for kind in [2, 7, 11, 12, 0x13] {
        assert!(matches!(with(4, record(kind, b"")), StreamError::UnknownRecord { .. }), "{kind:#x}");
    }
    for kind in [14, 15] {
        assert!(matches!(with(4, record(kind, b"")), StreamError::Checkpoint { .. }), "{kind:#x}");
    }
    let mut debug = records();
    debug.insert(4, record(13, b""));
    check(&stream(&debug)).unwrap();
}

#[test]
fn bounds_hold() {
    assert!(matches!(with(0, record(0x11, &[0; 25])), StreamError::RecordLength { length: 25, .. }));
    assert!(matches!(with(1, record(0x12, &[0; 8])), StreamError::RecordLength { .. }));
    assert!(matches!(with(2, record(0x10, &[0; 8])), StreamError::RecordLength { .. }));
    assert!(matches!(with(5, record(8, &[0; 16])), StreamError::RecordLength { .. }));
    assert!(matches!(with(7, record(9, b"")), StreamError::RecordLength { .. }));
    assert!(matches!(with(7, b"\x09\0\0\0\x01\0\0\x01".to_vec()), StreamError::RecordLength { .. }));
    assert!(matches!(with(6, b"\x77\0\0\x80\x01\0\x10\0".to_vec()), StreamError::RecordLength { .. }));
    assert!(matches!(with(9, record(0, &[0; 8])), StreamError::RecordLength { .. }));
    assert!(matches!(with(3, pages(&[])), StreamError::RecordLength { .. }));
    assert!(matches!(with(3, pages(&[0xf000_0000_0000_0000; 1025])), StreamError::RecordLength { .. }));
    let mut most = records();
    most[3] = pages(&[0xf000_0000_0000_0000; 1024]);
    assert_eq!(check(&stream(&most)).unwrap().1.entries, 1025);
    // One page too few, and one too many.
    let mut body = pages(&[1, 2]);
    body.truncate(body.len() - 4096);
    let length = u32::try_from(body.len() - 8).unwrap();
    body[4..8].copy_from_slice(&length.to_le_bytes());
    assert!(matches!(with(3, body), StreamError::RecordLength { .. }));
    let mut wrong = params(2);
    wrong[8] = 1;
    assert!(matches!(with(8, wrong), StreamError::RecordLength { .. }));
    let mut reserved = params(2);
    reserved[12] = 1;
    assert!(matches!(with(8, reserved), StreamError::Options { .. }));
}

#[test]
fn pages_that_no_hvm_guest_has_are_named() {
    for entry in [0x0010_0000_0000_0000, 0x1000_0000_0000_0001, 0x9000_0000_0000_0001, 0xc000_0000_0000_0000]
    {
        assert!(
            matches!(with(3, pages(&[entry])), StreamError::Page { found, .. } if found == entry),
            "{entry:#x}"
        );
    }
}

#[test]
fn padding_is_zero() {
    let mut context = record(9, &[4; 13]);
    *context.last_mut().unwrap() = 1;
    assert!(matches!(with(7, context), StreamError::Padding { .. }));
}

proptest! {
    #[test]
    fn pieces_do_not_matter(pieces in prop::collection::vec(1..600_usize, 1..60)) {
        let bytes = stream(&records());
        let mut checker = Checker::default();
        let mut rest = bytes.as_slice();
        for piece in pieces.into_iter().cycle() {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            prop_assert_eq!(checker.take(now).unwrap(), now.len());
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(checker.finish().unwrap(), check(&bytes).unwrap().1);
    }

    #[test]
    fn any_bytes_are_checked_without_panic(keep in 0..200_usize, bytes: Vec<u8>) {
        let mut all = stream(&records());
        all.truncate(keep);
        all.extend_from_slice(&bytes);
        let _ = check(&all);
    }
}
