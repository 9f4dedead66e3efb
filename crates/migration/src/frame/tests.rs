use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::message::{Body, Hello, Limits, Message, Offer, Waiting};
use crate::record::Decision;
use crate::{Digest, Ended, JournalId, MigrationId, Outcome, Reason};

fn message(body: Body) -> Packet {
    Packet::Message(Message { id: MigrationId([1; 16]), journal: JournalId([2; 16]), body })
}

/// One packet of each type.
fn packets() -> Vec<Packet> {
    let digest = Digest([3; 16]);
    let decision = || Decision { operator: "root".to_owned(), time: 5 };
    let hello = Hello {
        oldest: 1,
        newest: 2,
        host: "a".to_owned(),
        journal: JournalId([4; 16]),
        boot: Uuid::from_u128(6),
    };
    let offer = Offer {
        guest: Uuid::from_u128(7),
        name: "web".to_owned(),
        config: serde_json::json!({ "memory": 512 }),
        machine: "pc-i440fx-7.2".to_owned(),
        xen_version: "4.17.5".to_owned(),
        disks: vec!["wwn-1".to_owned()],
        compression: None,
    };
    let bodies = [
        Body::Offer(Box::new(offer)),
        Body::Accept(Limits { data: 65_000 }),
        Body::Data(vec![8; 300]),
        Body::StreamEnd { length: 1 << 40, digest },
        Body::Ready { digest },
        Body::Go { digest },
        Body::Settle,
        Body::Ack,
        Body::Committed(Outcome::Running),
        Body::Committed(Outcome::Ended(Ended::HostRebooted)),
        Body::Aborted(Reason::Busy),
        Body::Pending(Waiting::Journal),
        Body::Unknown { since: 9 },
        Body::Forced(decision()),
        Body::Voided(decision()),
    ];
    std::iter::once(Packet::Hello(hello)).chain(bodies.into_iter().map(message)).collect()
}

fn decode(bytes: &[u8], piece: usize) -> Vec<Packet> {
    let (mut decoder, mut found) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.push(piece).unwrap();
        while let Some(packet) = decoder.next().unwrap() {
            found.push(packet);
        }
    }
    found
}

#[test]
fn each_packet_is_read_as_it_was_written_in_pieces_of_any_size() {
    let bytes: Vec<u8> = packets().iter().flat_map(|packet| encode(packet).unwrap()).collect();
    for piece in [1, 7, 100, bytes.len()] {
        assert_eq!(decode(&bytes, piece), packets(), "{piece}");
    }
}

/// The frozen formats, byte for byte: a change here leaves hosts that cannot settle a migration after an upgrade.
#[test]
fn the_frozen_formats_stay() {
    let frozen: Vec<Packet> = packets()
        .into_iter()
        .filter(|packet| {
            !matches!(
                packet,
                Packet::Message(Message { body: Body::Offer(_) | Body::Accept(_) | Body::Data(_), .. })
            )
        })
        .collect();
    let sums: Vec<(usize, u32)> = frozen
        .iter()
        .map(|packet| {
            let frame = encode(packet).unwrap();
            (frame.len(), crc32fast::hash(&frame[..frame.len() - SUM]))
        })
        .collect();
    assert_eq!(sums, FROZEN);
}

/// Length of the frame, and its CRC-32.
const FROZEN: [(usize, u32); 13] = [
    (49, 0x07bf_8cb1),
    (67, 0x9be4_28f3),
    (59, 0xfb48_39b5),
    (59, 0x3176_ca26),
    (43, 0x37c6_f855),
    (43, 0x70c2_bc3f),
    (44, 0x76f8_e813),
    (44, 0x7195_2c0a),
    (44, 0xf2cd_7af3),
    (44, 0x1e61_16c2),
    (51, 0xde9e_5e66),
    (56, 0xf64a_62ac),
    (56, 0xcbfb_8e70),
];

