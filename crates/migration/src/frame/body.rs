//! The bodies of packets by their types.

use super::error::FrameError;
use super::fields::{Reader, put_decision, put_text};
use crate::ids::{Digest, JournalId, MigrationId};
use crate::message::{Body, Hello, Message, Packet, Waiting};
use crate::reason::{Ended, Outcome, Reason};

/// The version of the frozen formats, and of the first ones of the others.
const VERSION: u8 = 1;

const HELLO: u16 = 1;
const OFFER: u16 = 2;
const ACCEPT: u16 = 3;
pub(super) const DATA: u16 = 4;
const STREAM_END: u16 = 5;
const READY: u16 = 6;
const GO: u16 = 7;
const SETTLE: u16 = 8;
const COMMITTED: u16 = 9;
const ABORTED: u16 = 10;
const PENDING: u16 = 11;
const UNKNOWN: u16 = 12;
const ACK: u16 = 13;
const FORCED: u16 = 14;
const VOIDED: u16 = 15;
const NOTE: u16 = 16;

fn kind(body: &Body) -> u16 {
    match body {
        Body::Offer(_) => OFFER,
        Body::Accept(_) => ACCEPT,
        Body::Data(_) => DATA,
        Body::StreamEnd { .. } => STREAM_END,
        Body::Ready { .. } => READY,
        Body::Go { .. } => GO,
        Body::Settle => SETTLE,
        Body::Committed(_) => COMMITTED,
        Body::Aborted(_) => ABORTED,
        Body::Pending(_) => PENDING,
        Body::Unknown { .. } => UNKNOWN,
        Body::Ack => ACK,
        Body::Forced(_) => FORCED,
        Body::Voided(_) => VOIDED,
    }
}

pub(super) fn encode(packet: &Packet) -> (u16, Vec<u8>) {
    let mut out = Vec::new();
    let message = match packet {
        Packet::Hello(hello) => {
            out.push(VERSION);
            out.extend_from_slice(&hello.oldest.to_le_bytes());
            out.extend_from_slice(&hello.newest.to_le_bytes());
            out.extend_from_slice(&hello.journal.0);
            out.extend_from_slice(hello.boot.as_bytes());
            put_text(&mut out, &hello.host);
            return (HELLO, out);
        }
        Packet::Note(text) => {
            out.push(VERSION);
            put_text(&mut out, text);
            return (NOTE, out);
        }
        Packet::Message(message) => message,
    };
    begin(&mut out, message.id, message.journal);
    match &message.body {
        Body::Offer(offer) => out.extend(serde_json::to_vec(offer).unwrap_or_default()),
        Body::Accept(limits) => out.extend(serde_json::to_vec(limits).unwrap_or_default()),
        Body::Data(bytes) => out.extend_from_slice(bytes),
        Body::StreamEnd { length, digest } => {
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&digest.0);
        }
        Body::Ready { digest } | Body::Go { digest } => out.extend_from_slice(&digest.0),
        Body::Settle | Body::Ack => {}
        Body::Committed(Outcome::Running) => out.push(0),
        Body::Committed(Outcome::Ended(why)) => out.push(why.code()),
        Body::Aborted(reason) => out.push(reason.code()),
        Body::Pending(waiting) => out.push(waiting.code()),
        Body::Unknown { since } => out.extend_from_slice(&since.to_le_bytes()),
        Body::Forced(decision) | Body::Voided(decision) => put_decision(&mut out, decision),
    }
    (kind(&message.body), out)
}

/// What the body of each message begins with.
pub(super) fn begin(out: &mut Vec<u8>, id: MigrationId, journal: JournalId) {
    out.push(VERSION);
    out.extend_from_slice(&id.0);
    out.extend_from_slice(&journal.0);
}

/// `spare` is memory for the bytes of a DATA.
pub(super) fn decode(kind: u16, body: &[u8], spare: &mut Vec<Vec<u8>>) -> Result<Packet, FrameError> {
    if !(HELLO..=NOTE).contains(&kind) {
        return Err(FrameError::UnknownType { kind });
    }
    let mut reader = Reader { kind, rest: body };
    let version = reader.byte("version")?;
    if version != VERSION {
        return Err(FrameError::UnknownVersion { kind, version });
    }
    if kind == HELLO {
        return Ok(Packet::Hello(Hello {
            oldest: reader.short("version")?,
            newest: reader.short("version")?,
            journal: JournalId(reader.bytes("journal")?),
            boot: reader.uuid("boot")?,
            host: reader.text("host")?,
        }));
    }
    if kind == NOTE {
        return Ok(Packet::Note(reader.text("text")?));
    }
    let id = MigrationId(reader.bytes("migration")?);
    let journal = JournalId(reader.bytes("journal")?);
    let body = decode_body(&mut reader, spare)?;
    Ok(Packet::Message(Message { id, journal, body }))
}

fn decode_body(reader: &mut Reader<'_>, spare: &mut Vec<Vec<u8>>) -> Result<Body, FrameError> {
    Ok(match reader.kind {
        OFFER => Body::Offer(serde_json::from_slice(reader.rest).map_err(|_| reader.error("guest"))?),
        ACCEPT => Body::Accept(serde_json::from_slice(reader.rest).map_err(|_| reader.error("limits"))?),
        DATA => {
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.extend_from_slice(reader.rest);
            Body::Data(bytes)
        }
        STREAM_END => {
            Body::StreamEnd { length: reader.long("length")?, digest: Digest(reader.bytes("digest")?) }
        }
        READY => Body::Ready { digest: Digest(reader.bytes("digest")?) },
        GO => Body::Go { digest: Digest(reader.bytes("digest")?) },
        SETTLE => Body::Settle,
        COMMITTED => Body::Committed(match reader.byte("outcome")? {
            0 => Outcome::Running,
            code => Outcome::Ended(Ended::from_code(code)),
        }),
        ABORTED => Body::Aborted(Reason::from_code(reader.byte("reason")?)),
        PENDING => Body::Pending(Waiting::from_code(reader.byte("phase")?)),
        UNKNOWN => Body::Unknown { since: reader.long("time")? },
        ACK => Body::Ack,
        FORCED => Body::Forced(reader.decision()?),
        VOIDED => Body::Voided(reader.decision()?),
        kind => return Err(FrameError::UnknownType { kind }),
    })
}
