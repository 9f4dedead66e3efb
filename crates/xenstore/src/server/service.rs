use std::collections::{BTreeMap, VecDeque};

use xen_types::DomId;

use super::fault::Fault;
use super::tree::{Caller, Change, OWNER, READ, TRANSACTIONS_MAX, Transaction, Tree, View, WRITE};
use crate::path::{REL_PATH_MAX, SpecialWatch, XsPath};
use crate::permissions::Permissions;
use crate::wire::{ErrorCode, Message, MessageType, PAYLOAD_MAX, encode, strings};

/// Watches that an unprivileged domain may have (`-W` of xenstored); xenstored lets one more through.
const WATCHES_MAX: usize = 128;
/// Messages that wait for a client before it counts as hung and is dropped.
const OUT_MAX: usize = 65_536;

/// What the server knows of one connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) domid: DomId,
    pub(super) out: VecDeque<Vec<u8>>,
    pub(super) dropped: bool,
    watches: Vec<ClientWatch>,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
}

#[derive(Debug)]
struct ClientWatch {
    /// Absolute, or special.
    path: String,
    /// How much of an event's path the client does not want to see.
    hidden: usize,
    token: String,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) tree: Tree,
    pub(super) clients: BTreeMap<u64, Client>,
    /// The domains that are introduced, and the target of each.
    domains: BTreeMap<DomId, Option<DomId>>,
    /// Who may watch the special events.
    special: [Permissions; 2],
    pub(super) requests: BTreeMap<DomId, u64>,
    pub(super) faults: Vec<Fault>,
    pub(super) stopped: bool,
    /// Requests wait.
    pub(super) stalled: bool,
    next_client: u64,
}

/// A request with what it takes to carry it out.
struct Call<'a> {
    client: u64,
    caller: Caller,
    message: &'a Message,
    changes: Vec<Change>,
    /// Whether the new watch's first event is due.
    first_event: bool,
}

type Answer = Result<Vec<u8>, ErrorCode>;

const OK: &[u8] = b"OK\0";

impl Core {
    pub(super) fn new() -> Self {
        let dom0 = Permissions::owned_by(DomId::DOM0);
        Self {
            tree: Tree::new(),
            clients: BTreeMap::new(),
            domains: BTreeMap::from([(DomId::DOM0, None)]),
            special: [dom0.clone(), dom0],
            requests: BTreeMap::new(),
            faults: Vec::new(),
            stopped: false,
            stalled: false,
            next_client: 0,
        }
    }

    pub(super) fn add_client(&mut self, domid: DomId) -> u64 {
        let client = Client {
            domid,
            out: VecDeque::new(),
            dropped: false,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            next_transaction: 1,
        };
        self.next_client += 1;
        self.clients.insert(self.next_client, client);
        self.next_client
    }

    /// Makes a domain known, as INTRODUCE does.
    pub(super) fn introduce(&mut self, domid: DomId) {
        if self.domains.contains_key(&domid) {
            // A domain that is introduced again starts from nothing.
            for client in self.clients.values_mut().filter(|client| client.domid == domid) {
                client.watches.clear();
                client.transactions.clear();
            }
            return;
        }
        self.domains.insert(domid, None);
        self.fire_special(SpecialWatch::IntroduceDomain);
    }

    pub(super) fn is_introduced(&self, domid: DomId) -> bool {
        self.domains.contains_key(&domid)
    }

    /// Forgets a domain and all that it owned, as RELEASE and the death of a domain do.
    pub(super) fn release(&mut self, domid: DomId) {
        let changes = self.tree.remove_owned_by(domid);
        self.fire(&changes);
        for client in self.clients.values_mut().filter(|client| client.domid == domid) {
            client.dropped = true;
        }
        if self.domains.remove(&domid).is_some() {
            self.fire_special(SpecialWatch::ReleaseDomain);
        }
    }

    pub(super) fn fire_special(&mut self, special: SpecialWatch) {
        let readable_by = vec![self.special[usize::from(special == SpecialWatch::ReleaseDomain)].clone()];
        self.fire(&[Change { path: special.as_str().to_owned(), exact: true, readable_by }]);
    }

    fn caller(&self, domid: DomId) -> Caller {
        Caller { domid, target: self.domains.get(&domid).copied().flatten() }
    }

    fn fire(&mut self, changes: &[Change]) {
        let callers: BTreeMap<u64, Caller> =
            self.clients.iter().map(|(id, client)| (*id, self.caller(client.domid))).collect();
        for change in changes {
            for (id, client) in &mut self.clients {
                let can_read = |p| callers.get(id).is_some_and(|caller| caller.rights(p) & READ != 0);
                if change.readable_by.iter().any(can_read) {
                    client.tell(change);
                }
            }
        }
    }

