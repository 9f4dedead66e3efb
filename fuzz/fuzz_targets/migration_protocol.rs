//! The hand-over of a migrating guest: a peer's bytes, and both machines under any messages and events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration::frame::{Decoder, FrameError, encode};
use migration::message::{Body, Limits, Message, Packet, Waiting};
use migration::receiver::{self, First, OwnJournal, Receiver};
use migration::record::Decision;
use migration::sender::{self, Sender};
use migration::{Digest, Ended, JournalId, MigrationId, Outcome, Reason};

const ID: MigrationId = MigrationId([1; 16]);
const OWN: OwnJournal = OwnJournal { id: JournalId([2; 16]), since: 0 };
const DIGEST: Digest = Digest([3; 16]);

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let packets = decode(bytes, usize::from(*piece).max(1));
    assert_eq!(packets, decode(bytes, bytes.len().max(1)), "pieces matter");
    let messages = packets.into_iter().filter_map(|packet| match packet {
        Packet::Message(message) => Some(message),
        Packet::Hello(_) | Packet::Note(_) => None,
    });
    // Foreign messages first, then a sequence of events whose messages fit.
    let mut hosts = Hosts::default();
    messages.for_each(|message| hosts.message(&message));
    bytes.iter().for_each(|byte| hosts.event(*byte));
});

/// All packets of the bytes, each of which is read again as it was written.
fn decode(bytes: &[u8], piece: usize) -> Vec<Packet> {
    let (mut decoder, mut packets) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        for piece in piece.chunks(decoder.room().max(1)) {
            decoder.push(piece).expect("there is room");
            loop {
                match decoder.next() {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => break,
                    Err(FrameError::UnknownType { .. } | FrameError::UnknownVersion { .. }) => {}
                    Err(_) => return packets,
                }
            }
            assert!(decoder.room() > 0, "a frame that is too long was stored");
        }
    }
    for packet in &packets {
        let mut again = Decoder::default();
        again.push(&encode(packet).expect("it fits")).expect("there is room");
        assert_eq!(again.next().as_ref(), Ok(&Some(packet.clone())));
    }
    packets
}

/// Both machines, and whether a record of each is being written.
#[derive(Default)]
struct Hosts {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
    sender_writes: bool,
    receiver_writes: bool,
}

impl Hosts {
    fn message(&mut self, message: &Message) {
        self.to_sender(sender::Event::Received(message.clone()));
        match &mut self.receiver {
            Some(_) => self.to_receiver(receiver::Event::Received(message.clone())),
            None => {
                if let First::Machine(machine, effects) = Receiver::first(message, OWN, None) {
                    self.receiver = Some(machine);
                    self.receiver_effects(&effects);
                }
            }
        }
    }

    fn event(&mut self, byte: u8) {
        match byte {
            0..64 => self.to_sender(sender_event(byte)),
            64..128 => self.to_receiver(receiver_event(byte - 64)),
            128..192 => self.message(&Message { id: ID, journal: OWN.id, body: body(byte - 128) }),
            192..224 => {
                let (machine, effects) =
                    match self.sender.as_ref().and_then(|sender| sender.record().cloned()) {
                        Some(record) => Sender::restored(ID, OWN.id, record),
                        None => Sender::begin(ID, OWN.id),
                    };
                (self.sender, self.sender_writes) = (Some(machine), false);
                self.sender_effects(&effects);
            }
            224.. => {
                let record = self.receiver.as_ref().and_then(|receiver| receiver.record().cloned());
                (self.receiver, self.receiver_writes) = (None, false);
                if let Some(record) = record {
                    let (machine, effects) = Receiver::restored(ID, OWN, record);
                    self.receiver = Some(machine);
                    self.receiver_effects(&effects);
                }
            }
        }
    }

    fn to_sender(&mut self, event: sender::Event) {
        let Some(machine) = &mut self.sender else { return };
        if matches!(event, sender::Event::Written | sender::Event::WriteFailed { .. }) {
            self.sender_writes = false;
        }
        let effects = machine.step(event);
        let _ = machine.state();
        self.sender_effects(&effects);
    }

