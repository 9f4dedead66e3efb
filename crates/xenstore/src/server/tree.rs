use std::collections::{BTreeMap, HashMap};

use xen_types::DomId;

use crate::path::XsPath;
use crate::permissions::{Access, Permissions};
use crate::wire::ErrorCode;

/// Nodes that an unprivileged domain may own (`-E` of xenstored).
pub(super) const NODES_MAX: usize = 1000;
/// Transactions that an unprivileged domain may have open (`-t`); xenstored lets one more through.
pub(super) const TRANSACTIONS_MAX: usize = 10;
/// Bytes of one node with its permissions and its children's names from which on it is too large (`-S`).
const NODE_SIZE_MAX: usize = 2048;
/// Entries that an unprivileged domain may give a node (`-A`).
const PERMS_MAX: usize = 5;
/// Nodes that a transaction of an unprivileged domain may touch (`-Q transaction-nodes`).
const TRANSACTION_NODES_MAX: usize = 1024;

pub(super) const READ: u8 = 1;
pub(super) const WRITE: u8 = 2;
pub(super) const OWNER: u8 = 4;

/// On whose behalf a request is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) domid: DomId,
    /// The domain whose rights it has too.
    pub(super) target: Option<DomId>,
}

impl Caller {
    pub(super) const DOM0: Self = Self { domid: DomId::DOM0, target: None };

    pub(super) fn is_privileged(self) -> bool {
        self.domid == DomId::DOM0
    }

    /// What permissions give this caller.
    pub(super) fn rights(self, permissions: &Permissions) -> u8 {
        let is_me = |domid: DomId| domid == self.domid || Some(domid) == self.target;
        if self.is_privileged() || is_me(permissions.owner()) {
            return READ | WRITE | OWNER;
        }
        let entry = permissions.entries().iter().find(|(domid, _)| is_me(*domid));
        bits(entry.map_or(permissions.default_access(), |(_, access)| *access))
    }
}

fn bits(access: Access) -> u8 {
    (u8::from(access.can_read()) * READ) | (u8::from(access.can_write()) * WRITE)
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Permissions,
    /// Names of the children in the order in which they were made.
    pub(super) children: Vec<String>,
    pub(super) generation: u64,
}

impl Node {
    pub(super) fn new(permissions: Permissions) -> Self {
        Self { value: Vec::new(), permissions, children: Vec::new(), generation: 0 }
    }

    /// The children's names as they go over the wire.
    pub(super) fn child_list(&self) -> Vec<u8> {
        self.children.iter().flat_map(|name| name.bytes().chain([0])).collect()
    }

    /// Bytes of the record in xenstored's store: header, 8 for each permission, value, names.
    fn size(&self) -> usize {
        let permissions = 1 + self.permissions.entries().len();
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        24 + 8 * permissions + self.value.len() + names
    }
}

/// A change that watches are told of.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: String,
    /// Only watches on this very node are told: a node above it went, and those above that are told of that.
    pub(super) exact: bool,
    /// Who can read by one of these is told: those of the node, of its parent, and those before the change.
    pub(super) readable_by: Vec<Permissions>,
}

/// One node as a transaction sees it.
#[derive(Debug)]
struct Touched {
    /// The generation outside when the transaction read it (nothing: no node); unset when it was not read.
    seen: Option<Option<u64>>,
    node: Option<Node>,
    modified: bool,
    /// Watches are to be told at the commit; whether only those on this very node.
    tell: Option<bool>,
    old_permissions: Option<Permissions>,
}