    /// Carries out a request and queues its answer and the events that it causes.
    pub(super) fn handle(&mut self, client: u64, message: &Message) {
        let Some(domid) = self.clients.get(&client).map(|client| client.domid) else { return };
        let count = self.requests.entry(domid).or_default();
        *count += 1;
        let fault = self.faults.iter().position(|fault| (fault.domid, fault.at) == (domid, *count));
        let fault = fault.map(|at| self.faults.remove(at));
        let caller = self.caller(domid);
        let mut call = Call { client, caller, message, changes: Vec::new(), first_event: false };
        let answer = match fault {
            Some(Fault { code: None, .. }) => {
                self.clients.entry(client).and_modify(|client| client.dropped = true);
                return;
            }
            Some(Fault { code: Some(code), .. }) => Err(code),
            None => self.answer(&mut call),
        };
        let Call { changes, first_event, .. } = call;
        self.fire(&changes);
        let Some(client) = self.clients.get_mut(&client) else { return };
        client.reply(message, answer);
        if first_event {
            client.first_event();
        }
    }

    fn answer(&mut self, call: &mut Call<'_>) -> Answer {
        let kind = call.message.kind;
        let privileged = matches!(
            kind,
            MessageType::Control
                | MessageType::Introduce
                | MessageType::Release
                | MessageType::IsDomainIntroduced
                | MessageType::Resume
                | MessageType::SetTarget
        );
        if privileged && !call.caller.is_privileged() {
            return Err(ErrorCode::Access);
        }
        match kind {
            MessageType::Watch => self.watch(call),
            MessageType::Unwatch => self.unwatch(call),
            _ => self.answer_in_transaction(call),
        }
    }

    /// The requests whose transaction number counts.
    fn answer_in_transaction(&mut self, call: &mut Call<'_>) -> Answer {
        let tx_id = call.message.tx_id;
        let client = self.clients.get_mut(&call.client).ok_or(ErrorCode::Io)?;
        let mut transaction = match tx_id {
            0 => None,
            id => Some(client.transactions.remove(&id).ok_or(ErrorCode::NoEntry)?),
        };
        match call.message.kind {
            MessageType::TransactionEnd => return self.transaction_end(call, transaction),
            MessageType::TransactionStart if transaction.is_none() => return self.transaction_start(call),
            _ => {}
        }
        let answer = match call.message.kind {
            MessageType::TransactionStart => Err(ErrorCode::Busy),
            MessageType::Introduce
            | MessageType::Release
            | MessageType::Resume
            | MessageType::SetTarget
            | MessageType::GetDomainPath
            | MessageType::IsDomainIntroduced
            | MessageType::ResetWatches
            | MessageType::Control => self.domain_request(call),
            _ => self.node_request(call, transaction.as_mut()),
        };
        if let (Some(transaction), Some(client)) = (transaction, self.clients.get_mut(&call.client)) {
            client.transactions.insert(tx_id, transaction);
        }
        answer
    }

    fn transaction_start(&mut self, call: &Call<'_>) -> Answer {
        let domid = call.caller.domid;
        let client = self.clients.get_mut(&call.client).ok_or(ErrorCode::Io)?;
        if domid != DomId::DOM0 && client.transactions.len() > TRANSACTIONS_MAX {
            return Err(ErrorCode::NoSpace);
        }
        let id = client.next_transaction;
        client.next_transaction += 1;
        client.transactions.insert(id, Transaction::default());
        Ok(format!("{id}\0").into_bytes())
    }

    fn transaction_end(&mut self, call: &mut Call<'_>, transaction: Option<Transaction>) -> Answer {
        let commit = match call.message.payload.as_slice() {
            b"T\0" => true,
            b"F\0" => false,
            _ => return Err(ErrorCode::Invalid),
        };
        let transaction = transaction.ok_or(ErrorCode::NoEntry)?;
        if commit {
            call.changes = self.tree.commit(transaction, call.caller)?;
        }
        Ok(OK.to_owned())
    }