    fn to_receiver(&mut self, event: receiver::Event) {
        let Some(machine) = &mut self.receiver else { return };
        if matches!(event, receiver::Event::Written | receiver::Event::WriteFailed) {
            self.receiver_writes = false;
        }
        let effects = machine.step(event);
        let _ = (machine.state(), machine.answer());
        self.receiver_effects(&effects);
    }

    fn sender_effects(&mut self, effects: &[sender::Effect]) {
        assert!(effects.len() <= 3);
        for effect in effects {
            if matches!(effect, sender::Effect::Write(_)) {
                assert!(!self.sender_writes, "a write is replaced");
                self.sender_writes = true;
            }
        }
    }

    fn receiver_effects(&mut self, effects: &[receiver::Effect]) {
        assert!(effects.len() <= 3);
        for effect in effects {
            if matches!(effect, receiver::Effect::Write(_)) {
                assert!(!self.receiver_writes, "a write is replaced");
                self.receiver_writes = true;
            }
        }
    }
}

fn decision() -> Decision {
    Decision { operator: "root".to_owned(), time: 0 }
}

fn sender_event(byte: u8) -> sender::Event {
    use sender::{Event, Timer};
    match byte % 20 {
        0 => Event::WriteFailed { doubtful: byte & 32 == 0 },
        1 => Event::Connected,
        2 => Event::Cut,
        3 => Event::Timeout(Timer::Progress),
        4 => Event::Timeout(Timer::Answer),
        5 => Event::Timeout(Timer::Retry),
        6 => Event::Cancel,
        7 => Event::Converged,
        8 => Event::Suspended,
        9 => Event::SuspendFailed,
        10 => Event::Saved { length: 1, digest: DIGEST },
        11 => Event::SaveFailed,
        12 => Event::StillSuspended,
        13 => Event::GuestEnded,
        14 => Event::Resumed,
        15 => Event::ResumeFailed,
        16 => Event::Destroyed,
        17 => Event::DestroyFailed,
        18 => Event::AssumeReceiverDead(decision()),
        _ => Event::Written,
    }
}

fn receiver_event(byte: u8) -> receiver::Event {
    use receiver::{Copy, Event, Timer};
    match byte % 23 {
        0 => Event::WriteFailed,
        1 => Event::Connected,
        2 => Event::Cut,
        3 => Event::Timeout(Timer::Progress),
        4 => Event::Timeout(Timer::Repeat),
        5 => Event::Timeout(Timer::Retry),
        6 => Event::Cancel,
        7 => Event::Built,
        8 => Event::BuildFailed(Reason::BuildFailed),
        9 => Event::Loaded,
        10 => Event::LoadFailed,
        11 => Event::StillPaused,
        12 => Event::CopyGone(Ended::Destroyed),
        13 => Event::Armed,
        14 => Event::ArmFailed,
        15 => Event::Unpaused,
        16 => Event::UnpauseFailed,
        17 => Event::Inspected(Copy::Paused),
        18 => Event::Inspected(Copy::Gone(Ended::HostRebooted)),
        19 => Event::Destroyed,
        20 => Event::DestroyFailed,
        21 => Event::AssumeSenderDead(decision()),
        _ => Event::Written,
    }
}

fn body(byte: u8) -> Body {
    match byte % 13 {
        0 => Body::StreamEnd { length: 1, digest: DIGEST },
        1 => Body::Go { digest: DIGEST },
        2 => Body::Settle,
        3 => Body::Ack,
        4 => Body::Forced(decision()),
        5 => Body::Accept(Limits { data: 1 }),
        6 => Body::Ready { digest: DIGEST },
        7 => Body::Committed(Outcome::Running),
        8 => Body::Aborted(Reason::Other),
        9 => Body::Pending(Waiting::Loading),
        10 => Body::Unknown { since: 0 },
        11 => Body::Voided(decision()),
        _ => Body::Offer(Box::new(migration::message::Offer {
            guest: uuid::Uuid::nil(),
            name: String::new(),
            config: serde_json::Value::Null,
            machine: String::new(),
            xen_version: String::new(),
            disks: Vec::new(),
            compression: None,
        })),
    }
}
