//! Cuts a peer's bytes into messages and checks each byte once: syntax, UTF-8, depth, keys, lengths.
//!
//! A message ends with its last brace, not with a line, because clients differ in what they send behind it. A byte is
//! looked at when it comes and never again, so a slow peer costs what a fast one does, and a message that breaks a
//! limit is refused at the byte that breaks it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use thiserror::Error;

use crate::limits::Limits;
use crate::message::{Kind, Member, Members, Message};

/// Why bytes are not a message. The stream behind it is worthless until [`Decoder::skip_line`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, or JSON that is not an object.
    #[error("Byte {at} of the message is not valid there")]
    Syntax {
        /// The byte's number in its message, from 0.
        at: usize,
    },
    /// A string that is not UTF-8, or an escape that is no character.
    #[error("The message is not UTF-8 near byte {at}")]
    Text {
        /// The byte's number in its message, from 0.
        at: usize,
    },
    /// An object has two members of one name.
    #[error("The message has a duplicate key near byte {at}")]
    DuplicateKey {
        /// Where the second one ends.
        at: usize,
    },
    /// A number that fits neither 64 bits nor a double.
    #[error("The message has a number out of range near byte {at}")]
    NumberRange {
        /// Where it ends.
        at: usize,
    },
    /// A limit is exceeded.
    #[error("The message has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

/// What is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between messages.
    Idle,
    /// Behind `{`.
    FirstKey,
    /// Behind `,` in an object.
    Key,
    /// Behind a key.
    Colon,
    /// Behind `:`, or behind `,` in an array.
    Value,
    /// Behind `[`.
    FirstValue,
    /// Behind a value.
    Behind,
    /// In a string; `low`: the second half of a surrogate pair has to follow.
    Text { low: bool },
    /// Behind a backslash.
    Escape { low: bool },
    /// In the digits of `\u`.
    Hex { low: bool, digits: u8, value: u16 },
    /// In a number.
    Number(Number),
    /// In `true`, `false`, `null`: what is still to come.
    Word(&'static [u8]),
    /// After an error.
    Broken,
    /// After an error: until the line's end.
    Skipping,
}

/// Where in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Dot,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl Number {
    /// The place after this byte; nothing when the byte does not continue the number.
    const fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => Self::Digits,
            (Self::Zero | Self::Digits, b'.') => Self::Dot,
            (Self::Dot | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Self::E,
            (Self::E, b'+' | b'-') => Self::Sign,
            (Self::E | Self::Sign | Self::Exponent, b'0'..=b'9') => Self::Exponent,
            _ => return None,
        })
    }

    const fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Exponent)
    }
}

/// An object or array that is open.
#[derive(Clone, Copy, Debug)]
struct Open {
    object: bool,
    /// Where its keys begin in the list of keys.
    keys: usize,
}

/// A key of an object that is open.
#[derive(Clone, Copy, Debug)]
struct Key {
    start: usize,
    end: usize,
}

/// Cuts bytes into messages.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Seeds the hashes of keys, so that nobody can choose keys whose hashes meet.
    seed: u32,
    /// What has come: bytes before `start` are done with.
    bytes: Vec<u8>,
    /// Where the message begins.
    start: usize,
    /// The next byte to look at.
    at: usize,
    state: State,
    open: Vec<Open>,
    keys: Vec<Key>,
    /// The hash of each of `keys`.
    hashes: Vec<u32>,
    /// Keys so far in this message.
    key_count: usize,
    /// Messages of no known kind, less those of one.
    nonsense: usize,
    /// Values so far in this message, itself included.
    value_count: usize,
    /// Where the current string or number begins.
    token: usize,
    /// Whether the current string is a key.
    in_key: bool,
    /// Whether the current string has bytes beyond ASCII.
    wide: bool,
    /// The member of the outermost object whose value is being read, and where that began.
    member: Option<(Member, usize)>,
    members: Members,
}

/// Bytes between messages that are kept from being moved until so many have gathered.
const COMPACT: usize = 64 << 10;
/// The largest exponent: with [`Limits::number`] digits it still is a double.
const EXPONENT: u32 = 200;

