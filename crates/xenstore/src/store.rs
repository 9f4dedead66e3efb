use core::time::Duration;
use std::time::Instant;

use crate::error::StoreError;
use crate::path::{NodePath, WatchPath, XsPath, shown};
use crate::permissions::Permissions;
use crate::wire::{ErrorCode, LIST_MAX, MessageType, Request, strings};

/// How often a listing in parts begins anew because the directory changed under it.
const LIST_ATTEMPTS: usize = 16;

/// How requests reach xenstored.
pub(crate) trait RequestIo {
    /// Sends a request in a transaction (0 for none) and gives the payload of its answer.
    fn call(&self, request: &Request, tx_id: u32) -> Result<Vec<u8>, StoreError>;

    /// Sends many requests at once and waits for all answers; the error of the first that failed.
    fn call_all(&self, requests: &[Request], tx_id: u32) -> Result<(), StoreError>;

    /// How long a call may take.
    fn timeout(&self) -> Duration;
}

/// Reading and writing nodes: by a [`Connection`](crate::Connection), by [`Xenstore`](crate::Xenstore), or inside a
/// [`Transaction`].
///
/// Code that builds a piece of the tree takes `&dyn Store`, so that its caller chooses the transaction.
///
/// # Errors
/// Every method gives a [`StoreError`]: [`StoreError::Refused`] when xenstored refuses, [`StoreError::Timeout`] or
/// [`StoreError::ConnectionLost`] when it does not answer.
pub trait Store {
    /// Sends a request and gives the payload of its answer.
    ///
    /// # Errors
    /// As for all methods; an error that xenstored answers with is [`StoreError::Refused`].
    fn request(&self, request: &Request) -> Result<Vec<u8>, StoreError>;

    /// Sends many requests without waiting in between, then waits for all answers.
    ///
    /// Much faster than one by one. The requests are carried out in order; those behind one that fails are carried
    /// out nevertheless, which is why this belongs into a transaction, where nothing counts before the commit.
    ///
    /// # Errors
    /// As for all methods; the first error in the order of the requests.
    fn request_all(&self, requests: &[Request]) -> Result<(), StoreError>;

    /// Reads a node's value, at most 4096 bytes; nothing when there is no such node.
    fn read(&self, path: &dyn NodePath) -> Result<Option<Vec<u8>>, StoreError> {
        absent_is_none(self.request(&Request::read(path)))
    }

    /// Reads a node's value as text of at most `max` bytes; nothing when there is no such node.
    ///
    /// For values that a guest or a stubdomain may have written: text with control characters is refused.
    fn read_string(&self, path: &dyn NodePath, max: usize) -> Result<Option<String>, StoreError> {
        let Some(value) = self.read(path)? else { return Ok(None) };
        parse_string(path, value, max).map(Some)
    }

    /// Reads a node's value as a plain decimal number; nothing when there is no such node.
    fn read_number(&self, path: &dyn NodePath) -> Result<Option<u64>, StoreError> {
        let Some(value) = self.read(path)? else { return Ok(None) };
        parse_number(path, &value).map(Some)
    }

    /// Writes a node's value, and makes the node and what is missing above it.
    ///
    /// A new node has its parent's permissions. With xenstored, one made by an unprivileged domain belongs to that
    /// domain; with oxenstored to the owner of its parent. oxenstored refuses values of more than 2048 bytes.
    fn write(&self, path: &dyn NodePath, value: &[u8]) -> Result<(), StoreError> {
        self.request(&Request::write(path, value)).map(drop)
    }

    /// Makes a node with an empty value, and what is missing above it; one that is there stays as it is.
    fn mkdir(&self, path: &dyn NodePath) -> Result<(), StoreError> {
        self.request(&Request::mkdir(path)).map(drop)
    }

    /// Removes a node and all below it; that there is none is fine.
    ///
    /// For `/` it gives [`StoreError::Destructive`]: xenstored refuses that, oxenstored does it.
    fn rm(&self, path: &dyn NodePath) -> Result<(), StoreError> {
        if path.wire() == "/" {
            return Err(StoreError::Destructive { operation: Request::rm(path).operation() });
        }
        absent_is_none(self.request(&Request::rm(path))).map(drop)
    }

