//! Which client may send which command, and receive which answers and events.
//!
//! A [`Role`] allows commands by pattern, their arguments by name and value, members of answers, and events. Three are
//! built in, each with all that the one before it has: `observer` looks, `operator` presses the buttons of a machine,
//! `admin` does all that does not break the toolstack's bookkeeping. Commands that do ([`is_for_toolstack`]), and those that
//! are not in the lists ([`Class`]), are for a client that has said `unsafe` alone. A file adds roles and says which of them a local user may take.

mod commands;
mod file;
mod pattern;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

pub use commands::Class;
pub use file::PolicyError;
use pattern::Pattern;

/// Whether a command is for the toolstack alone: it is classified so, or not at all.
#[must_use]
pub fn is_for_toolstack(command: &str) -> bool {
    Class::of(command).is_none_or(|class| class == Class::Toolstack)
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The role does not allow the command.
    #[error("the role {role} does not allow {command}")]
    Command {
        /// The role.
        role: String,
        /// The command.
        command: String,
    },
    /// The command is for the toolstack alone.
    #[error(
        "{command} would invalidate the toolstack's records; use the toolstack's own command, or --unsafe"
    )]
    Toolstack {
        /// The command.
        command: String,
    },
    /// The command is unknown, so that it is not known either what it would do.
    #[error("{command} is no command that Outrigger knows; check its spelling, or use --unsafe")]
    Unknown {
        /// The command.
        command: String,
    },
    /// The role does not allow the argument.
    #[error("the role {role} does not allow this {argument} of {command}")]
    Argument {
        /// The role.
        role: String,
        /// The command.
        command: String,
        /// The argument's name.
        argument: String,
    },
}

/// What one kind of client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    name: String,
    commands: Vec<Pattern>,
    deny: Vec<Pattern>,
    /// Values that arguments may have, by command and argument; a command that is named here takes no others.
    arguments: BTreeMap<String, BTreeMap<String, Vec<Pattern>>>,
    /// Members that may pass, by command.
    answers: BTreeMap<String, BTreeSet<String>>,
    events: Vec<Pattern>,
    toolstack: bool,
}

impl Role {
    fn built_in(name: &str, class: Class) -> Self {
        let classes =
            [Class::Observer, Class::Operator, Class::Admin].into_iter().filter(|each| *each <= class);
        let rules = |rules: &[(&str, &[&str])]| -> BTreeMap<String, Vec<Pattern>> {
            let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text)).collect();
            rules.iter().map(|(argument, texts)| ((*argument).to_owned(), patterns(texts))).collect()
        };
        let files = ["/dev/fdset/*", "/tmp/*"];
        let screendump = [("filename", &files[..]), ("format", &["*"]), ("device", &["*"]), ("head", &["*"])];
        let mut arguments = BTreeMap::from([("screendump".to_owned(), rules(&screendump))]);
        if class < Class::Admin {
            // Objects beside the machine may be secrets.
            let get = [("path", &["/machine", "/machine/*"][..]), ("property", &["*"])];
            arguments.insert("qom-get".to_owned(), rules(&get));
        }
        Self {
            name: name.to_owned(),
            commands: classes.flat_map(Class::commands).map(|text| Pattern::new(text)).collect(),
            deny: Vec::new(),
            arguments,
            answers: BTreeMap::new(),
            events: vec![Pattern::new("*")],
            toolstack: false,
        }
    }

    /// Looks, and changes nothing.
    #[must_use]
    pub fn observer() -> Self {
        Self::built_in("observer", Class::Observer)
    }

    /// Presses the machine's buttons.
    #[must_use]
    pub fn operator() -> Self {
        Self::built_in("operator", Class::Operator)
    }

    /// All that the toolstack's records survive.
    #[must_use]
    pub fn admin() -> Self {
        Self::built_in("admin", Class::Admin)
    }

    /// The same, with what is for the toolstack alone: the client has said that it knows.
    #[must_use]
    pub fn with_toolstack(mut self) -> Self {
        self.toolstack = true;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a request may pass; `arguments` as they are written.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self, command: &str, arguments: Option<&str>) -> Result<(), Denied> {
        let named = || command.chars().take(64).collect::<String>();
        let reserved = is_for_toolstack(command);
        if reserved && !self.toolstack {
            return Err(match Class::of(command) {
                Some(_) => Denied::Toolstack { command: named() },
                None => Denied::Unknown { command: named() },
            });
        }
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(command));
        if !(reserved || any(&self.commands)) || any(&self.deny) {
            return Err(Denied::Command { role: self.name.clone(), command: named() });
        }
        let (Some(rules), Some(arguments)) = (self.arguments.get(command), arguments) else { return Ok(()) };
        let denied = |argument: &str| Denied::Argument {
            role: self.name.clone(),
            command: named(),
            argument: argument.chars().take(64).collect(),
        };
        let values: BTreeMap<String, Value> =
            serde_json::from_str(arguments).map_err(|_| denied("arguments"))?;
        for (argument, value) in &values {
            let allowed = rules.get(argument).ok_or_else(|| denied(argument))?;
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            // A path that goes up leaves the folder that its pattern names.
            if text.contains("..") || !allowed.iter().any(|pattern| pattern.fits(&text)) {
                return Err(denied(argument));
            }
        }
        Ok(())
    }

    /// What of an answer may pass; nothing: all of it, as it is written.
    #[must_use]
    pub fn filter(&self, command: &str, answer: &str) -> Option<String> {
        let members = self.answers.get(command)?;
        let mut value: Value = serde_json::from_str(answer).unwrap_or_default();
        keep(&mut value, members);
        Some(value.to_string())
    }

    /// Whether an event may pass.
    #[must_use]
    pub fn allows_event(&self, name: &str) -> bool {
        self.events.iter().any(|pattern| pattern.fits(name))
    }
}