#[derive(Debug, Default)]
pub(super) struct Transaction {
    touched: HashMap<String, Touched>,
    order: Vec<String>,
    created: bool,
    failed: bool,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    generation: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let dom0 = Permissions::owned_by(DomId::DOM0);
        let node = |children: &[&str]| Node {
            children: children.iter().map(|name| (*name).to_owned()).collect(),
            ..Node::new(dom0.clone())
        };
        let nodes = [("/", node(&["tool"])), ("/tool", node(&["xenstored"])), ("/tool/xenstored", node(&[]))];
        Self { nodes: nodes.map(|(path, node)| (path.to_owned(), node)).into(), generation: 1 }
    }

    pub(super) fn dump(&self) -> BTreeMap<String, (Vec<u8>, Permissions)> {
        let node =
            |(path, node): (&String, &Node)| (path.clone(), (node.value.clone(), node.permissions.clone()));
        self.nodes.iter().map(node).collect()
    }

    /// Everything that a domain owned goes with it, and what is below.
    pub(super) fn remove_owned_by(&mut self, domid: DomId) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            let owned = self
                .nodes
                .iter()
                .find(|(path, node)| node.permissions.owner() == domid && path.as_str() != "/");
            let Some(path) = owned.map(|(path, _)| path.clone()) else { return changes };
            let mut view =
                View { tree: self, transaction: None, caller: Caller::DOM0, changes: &mut changes };
            if view.remove(&path).is_err() {
                return changes;
            }
        }
    }

    /// Commits a transaction: all or nothing.
    pub(super) fn commit(
        &mut self,
        transaction: Transaction,
        caller: Caller,
    ) -> Result<Vec<Change>, ErrorCode> {
        if transaction.failed {
            return Err(ErrorCode::NoMemory);
        }
        if transaction.created && !caller.is_privileged() {
            let mut none = Vec::new();
            let mut transaction = transaction;
            let view = View { tree: self, transaction: Some(&mut transaction), caller, changes: &mut none };
            if view.owned() > NODES_MAX {
                return Err(ErrorCode::NoSpace);
            }
            return self.finalize(transaction);
        }
        self.finalize(transaction)
    }

    fn finalize(&mut self, mut transaction: Transaction) -> Result<Vec<Change>, ErrorCode> {
        let unchanged = |(path, touched): (&String, &Touched)| {
            touched.seen.is_none_or(|seen| seen == self.nodes.get(path).map(|node| node.generation))
        };
        if !transaction.touched.iter().all(unchanged) {
            return Err(ErrorCode::Again);
        }
        let mut tell = Vec::new();
        for path in transaction.order {
            let Some(touched) = transaction.touched.remove(&path) else { continue };
            if touched.modified {
                match touched.node {
                    Some(mut node) => {
                        self.generation += 1;
                        node.generation = self.generation;
                        self.nodes.insert(path.clone(), node);
                    }
                    None => drop(self.nodes.remove(&path)),
                }
            }
            if let Some(exact) = touched.tell {
                tell.push((path, exact, touched.old_permissions));
            }
        }
        let change = |(path, exact, old): (String, bool, Option<Permissions>)| {
            let mut readable_by: Vec<_> = old.into_iter().collect();
            readable_by.extend(self.nodes.get(&path).map(|node| node.permissions.clone()));
            readable_by.extend(self.nodes.get(&parent_of(&path)).map(|node| node.permissions.clone()));
            Change { path, exact, readable_by }
        };
        Ok(tell.into_iter().map(change).collect())
    }
}

fn parent_of(path: &str) -> String {
    match path.rfind('/') {
        Some(0) | None => "/".to_owned(),
        Some(cut) => path[..cut].to_owned(),
    }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The tree as one request of one caller sees and changes it.
pub(super) struct View<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) transaction: Option<&'a mut Transaction>,
    pub(super) caller: Caller,
    pub(super) changes: &'a mut Vec<Change>,
}