    /// Lists the names of a node's children, with xenstored in the order in which they were made, with oxenstored in that
    /// of their bytes; nothing when there is no such node.
    ///
    /// A list that does not fit into one message is read in parts (at most 1 MiB), from the start again when it
    /// changes meanwhile. oxenstored has no parts: its socket gives a list of up to 1 MiB at once, and in a domain it can
    /// list at most 4096 bytes of names, for more of which this gives `ENOSYS`.
    fn list(&self, path: &dyn NodePath) -> Result<Option<Vec<String>>, StoreError> {
        let request = Request::directory(path);
        match self.request(&request) {
            Err(StoreError::Refused { code: ErrorCode::TooBig, .. }) => list_in_parts(self, path),
            answer => {
                let Some(payload) = absent_is_none(answer)? else { return Ok(None) };
                names(&request, &payload).map(Some)
            }
        }
    }

    /// Reads a node's permissions; nothing when there is no such node.
    fn get_perms(&self, path: &dyn NodePath) -> Result<Option<Permissions>, StoreError> {
        let request = Request::get_perms(path);
        let Some(payload) = absent_is_none(self.request(&request))? else { return Ok(None) };
        let texts = strings(&payload).map_err(|e| bad_answer(&request, e))?;
        Permissions::from_strings(texts).map(Some).map_err(|e| bad_answer(&request, e))
    }

    /// Sets a node's permissions, or (domain 0 only) who may watch a special event.
    fn set_perms(&self, path: &dyn WatchPath, permissions: &Permissions) -> Result<(), StoreError> {
        self.request(&Request::set_perms(path, permissions)).map(drop)
    }
}

pub(crate) fn bad_answer(request: &Request, what: impl core::fmt::Display) -> StoreError {
    StoreError::BadAnswer { operation: request.operation(), what: what.to_string() }
}

pub(crate) fn absent_is_none<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Refused { code: ErrorCode::NoEntry, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn names(request: &Request, payload: &[u8]) -> Result<Vec<String>, StoreError> {
    let names = strings(payload).map_err(|e| bad_answer(request, e))?;
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn list_in_parts<S: Store + ?Sized>(
    store: &S,
    path: &dyn NodePath,
) -> Result<Option<Vec<String>>, StoreError> {
    for _ in 0..LIST_ATTEMPTS {
        match list_parts_once(store, path) {
            Ok(Some(Listing::Changed)) => {}
            Ok(Some(Listing::Whole(list))) => return Ok(Some(list)),
            Ok(None) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Conflict { attempts: u32::try_from(LIST_ATTEMPTS).unwrap_or(u32::MAX) })
}

enum Listing {
    Whole(Vec<String>),
    Changed,
}

fn list_parts_once<S: Store + ?Sized>(store: &S, path: &dyn NodePath) -> Result<Option<Listing>, StoreError> {
    let mut all = Vec::new();
    let mut generation: Option<Vec<u8>> = None;
    loop {
        let request = Request::directory_part(path, all.len());
        let Some(payload) = absent_is_none(store.request(&request))? else { return Ok(None) };
        let cut =
            payload.iter().position(|b| *b == 0).ok_or_else(|| bad_answer(&request, "no generation"))?;
        let (now, part) = (&payload[..cut], &payload[cut + 1..]);
        if generation.get_or_insert_with(|| now.to_vec()).as_slice() != now {
            return Ok(Some(Listing::Changed));
        }
        // An empty string is behind the last name.
        if let Some(last) = part.strip_suffix(b"\0").filter(|p| p.is_empty() || p.ends_with(b"\0")) {
            all.extend_from_slice(last);
            return names(&request, &all).map(|list| Some(Listing::Whole(list)));
        }
        if part.is_empty() || all.len() + part.len() > LIST_MAX {
            return Err(bad_answer(&request, "a part without names, or a list without end"));
        }
        all.extend_from_slice(part);
    }
}

/// Takes a node's value as text of at most `max` bytes, as [`Store::read_string`] does.
///
/// # Errors
/// [`StoreError::BadValue`].
pub fn parse_string(path: &dyn NodePath, value: Vec<u8>, max: usize) -> Result<String, StoreError> {
    let bad = |expected, found: &[u8]| StoreError::BadValue {
        path: path.wire().to_owned(),
        expected,
        found: printable(found),
    };
    if value.len() > max {
        return Err(bad("as short as it has to be", &value));
    }
    let text = String::from_utf8(value).map_err(|e| bad("text", e.as_bytes()))?;
    if text.chars().any(char::is_control) {
        return Err(bad("text without control characters", text.as_bytes()));
    }
    Ok(text)
}

/// Takes a node's value as a plain decimal number, as [`Store::read_number`] does.
///
/// # Errors
/// [`StoreError::BadValue`].
pub fn parse_number(path: &dyn NodePath, value: &[u8]) -> Result<u64, StoreError> {
    // `u64::from_str` would also take a leading `+`.
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok()).ok_or_else(|| {
        StoreError::BadValue {
            path: path.wire().to_owned(),
            expected: "a decimal number of 64 bits",
            found: printable(value),
        }
    })
}

/// A value for a message to people: escaped and cut.
pub(crate) fn printable(value: &[u8]) -> String {
    shown(&format!("\"{}\"", value[..value.len().min(128)].escape_ascii()))
}

/// A transaction: others see nothing of it before it is committed, and then all at once.
///
/// Given to the closure of [`Xenstore::transaction`](crate::Xenstore::transaction) and of
/// [`Connection::transaction`](crate::Connection::transaction), which commit it.
pub struct Transaction<'a> {
    io: &'a dyn RequestIo,
    id: u32,
    open: bool,
}

impl<'a> Transaction<'a> {
    fn start(io: &'a dyn RequestIo) -> Result<Self, StoreError> {
        let request = Request::transaction_start();
        let payload = io.call(&request, 0)?;
        let id = strings(&payload)
            .ok()
            .and_then(|texts| texts.first()?.parse().ok())
            .filter(|id| *id != 0)
            .ok_or_else(|| bad_answer(&request, "no transaction number"))?;
        Ok(Self { io, id, open: true })
    }

    fn end(mut self, commit: bool) -> Result<(), StoreError> {
        self.open = false;
        self.io.call(&Request::transaction_end(commit), self.id).map(drop)
    }
}

impl Store for Transaction<'_> {
    fn request(&self, request: &Request) -> Result<Vec<u8>, StoreError> {
        self.io.call(request, self.id)
    }

    fn request_all(&self, requests: &[Request]) -> Result<(), StoreError> {
        self.io.call_all(requests, self.id)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // A panic in the closure; xenstored drops what is left with the connection at the latest.
            let _ = self.io.call(&Request::transaction_end(false), self.id);
        }
    }
}