/// Keeps only these members of every object. The depth is bounded by the decoder.
fn keep(value: &mut Value, members: &BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            map.retain(|name, _| members.contains(name));
            map.values_mut().for_each(|value| keep(value, members));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| keep(value, members)),
        _ => {}
    }
}

/// A local user, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

/// All roles, and who may take which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    roles: BTreeMap<String, Arc<Role>>,
    users: BTreeMap<u32, Vec<String>>,
    groups: BTreeMap<u32, Vec<String>>,
    socket_group: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        let roles = [Role::observer(), Role::operator(), Role::admin()];
        Self {
            roles: roles.into_iter().map(|role| (role.name.clone(), Arc::new(role))).collect(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            socket_group: None,
        }
    }
}

/// What root is before it asks for something else.
const ROOT_DEFAULT: &str = "operator";

impl Policy {
    /// The role of this name.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<Arc<Role>> {
        self.roles.get(name).cloned()
    }

    /// The names of all roles.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The name of the group that the sockets belong to.
    #[must_use]
    pub fn socket_group(&self) -> Option<&str> {
        self.socket_group.as_deref()
    }

    /// Whether anyone but root may connect.
    #[must_use]
    pub fn has_others(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }

    /// The role of a client that has just connected; nothing: it may not.
    #[must_use]
    pub fn first_role(&self, peer: Peer) -> Option<Arc<Role>> {
        let name = match peer.uid {
            0 => self.users.get(&0).and_then(|names| names.first()).map_or(ROOT_DEFAULT, String::as_str),
            _ => self.names_for(peer).next()?,
        };
        self.role(name)
    }

    /// The role that a client asks for; nothing: there is none of this name, or it may not take it. Only root may have
    /// what is for the toolstack alone.
    #[must_use]
    pub fn take(&self, peer: Peer, name: &str, toolstack: bool) -> Option<Arc<Role>> {
        if peer.uid != 0 && (toolstack || !self.names_for(peer).any(|allowed| allowed == name)) {
            return None;
        }
        let role = self.role(name)?;
        Some(if toolstack { Arc::new(Role::clone(&role).with_toolstack()) } else { role })
    }

    fn names_for(&self, peer: Peer) -> impl Iterator<Item = &str> {
        let user = self.users.get(&peer.uid).into_iter().flatten();
        user.chain(self.groups.get(&peer.gid).into_iter().flatten()).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