impl Decoder {
    /// A decoder with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "half of a random number is as random")]
        let seed = RandomState::new().build_hasher().finish() as u32;
        Self {
            limits,
            seed,
            bytes: Vec::new(),
            start: 0,
            at: 0,
            state: State::Idle,
            open: Vec::new(),
            keys: Vec::new(),
            hashes: Vec::new(),
            key_count: 0,
            nonsense: 0,
            value_count: 0,
            token: 0,
            in_key: false,
            wide: false,
            member: None,
            members: Members::default(),
        }
    }

    /// Takes bytes as they came. All messages of earlier ones should have been taken with [`Self::next_message`].
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.bytes.len() || self.start > COMPACT {
            self.bytes.drain(..self.start);
            self.at -= self.start;
            self.token = self.token.saturating_sub(self.start);
            if let Some((_, start)) = &mut self.member {
                *start = start.saturating_sub(self.start);
            }
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a message has begun and not ended.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        !matches!(self.state, State::Idle | State::Broken | State::Skipping)
    }

    /// Bytes held that belong to no message that was given out.
    #[must_use]
    pub fn held(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Forgets the broken message and everything up to the next end of a line.
    pub fn skip_line(&mut self) {
        self.begin();
        self.state = State::Skipping;
    }

    /// Gives back memory that a large message has needed.
    pub fn shrink(&mut self) {
        if self.held() == 0 {
            self.push(&[]);
            self.bytes.shrink_to(4096);
            self.keys = Vec::new();
            self.hashes = Vec::new();
        }
    }

    /// The next whole message.
    ///
    /// # Errors
    /// Once for each break of the rules; then nothing more until [`Self::skip_line`].
    pub fn next_message(&mut self) -> Option<Result<Message, DecodeError>> {
        match self.scan() {
            Ok(true) => Some(self.take()),
            Ok(false) => None,
            Err(error) => {
                self.break_off();
                Some(Err(error))
            }
        }
    }

    fn break_off(&mut self) {
        // What was held is done with; the next bytes take its place.
        self.begin();
        self.state = State::Broken;
    }

    fn begin(&mut self) {
        self.state = State::Idle;
        self.start = self.at;
        self.open.clear();
        self.keys.clear();
        self.hashes.clear();
        self.key_count = 0;
        self.value_count = 0;
        self.member = None;
        self.members = Members::default();
    }

    /// The message that has just ended.
    fn take(&mut self) -> Result<Message, DecodeError> {
        let bytes = self.bytes.get(self.start..self.at).unwrap_or_default().to_vec();
        let members = std::mem::take(&mut self.members);
        self.begin();
        // Every string has been checked when it ended, and all else is ASCII.
        let text = String::from_utf8(bytes).map_err(|_| DecodeError::Text { at: 0 })?;
        let message = Message::new(text, members);
        if message.kind() != Kind::Other {
            self.nonsense = self.nonsense.saturating_sub(1);
        } else if self.nonsense < self.limits.nonsense {
            self.nonsense += 1;
        } else {
            self.break_off();
            let limit = self.limits.nonsense;
            return Err(DecodeError::Limit { what: "messages that mean nothing", limit });
        }
        Ok(message)
    }

    /// Looks at bytes until a message ends; false when there are none left.
    fn scan(&mut self) -> Result<bool, DecodeError> {
        while let Some(&byte) = self.bytes.get(self.at) {
            match self.state {
                State::Text { low } => self.text(low)?,
                State::Broken => {
                    self.at = self.bytes.len();
                    self.begin();
                    self.state = State::Broken;
                }
                State::Skipping => {
                    self.at += 1;
                    self.start = self.at;
                    if byte == b'\n' {
                        self.state = State::Idle;
                    }
                }
                State::Idle => self.between(byte)?,
                _ => {
                    if self.step(byte)? {
                        return Ok(true);
                    }
                }
            }
            if self.at - self.start > self.limits.message {
                return Err(DecodeError::Limit { what: "bytes", limit: self.limits.message });
            }
        }
        Ok(false)
    }

    fn between(&mut self, byte: u8) -> Result<(), DecodeError> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                self.at += 1;
                self.start = self.at;
                Ok(())
            }
            b'{' => self.open(true),
            _ => Err(self.wrong()),
        }
    }

    fn wrong(&self) -> DecodeError {
        DecodeError::Syntax { at: self.at - self.start }
    }

    /// One byte outside of strings; true when it ended the message.
    fn step(&mut self, byte: u8) -> Result<bool, DecodeError> {
        match self.state {
            State::Escape { low } => self.escape(byte, low)?,
            State::Hex { low, digits, value } => self.hex(byte, low, digits, value)?,
            State::Number(place) => match place.next(byte) {
                Some(next) => {
                    self.state = State::Number(next);
                    self.at += 1;
                    if self.at - self.token > self.limits.number {
                        return Err(DecodeError::Limit { what: "digits", limit: self.limits.number });
                    }
                }
                None if place.is_whole() => {
                    self.check_number(place)?;
                    self.value_ended();
                }
                None => return Err(self.wrong()),
            },
            State::Word(rest) => match rest.split_first() {
                Some((&expected, rest)) if expected == byte => {
                    self.at += 1;
                    self.state = State::Word(rest);
                    if rest.is_empty() {
                        self.value_ended();
                    }
                }
                _ => return Err(self.wrong()),
            },
            _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
            State::FirstKey | State::Key => match byte {
                b'"' => self.string(true)?,
                b'}' if self.state == State::FirstKey => return Ok(self.close()),
                _ => return Err(self.wrong()),
            },
            State::Colon if byte == b':' => {
                self.at += 1;
                self.state = State::Value;
            }
            State::FirstValue if byte == b']' => return Ok(self.close()),
            State::Value | State::FirstValue => self.value(byte)?,
            State::Behind => return self.behind(byte),
            _ => return Err(self.wrong()),
        }
        Ok(false)
    }

    fn value(&mut self, byte: u8) -> Result<(), DecodeError> {
        self.value_count += 1;
        if self.value_count > self.limits.values {
            return Err(DecodeError::Limit { what: "values", limit: self.limits.values });
        }
        if self.open.len() == 1
            && let Some((_, start)) = &mut self.member
        {
            *start = self.at;
        }
        let word: &'static [u8] = match byte {
            b'{' => return self.open(true),
            b'[' => return self.open(false),
            b'"' => return self.string(false),
            b't' => b"rue",
            b'f' => b"alse",
            b'n' => b"ull",
            b'-' | b'0'..=b'9' => {
                self.token = self.at;
                self.at += 1;
                self.state = State::Number(match byte {
                    b'-' => Number::Minus,
                    b'0' => Number::Zero,
                    _ => Number::Digits,
                });
                return Ok(());
            }
            _ => return Err(self.wrong()),
        };
        self.at += 1;
        self.state = State::Word(word);
        Ok(())
    }

    fn behind(&mut self, byte: u8) -> Result<bool, DecodeError> {
        let object = self.open.last().is_some_and(|open| open.object);
        match (byte, object) {
            (b',', true) => self.state = State::Key,
            (b',', false) => self.state = State::Value,
            (b'}', true) | (b']', false) => return Ok(self.close()),
            _ => return Err(self.wrong()),
        }
        self.at += 1;
        Ok(false)
    }

    fn open(&mut self, object: bool) -> Result<(), DecodeError> {
        if self.open.len() >= self.limits.depth {
            return Err(DecodeError::Limit { what: "levels", limit: self.limits.depth });
        }
        self.open.push(Open { object, keys: self.keys.len() });
        self.at += 1;
        self.state = if object { State::FirstKey } else { State::FirstValue };
        Ok(())
    }

    /// Closes the innermost object or array; true when it was the message.
    fn close(&mut self) -> bool {
        self.at += 1;
        if let Some(open) = self.open.pop() {
            self.keys.truncate(open.keys);
            self.hashes.truncate(open.keys);
        }
        if self.open.is_empty() {
            return true;
        }
        self.value_ended();
        false
    }

    fn value_ended(&mut self) {
        self.state = State::Behind;
        if self.open.len() == 1
            && let Some((member, start)) = self.member.take()
        {
            self.members.set(member, start - self.start..self.at - self.start);
        }
    }

    fn string(&mut self, key: bool) -> Result<(), DecodeError> {
        if key {
            self.key_count += 1;
            let open = self.open.last().map_or(0, |open| open.keys);
            if self.key_count > self.limits.keys {
                return Err(DecodeError::Limit { what: "keys", limit: self.limits.keys });
            }
            if self.keys.len() - open >= self.limits.object_keys {
                let limit = self.limits.object_keys;
                return Err(DecodeError::Limit { what: "keys in one object", limit });
            }
        }
        self.at += 1;
        (self.token, self.in_key, self.wide) = (self.at, key, false);
        self.state = State::Text { low: false };
        Ok(())
    }

    /// Bytes of a string, up to its end, an escape, or the end of what has come.
    fn text(&mut self, low: bool) -> Result<(), DecodeError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let room = self.limits.string + 1 - (self.at - self.token).min(self.limits.string + 1);
        let seen = rest.get(..room).unwrap_or(rest);
        let plain = seen.iter().position(|&b| b == b'"' || b == b'\\' || b < b' ');
        let plain = plain.unwrap_or(seen.len());
        if plain > 0 {
            if low {
                return Err(DecodeError::Text { at: self.at - self.start });
            }
            self.wide = self.wide || !seen.get(..plain).unwrap_or_default().is_ascii();
        }
        let end = seen.get(plain).copied();
        self.at += plain;
        match end {
            Some(b'"') if low => return Err(DecodeError::Text { at: self.at - self.start }),
            Some(b'"') => return self.string_ended(),
            // No QAPI name has one, and a name in two spellings would slip through the search for duplicates.
            Some(b'\\') if self.in_key => return Err(self.wrong()),
            Some(b'\\') => {
                self.at += 1;
                self.state = State::Escape { low };
            }
            Some(_) => return Err(self.wrong()),
            None if self.at - self.token > self.limits.string => {
                return Err(DecodeError::Limit { what: "bytes in a string", limit: self.limits.string });
            }
            // What came before the end of the bytes was plain text, or nothing.
            None => {}
        }
        Ok(())
    }

    fn escape(&mut self, byte: u8, low: bool) -> Result<(), DecodeError> {
        self.state = match byte {
            b'u' => State::Hex { low, digits: 0, value: 0 },
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' if !low => State::Text { low: false },
            _ => return Err(self.wrong()),
        };
        self.at += 1;
        Ok(())
    }

    fn hex(&mut self, byte: u8, low: bool, digits: u8, value: u16) -> Result<(), DecodeError> {
        let Some(digit) = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) else {
            return Err(self.wrong());
        };
        self.at += 1;
        let value = value << 4 | digit;
        if digits < 3 {
            self.state = State::Hex { low, digits: digits + 1, value };
            return Ok(());
        }
        let is_low = (0xdc00..0xe000).contains(&value);
        if low != is_low {
            return Err(DecodeError::Text { at: self.at - self.start });
        }
        self.state = State::Text { low: (0xd800..0xdc00).contains(&value) };
        Ok(())
    }

    fn string_ended(&mut self) -> Result<(), DecodeError> {
        let (start, end) = (self.token, self.at);
        self.at += 1;
        let text = self.bytes.get(start..end).unwrap_or_default();
        if self.wide && std::str::from_utf8(text).is_err() {
            return Err(DecodeError::Text { at: end - self.start });
        }
        if !self.in_key {
            self.value_ended();
            return Ok(());
        }
        self.state = State::Colon;
        let hash = hash(self.seed, text);
        let open = self.open.last().map_or(0, |open| open.keys);
        // Positions are within the message: what lies before it may be moved away.
        let key = Key { start: start - self.start, end: end - self.start };
        let hashes = self.hashes.get(open..).unwrap_or_default();
        if hashes.contains(&hash) {
            let keys = self.keys.get(open..).unwrap_or_default();
            let message = self.bytes.get(self.start..).unwrap_or_default();
            let same = |(other, &its): (&Key, &u32)| {
                its == hash && message.get(other.start..other.end) == message.get(key.start..key.end)
            };
            if keys.iter().zip(hashes).any(same) {
                return Err(DecodeError::DuplicateKey { at: key.end });
            }
        }
        if self.open.len() == 1 {
            self.member = Some((Member::of(text), 0));
        }
        self.keys.push(key);
        self.hashes.push(hash);
        Ok(())
    }

    fn check_number(&self, place: Number) -> Result<(), DecodeError> {
        let bytes = self.bytes.get(self.token..self.at).unwrap_or_default();
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let fits = match place {
            Number::Zero | Number::Digits => {
                text.len() < 19 || text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok()
            }
            Number::Exponent => text
                .rsplit(['e', 'E', '+', '-'])
                .next()
                .is_some_and(|exponent| exponent.parse::<u32>().is_ok_and(|exponent| exponent <= EXPONENT)),
            _ => true,
        };
        if fits { Ok(()) } else { Err(DecodeError::NumberRange { at: self.at - self.start }) }
    }
}

fn hash(seed: u32, text: &[u8]) -> u32 {
    text.iter()
        .fold(seed, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(seed | 0x0100_0193).rotate_left(7))
}

#[cfg(test)]
mod tests;