/// How often a transaction is tried at most; the time limit of the handle holds for all attempts together.
const TRANSACTION_ATTEMPTS: u32 = 100;

pub(crate) fn run_transaction<T, E: From<StoreError>>(
    io: &dyn RequestIo,
    body: &mut dyn FnMut(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + io.timeout();
    for attempt in 1..=TRANSACTION_ATTEMPTS {
        let transaction = Transaction::start(io)?;
        let value = match body(&transaction) {
            Ok(value) => value,
            Err(error) => {
                // The first error says more than a failing abort.
                let _ = transaction.end(false);
                return Err(error);
            }
        };
        match transaction.end(true) {
            Ok(()) => return Ok(value),
            Err(StoreError::Refused { code: ErrorCode::Again, .. }) => {
                if Instant::now() >= deadline {
                    return Err(StoreError::Conflict { attempts: attempt }.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Conflict { attempts: TRANSACTION_ATTEMPTS }.into())
}

/// What the answer to a request says: its payload, or the error.
pub(crate) fn answer_of(
    request: &Request,
    kind: MessageType,
    payload: Vec<u8>,
) -> Result<Vec<u8>, StoreError> {
    if kind == request.kind() {
        return Ok(payload);
    }
    if kind == MessageType::Error {
        let text = strings(&payload).ok().and_then(|texts| texts.first().copied()).unwrap_or("");
        return Err(StoreError::Refused { operation: request.operation(), code: ErrorCode::from_name(text) });
    }
    Err(bad_answer(request, format!("it is one to {kind:?}")))
}

/// The yes or no of an answer.
pub(crate) fn truth(request: &Request, payload: &[u8]) -> Result<bool, StoreError> {
    match payload.first() {
        Some(b'T') => Ok(true),
        Some(b'F') => Ok(false),
        _ => Err(bad_answer(request, "neither T nor F")),
    }
}

/// The path of an answer.
pub(crate) fn path_of(request: &Request, payload: &[u8]) -> Result<XsPath, StoreError> {
    let text = strings(payload).ok().and_then(|texts| texts.first().copied()).unwrap_or("");
    XsPath::new(text).map_err(|e| bad_answer(request, e))
}