    fn node_request(&mut self, call: &mut Call<'_>, transaction: Option<&mut Transaction>) -> Answer {
        let payload = &call.message.payload;
        let caller = call.caller;
        let kind = call.message.kind;
        if kind == MessageType::SetPerms && payload.first() == Some(&b'@') {
            return self.set_special_perms(call);
        }
        let mut view = View { tree: &mut self.tree, transaction, caller, changes: &mut call.changes };
        match kind {
            MessageType::Read => view.get(&only_path(payload, caller)?, READ).map(|node| node.value),
            MessageType::Directory => {
                view.get(&only_path(payload, caller)?, READ).map(|node| node.child_list())
            }
            MessageType::GetPerms => {
                let node = view.get(&only_path(payload, caller)?, READ)?;
                let texts = node.permissions.to_strings();
                Ok(texts.iter().flat_map(|text| text.bytes().chain([0])).collect())
            }
            MessageType::Mkdir => view.mkdir(&only_path(payload, caller)?).map(|()| OK.to_owned()),
            MessageType::Rm => view.rm(&only_path(payload, caller)?).map(|()| OK.to_owned()),
            MessageType::Write => {
                let cut = payload.iter().position(|b| *b == 0).ok_or(ErrorCode::Invalid)?;
                let path = absolute(text(&payload[..cut])?, caller);
                view.write(&path, &payload[cut + 1..]).map(|()| OK.to_owned())
            }
            MessageType::SetPerms => {
                let (path, permissions) = path_and_perms(payload)?;
                view.set_perms(&absolute(path, caller), permissions).map(|()| OK.to_owned())
            }
            MessageType::DirectoryPart => directory_part(&mut view, payload),
            _ => Err(ErrorCode::NotImplemented),
        }
    }

    fn set_special_perms(&mut self, call: &Call<'_>) -> Answer {
        let (name, permissions) = path_and_perms(&call.message.payload)?;
        let of = match name {
            "@introduceDomain" => &mut self.special[0],
            "@releaseDomain" => &mut self.special[1],
            _ => return Err(ErrorCode::Invalid),
        };
        if call.caller.rights(of) & (WRITE | OWNER) != WRITE | OWNER {
            return Err(ErrorCode::Access);
        }
        *of = permissions;
        Ok(OK.to_owned())
    }

    fn domain_request(&mut self, call: &Call<'_>) -> Answer {
        let fields = strings(&call.message.payload).map_err(|_| ErrorCode::Invalid)?;
        let domid = |at: usize| -> Result<DomId, ErrorCode> {
            fields.get(at).and_then(|field: &&str| field.parse().ok()).ok_or(ErrorCode::Invalid)
        };
        match call.message.kind {
            MessageType::GetDomainPath => {
                return Ok(format!("{}\0", XsPath::domain(domid(0)?)).into_bytes());
            }
            MessageType::IsDomainIntroduced => {
                let known = self.is_introduced(domid(0)?);
                return Ok(if known { b"T\0" } else { b"F\0" }.to_vec());
            }
            MessageType::Introduce => {
                let port: u32 = fields.get(2).and_then(|field| field.parse().ok()).unwrap_or(0);
                if port == 0 {
                    return Err(ErrorCode::Invalid);
                }
                self.introduce(domid(0)?);
            }
            MessageType::Release | MessageType::Resume => {
                let domid = domid(0)?;
                if domid == DomId::DOM0 {
                    return Err(ErrorCode::Invalid);
                }
                if !self.is_introduced(domid) {
                    return Err(ErrorCode::NoEntry);
                }
                if call.message.kind == MessageType::Release {
                    self.release(domid);
                }
            }
            MessageType::SetTarget => {
                let (domid, target) = (domid(0)?, domid(1)?);
                if !self.is_introduced(domid) || !self.is_introduced(target) {
                    return Err(ErrorCode::NoEntry);
                }
                self.domains.insert(domid, Some(target));
            }
            MessageType::ResetWatches => {
                let client = self.clients.get_mut(&call.client).ok_or(ErrorCode::Io)?;
                client.watches.clear();
                client.transactions.clear();
            }
            _ => return Err(ErrorCode::Invalid),
        }
        Ok(OK.to_owned())
    }

    fn watch(&mut self, call: &mut Call<'_>) -> Answer {
        let watch = ClientWatch::parse(call)?;
        let unprivileged = !call.caller.is_privileged();
        let client = self.clients.get_mut(&call.client).ok_or(ErrorCode::Io)?;
        if client.watches.iter().any(|known| known.is(&watch)) {
            return Err(ErrorCode::Exists);
        }
        if unprivileged && client.watches.len() > WATCHES_MAX {
            return Err(ErrorCode::TooBig);
        }
        client.watches.push(watch);
        call.first_event = true;
        Ok(OK.to_owned())
    }

    fn unwatch(&mut self, call: &Call<'_>) -> Answer {
        let watch = ClientWatch::parse(call)?;
        let client = self.clients.get_mut(&call.client).ok_or(ErrorCode::Io)?;
        let at = client.watches.iter().position(|known| known.is(&watch)).ok_or(ErrorCode::NoEntry)?;
        client.watches.remove(at);
        Ok(OK.to_owned())
    }
}

