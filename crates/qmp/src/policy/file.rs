//! The policy file: TOML, written by root.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;

use super::pattern::Pattern;
use super::{Policy, Role};

/// Why a policy file cannot be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It is not TOML, or not of a policy's structure.
    #[error("The policy file cannot be read")]
    Form(#[source] Box<toml::de::Error>),
    /// A role inherits from one that does not exist, or is not above it in the file.
    #[error("The role {role} inherits from {from}, which is not defined before it")]
    Inherits {
        /// The role.
        role: String,
        /// What it names.
        from: String,
    },
    /// A role has the name of one that is built in.
    #[error("The role {0} is built in; use another name")]
    BuiltIn(String),
    /// A peer is neither a number nor `@` and a number.
    #[error("\"{0}\" is neither a user ID nor @ and a group ID")]
    Peer(String),
    /// A peer has a role that does not exist.
    #[error("The peer \"{peer}\" has the role {role}, which does not exist")]
    Role {
        /// The peer.
        peer: String,
        /// The role.
        role: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    group: Option<String>,
    #[serde(default)]
    role: BTreeMap<String, RoleTable>,
    #[serde(default)]
    peers: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct RoleTable {
    inherits: Option<String>,
    commands: Vec<String>,
    deny: Vec<String>,
    events: Option<Vec<String>>,
    arguments: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    answers: BTreeMap<String, Vec<String>>,
}

impl Policy {
    /// Reads a policy file; what is built in is there as well.
    ///
    /// # Errors
    /// Any [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text).map_err(|error| PolicyError::Form(Box::new(error)))?;
        let mut policy = Self { socket_group: file.group, ..Self::default() };
        let mut left: Vec<_> = file.role.into_iter().collect();
        for (name, _) in &left {
            if policy.roles.contains_key(name) {
                return Err(PolicyError::BuiltIn(name.clone()));
            }
        }
        // Each round makes the roles whose parents are made; without one, a parent is missing or its own child.
        while !left.is_empty() {
            let (ready, wait): (Vec<_>, Vec<_>) = left.into_iter().partition(|(_, table)| {
                table.inherits.as_ref().is_none_or(|from| policy.roles.contains_key(from))
            });
            if ready.is_empty() {
                let (role, from) = wait
                    .into_iter()
                    .find_map(|(name, table)| Some((name, table.inherits?)))
                    .unwrap_or_default();
                return Err(PolicyError::Inherits { role, from });
            }
            for (name, table) in ready {
                let parent = table.inherits.as_ref().and_then(|from| policy.role(from));
                policy.roles.insert(name.clone(), Arc::new(role(name, table, parent.as_deref())));
            }
            left = wait;
        }
        for (peer, roles) in file.peers {
            policy.add_peer(&peer, roles)?;
        }
        Ok(policy)
    }

    fn add_peer(&mut self, peer: &str, roles: Vec<String>) -> Result<(), PolicyError> {
        if let Some(role) = roles.iter().find(|role| !self.roles.contains_key(*role)) {
            return Err(PolicyError::Role { peer: peer.to_owned(), role: role.clone() });
        }
        let (table, number) = match peer.strip_prefix('@') {
            Some(group) => (&mut self.groups, group),
            None => (&mut self.users, peer),
        };
        let number = number.parse().map_err(|_| PolicyError::Peer(peer.to_owned()))?;
        table.insert(number, roles);
        Ok(())
    }
}

fn role(name: String, table: RoleTable, parent: Option<&Role>) -> Role {
    let patterns = |texts: Vec<String>| texts.iter().map(|text| Pattern::new(text)).collect::<Vec<_>>();
    let mut role = match parent {
        Some(parent) => Role { name, ..parent.clone() },
        None => Role {
            name,
            commands: Vec::new(),
            deny: Vec::new(),
            arguments: BTreeMap::new(),
            answers: BTreeMap::new(),
            events: Vec::new(),
            toolstack: false,
        },
    };
    role.commands.extend(patterns(table.commands));
    role.deny.extend(patterns(table.deny));
    if let Some(events) = table.events {
        role.events = patterns(events);
    }
    for (command, arguments) in table.arguments {
        let rules = arguments.into_iter().map(|(argument, values)| (argument, patterns(values))).collect();
        role.arguments.insert(command, rules);
    }
    for (command, members) in table.answers {
        role.answers.insert(command, members.into_iter().collect());
    }
    role
}