#[test]
fn bytes_after_the_known_fields_are_ignored() {
    for packet in packets() {
        let (kind, mut body) = body::encode(&packet);
        if matches!(
            packet,
            Packet::Message(Message { body: Body::Offer(_) | Body::Accept(_) | Body::Data(_), .. })
        ) {
            continue;
        }
        body.extend_from_slice(b"later");
        assert_eq!(body::decode(kind, &body, &mut Vec::new()), Ok(packet));
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_before_it_is_stored() {
    let mut decoder = Decoder::default();
    decoder.push(&[1, 0, 1, 0]).unwrap();
    assert_eq!(decoder.next(), Err(FrameError::TooLong { length: 65_537 }));
    let mut decoder = Decoder::default();
    assert_eq!(decoder.push(&vec![0; MAX_BUFFER + 1]), Err(FrameError::Overflow));
    assert_eq!(
        encode(&message(Body::Data(vec![0; MAX_DATA + 1]))),
        Err(FrameError::CannotSend { length: MAX_BODY + 1 })
    );
    let largest = message(Body::Data(vec![0; MAX_DATA]));
    assert_eq!(decode(&encode(&largest).unwrap(), 4096), [largest]);
}

#[test]
fn an_unknown_type_or_version_is_named_and_left_out() {
    for (kind, body, error) in [
        (99, vec![1], FrameError::UnknownType { kind: 99 }),
        (8, vec![2], FrameError::UnknownVersion { kind: 8, version: 2 }),
    ] {
        let mut frame = Vec::new();
        frame.extend_from_slice(&1_u32.to_le_bytes());
        frame.extend_from_slice(&u16::to_le_bytes(kind));
        frame.extend_from_slice(&body);
        frame.extend_from_slice(&crc32fast::hash(&frame).to_le_bytes());
        let mut decoder = Decoder::default();
        decoder.push(&frame).unwrap();
        decoder.push(&encode(&message(Body::Settle)).unwrap()).unwrap();
        assert_eq!(decoder.next(), Err(error));
        assert_eq!(decoder.next(), Ok(Some(message(Body::Settle))));
    }
}

#[test]
fn a_damaged_frame_is_refused() {
    let frame = encode(&message(Body::Settle)).unwrap();
    for at in 4..frame.len() {
        let mut damaged = frame.clone();
        damaged[at] ^= 0x10;
        let mut decoder = Decoder::default();
        decoder.push(&damaged).unwrap();
        assert!(matches!(decoder.next(), Err(FrameError::Checksum { .. })), "{at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes).unwrap();
        while let Ok(Some(_)) = decoder.next() {}
        for kind in 0..20 {
            let _ = body::decode(kind, &bytes, &mut Vec::new());
        }
    }
}

#[test]
fn frames_of_data_are_those_of_messages_whatever_was_in_them_before() {
    let (id, journal) = (MigrationId([1; 16]), JournalId([2; 16]));
    let mut frame = DataFrame::of(id, journal);
    for bytes in [vec![7; MAX_DATA], Vec::new(), vec![8; 9]] {
        let message = message(Body::Data(bytes.clone()));
        assert_eq!(frame.with(&bytes).unwrap(), encode(&message).unwrap());
    }
    let too_many = vec![0; MAX_DATA + 1];
    let length = MAX_BODY + 1;
    assert_eq!(frame.with(&too_many), Err(FrameError::CannotSend { length }));
}

#[test]
fn memory_that_was_given_back_is_used_again() {
    let mut decoder = Decoder::default();
    let mut given = Vec::with_capacity(1000);
    given.extend_from_slice(b"what was in it");
    let place = given.as_ptr();
    decoder.give_back(given);
    for bytes in [vec![5; 3], vec![6; 900]] {
        let message = message(Body::Data(bytes.clone()));
        decoder.push(&encode(&message).unwrap()).unwrap();
        let Ok(Some(Packet::Message(Message { body: Body::Data(found), .. }))) = decoder.next() else {
            panic!("no DATA")
        };
        assert_eq!((found.as_ptr(), &found), (place, &bytes));
        decoder.give_back(found);
    }
}