impl ClientWatch {
    fn parse(call: &Call<'_>) -> Result<Self, ErrorCode> {
        let fields = strings(&call.message.payload).map_err(|_| ErrorCode::Invalid)?;
        let [given, token] = fields.as_slice() else { return Err(ErrorCode::Invalid) };
        let path = absolute(given, call.caller);
        let valid = if path.starts_with('@') {
            path.len() <= REL_PATH_MAX
        } else {
            XsPath::new(path.as_str()).is_ok()
        };
        if !valid {
            return Err(ErrorCode::Invalid);
        }
        Ok(Self { hidden: path.len() - given.len(), path, token: (*token).to_owned() })
    }

    fn is(&self, other: &Self) -> bool {
        (&self.path, &self.token) == (&other.path, &other.token)
    }

    fn is_at_or_above(&self, path: &str) -> bool {
        self.path == "/"
            || path
                .strip_prefix(self.path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Client {
    fn send(&mut self, kind: MessageType, req_id: u32, tx_id: u32, payload: &[u8]) {
        if self.out.len() >= OUT_MAX {
            self.dropped = true;
        } else if let Ok(bytes) = encode(kind, req_id, tx_id, payload) {
            self.out.push_back(bytes);
        }
    }

    fn reply(&mut self, request: &Message, answer: Answer) {
        let answer =
            answer.and_then(
                |payload| {
                    if payload.len() > PAYLOAD_MAX { Err(ErrorCode::TooBig) } else { Ok(payload) }
                },
            );
        match answer {
            Ok(payload) => self.send(request.kind, request.req_id, request.tx_id, &payload),
            Err(code) => {
                let payload = format!("{code}\0");
                self.send(MessageType::Error, request.req_id, request.tx_id, payload.as_bytes());
            }
        }
    }

    fn tell(&mut self, change: &Change) {
        let matching = |watch: &&ClientWatch| {
            if change.exact { watch.path == change.path } else { watch.is_at_or_above(&change.path) }
        };
        let event = |watch: &ClientWatch| format!("{}\0{}\0", &change.path[watch.hidden..], watch.token);
        let events: Vec<String> = self.watches.iter().filter(matching).map(event).collect();
        for event in events {
            self.event(&event);
        }
    }

    fn first_event(&mut self) {
        if let Some(watch) = self.watches.last() {
            let event = format!("{}\0{}\0", &watch.path[watch.hidden..], watch.token);
            self.event(&event);
        }
    }

    fn event(&mut self, payload: &str) {
        let Ok(bytes) = encode(MessageType::WatchEvent, 0, 0, payload.as_bytes()) else { return };
        // The same event is not queued twice, but for the special ones.
        if payload.starts_with('@') || !self.out.contains(&bytes) {
            self.send(MessageType::WatchEvent, 0, 0, payload.as_bytes());
        }
    }
}

/// The path as an absolute one, or the name of a special event.
fn absolute(path: &str, caller: Caller) -> String {
    if path.starts_with(['/', '@']) {
        path.to_owned()
    } else {
        format!("{}/{path}", XsPath::domain(caller.domid))
    }
}

fn text(bytes: &[u8]) -> Result<&str, ErrorCode> {
    core::str::from_utf8(bytes).map_err(|_| ErrorCode::Invalid)
}

/// The path of a request that is nothing but a path and one NUL byte.
fn only_path(payload: &[u8], caller: Caller) -> Result<String, ErrorCode> {
    let path = payload.strip_suffix(b"\0").ok_or(ErrorCode::Invalid)?;
    if path.contains(&0) {
        return Err(ErrorCode::Invalid);
    }
    Ok(absolute(text(path)?, caller))
}

fn path_and_perms(payload: &[u8]) -> Result<(&str, Permissions), ErrorCode> {
    let fields = strings(payload).map_err(|_| ErrorCode::Invalid)?;
    let [path, permissions @ ..] = fields.as_slice() else { return Err(ErrorCode::Invalid) };
    let permissions =
        Permissions::from_strings(permissions.iter().copied()).map_err(|_| ErrorCode::Invalid)?;
    Ok((path, permissions))
}

fn directory_part(view: &mut View<'_>, payload: &[u8]) -> Answer {
    let fields = strings(payload).map_err(|_| ErrorCode::Invalid)?;
    let [path, offset] = fields.as_slice() else { return Err(ErrorCode::Invalid) };
    let node = view.get(&absolute(path, view.caller), READ)?;
    let offset: usize = offset.parse().map_err(|_| ErrorCode::Invalid)?;
    let list = node.child_list();
    let mut answer = format!("{}\0", node.generation).into_bytes();
    let room = PAYLOAD_MAX - answer.len() - 1;
    let rest = list.get(offset..).unwrap_or(&[]);
    let mut end = 0;
    for name in rest.split_inclusive(|b| *b == 0) {
        if end + name.len() > room {
            break;
        }
        end += name.len();
    }
    answer.extend_from_slice(&rest[..end]);
    if end == rest.len() {
        answer.push(0);
    }
    Ok(answer)
}