impl View<'_> {
    /// Reads a node, and notes in a transaction that it was read.
    fn read(&mut self, path: &str) -> Option<Node> {
        let outside = self.tree.nodes.get(path);
        let Some(transaction) = self.transaction.as_deref_mut() else { return outside.cloned() };
        if let Some(touched) = transaction.touched.get(path) {
            return touched.node.clone();
        }
        let touched = Touched {
            seen: Some(outside.map(|node| node.generation)),
            node: outside.cloned(),
            modified: false,
            tell: None,
            old_permissions: outside.map(|node| node.permissions.clone()),
        };
        if transaction.touched.len() >= TRANSACTION_NODES_MAX && !self.caller.is_privileged() {
            transaction.failed = true;
        }
        transaction.touched.insert(path.to_owned(), touched);
        transaction.order.push(path.to_owned());
        outside.cloned()
    }

    /// Writes a node, or removes it. Everything that is written was read before.
    fn put(&mut self, path: &str, node: Option<Node>) {
        self.tree.generation += 1;
        let generation = self.tree.generation;
        let node = node.map(|node| Node { generation, ..node });
        if let Some(transaction) = self.transaction.as_deref_mut() {
            if let Some(touched) = transaction.touched.get_mut(path) {
                touched.node = node;
                touched.modified = true;
            }
        } else if let Some(node) = node {
            self.tree.nodes.insert(path.to_owned(), node);
        } else {
            self.tree.nodes.remove(path);
        }
    }

    fn put_checked(&mut self, path: &str, node: Node) -> Result<(), ErrorCode> {
        if !self.caller.is_privileged() && node.size() >= NODE_SIZE_MAX {
            if let Some(transaction) = self.transaction.as_deref_mut() {
                transaction.failed = true;
            }
            return Err(ErrorCode::NoSpace);
        }
        self.put(path, Some(node));
        Ok(())
    }

    fn tell(&mut self, path: &str, exact: bool, extra: Option<Permissions>) {
        if let Some(transaction) = self.transaction.as_deref_mut() {
            if let Some(touched) = transaction.touched.get_mut(path) {
                // An event for all watches is more than one for those on the node itself.
                touched.tell = Some(touched.tell.unwrap_or(true) && exact);
            }
            return;
        }
        let mut readable_by: Vec<_> = extra.into_iter().collect();
        for near in [path, &parent_of(path)] {
            readable_by.extend(self.tree.nodes.get(near).map(|node| node.permissions.clone()));
        }
        self.changes.push(Change { path: path.to_owned(), exact, readable_by });
    }

    /// How many nodes the caller owns.
    fn owned(&self) -> usize {
        let mine = |node: &Node| node.permissions.owner() == self.caller.domid;
        let touched = self.transaction.as_deref().map(|transaction| &transaction.touched);
        let outside =
            self.tree.nodes.iter().filter(|(path, node)| {
                mine(node) && touched.is_none_or(|touched| !touched.contains_key(*path))
            });
        let inside = touched.into_iter().flatten().filter_map(|(_, t)| t.node.as_ref()).filter(|n| mine(n));
        outside.count() + inside.count()
    }

    /// The node at `path`, when the caller has all of `need` there.
    pub(super) fn get(&mut self, path: &str, need: u8) -> Result<Node, ErrorCode> {
        if XsPath::new(path).is_err() {
            return Err(ErrorCode::Invalid);
        }
        let code = match self.read(path) {
            Some(node) if self.caller.rights(&node.permissions) & need == need => return Ok(node),
            Some(_) => ErrorCode::Access,
            None => ErrorCode::NoEntry,
        };
        // Only who may do the same above learns what is there.
        let mut above = path.to_owned();
        while above != "/" {
            above = parent_of(&above);
            if let Some(node) = self.read(&above) {
                let knows = self.caller.rights(&node.permissions) & need != 0;
                return Err(if knows { code } else { ErrorCode::Access });
            }
        }
        Err(ErrorCode::Access)
    }

    pub(super) fn write(&mut self, path: &str, value: &[u8]) -> Result<(), ErrorCode> {
        match self.get(path, WRITE) {
            Ok(node) => self.put_checked(path, Node { value: value.to_owned(), ..node })?,
            Err(ErrorCode::NoEntry) => self.create(path, value)?,
            Err(code) => return Err(code),
        }
        self.tell(path, false, None);
        Ok(())
    }

    pub(super) fn mkdir(&mut self, path: &str) -> Result<(), ErrorCode> {
        match self.get(path, WRITE) {
            Err(ErrorCode::NoEntry) => {
                self.create(path, b"")?;
                self.tell(path, false, None);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Makes a node and what is missing above it, all with the permissions of the nearest that is there.
    fn create(&mut self, path: &str, value: &[u8]) -> Result<(), ErrorCode> {
        let mut missing = vec![path.to_owned()];
        let (above, mut parent) = loop {
            let above = parent_of(missing.last().map_or(path, String::as_str));
            match self.read(&above) {
                Some(node) => break (above, node),
                None if above == "/" => return Err(ErrorCode::NoEntry),
                None => missing.push(above),
            }
        };
        let mut permissions = parent.permissions.clone();
        if !self.caller.is_privileged() {
            permissions = with_owner(&permissions, self.caller.domid);
            if self.owned() + missing.len() > NODES_MAX {
                return Err(ErrorCode::NoSpace);
            }
        }
        if let Some(transaction) = self.transaction.as_deref_mut() {
            transaction.created = true;
        }
        parent.children.push(name_of(missing.last().map_or(path, String::as_str)).to_owned());
        let mut made = vec![(above, parent)];
        for (at, new) in missing.iter().enumerate().rev() {
            let mut node = Node::new(permissions.clone());
            match at.checked_sub(1).and_then(|below| missing.get(below)) {
                Some(below) => node.children.push(name_of(below).to_owned()),
                None => value.clone_into(&mut node.value),
            }
            made.push((new.clone(), node));
        }
        if !self.caller.is_privileged() && made.iter().any(|(_, node)| node.size() >= NODE_SIZE_MAX) {
            return Err(ErrorCode::NoSpace);
        }
        for (path, node) in made {
            self.put(&path, Some(node));
        }
        Ok(())
    }

    pub(super) fn rm(&mut self, path: &str) -> Result<(), ErrorCode> {
        match self.get(path, WRITE) {
            Ok(_) if path == "/" => Err(ErrorCode::Invalid),
            Ok(_) => self.remove(path),
            Err(ErrorCode::NoEntry) if self.read(&parent_of(path)).is_some() => Ok(()),
            Err(code) => Err(code),
        }
    }

    /// Removes a node that is there and all below it, the lowest first.
    fn remove(&mut self, path: &str) -> Result<(), ErrorCode> {
        let above = parent_of(path);
        let mut parent = self.read(&above).ok_or(ErrorCode::Invalid)?;
        let mut walk = vec![(path.to_owned(), false)];
        while let Some((at, children_done)) = walk.pop() {
            let Some(node) = self.read(&at) else { continue };
            if !children_done {
                walk.push((at.clone(), true));
                walk.extend(node.children.iter().rev().map(|name| (format!("{at}/{name}"), false)));
                continue;
            }
            // Told while the permissions are there to be seen.
            self.tell(&at, at != path, None);
            self.put(&at, None);
        }
        parent.children.retain(|name| name != name_of(path));
        self.put(&above, Some(parent));
        Ok(())
    }

    pub(super) fn set_perms(&mut self, path: &str, permissions: Permissions) -> Result<(), ErrorCode> {
        if !self.caller.is_privileged() && permissions.entries().len() >= PERMS_MAX {
            return Err(ErrorCode::NoSpace);
        }
        let node = self.get(path, WRITE | OWNER)?;
        if !self.caller.is_privileged() && permissions.owner() != node.permissions.owner() {
            return Err(ErrorCode::Permission);
        }
        let old = node.permissions.clone();
        self.put_checked(path, Node { permissions, ..node })?;
        self.tell(path, false, Some(old));
        Ok(())
    }
}

fn with_owner(permissions: &Permissions, owner: DomId) -> Permissions {
    let mut new = Permissions::owned_by(owner).others(permissions.default_access());
    for (domid, access) in permissions.entries() {
        new = new.allow(*domid, *access);
    }
    new
}
