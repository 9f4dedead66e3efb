use core::fmt;
use core::str::FromStr;

use thiserror::Error;
use xen_types::DomId;

use crate::path::shown;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing (`n`).
    None,
    /// Read and watch (`r`).
    Read,
    /// Write only (`w`).
    Write,
    /// Both (`b`).
    Both,
}

impl Access {
    /// Whether reading is included.
    #[must_use]
    pub const fn can_read(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    /// Whether writing is included.
    #[must_use]
    pub const fn can_write(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }

    const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }

    const fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'n' => Self::None,
            b'r' => Self::Read,
            b'w' => Self::Write,
            b'b' => Self::Both,
            _ => return None,
        })
    }
}

/// Who may do what with one node: its owner, what everyone else may do, and the domains that differ from that.
///
/// The owner and domain 0 may always do everything. On the wire it is a list such as `n0`, `r5`: the first entry
/// names the owner and the access of everyone else, each further one a domain and its access
/// (`docs/misc/xenstore.txt`). An unprivileged domain may give a node at most five entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permissions {
    owner: DomId,
    others: Access,
    entries: Vec<(DomId, Access)>,
}

impl Permissions {
    /// A node of `owner` that no other domain (but domain 0) may read or write.
    #[must_use]
    pub const fn owned_by(owner: DomId) -> Self {
        Self { owner, others: Access::None, entries: Vec::new() }
    }

    /// The same with another access for all domains that have no entry.
    #[must_use]
    pub const fn others(mut self, access: Access) -> Self {
        self.others = access;
        self
    }

    /// The same with an entry for one domain, in place of an earlier entry for it.
    #[must_use]
    pub fn allow(mut self, domid: DomId, access: Access) -> Self {
        self.entries.retain(|(known, _)| *known != domid);
        self.entries.push((domid, access));
        self
    }

    /// The domain that owns the node.
    #[must_use]
    pub const fn owner(&self) -> DomId {
        self.owner
    }

    /// What a domain without an entry may do.
    #[must_use]
    pub const fn default_access(&self) -> Access {
        self.others
    }

    /// The domains with an entry of their own.
    #[must_use]
    pub fn entries(&self) -> &[(DomId, Access)] {
        &self.entries
    }

    /// What a domain may do; domain 0 and the owner everything.
    #[must_use]
    pub fn access(&self, domid: DomId) -> Access {
        if domid == self.owner || domid == DomId::DOM0 {
            return Access::Both;
        }
        self.entries.iter().find(|(known, _)| *known == domid).map_or(self.others, |(_, access)| *access)
    }

    /// The strings that go over the wire, without their final NUL bytes.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        let first = (self.owner, self.others);
        core::iter::once(&first).chain(&self.entries).map(|(d, a)| format!("{}{d}", a.letter())).collect()
    }

    /// Makes permissions of strings as they come over the wire.
    ///
    /// An entry after the first whose number cannot be a domain's is left out: a guest may write such entries to its
    /// own nodes, and they give nobody anything.
    ///
    /// # Errors
    /// When there is no string, or one is not a letter of `nrwb` and a decimal number.
    pub fn from_strings<'a>(strings: impl IntoIterator<Item = &'a str>) -> Result<Self, PermissionsError> {
        let mut strings = strings.into_iter();
        let first = strings.next().ok_or(PermissionsError::Empty)?;
        let (number, others) = entry(first)?;
        let owner = DomId::new(number).map_err(|_| PermissionsError::Malformed(shown(first)))?;
        let mut permissions = Self::owned_by(owner).others(others);
        for text in strings {
            let (number, access) = entry(text)?;
            if let Ok(domid) = DomId::new(number) {
                permissions.entries.push((domid, access));
            }
        }
        Ok(permissions)
    }
}

fn entry(text: &str) -> Result<(u16, Access), PermissionsError> {
    let malformed = || PermissionsError::Malformed(shown(text));
    let access = text.bytes().next().and_then(Access::from_letter).ok_or_else(malformed)?;
    let digits = &text[1..];
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    Ok((digits.parse().map_err(|_| malformed())?, access))
}

impl fmt::Display for Permissions {
    /// Writes the entries as `xenstore-ls -p` does: `n0,r5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_strings().join(","))
    }
}

impl FromStr for Permissions {
    type Err = PermissionsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_strings(text.split(','))
    }
}

/// Why texts are not the permissions of a node.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PermissionsError {
    /// There is no entry, so no owner.
    #[error("Permissions without an owner")]
    Empty,
    /// An entry is not a letter and a domid.
    #[error("Permission \"{0}\" is not one of n, r, w, b and a domid")]
    Malformed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dom(n: u16) -> DomId {
        DomId::new(n).unwrap()
    }

    #[test]
    fn text_form_round_trips() {
        for text in ["n0", "n0,r5", "b3,w0,n7"] {
            assert_eq!(text.parse::<Permissions>().unwrap().to_string(), text);
        }
        assert_eq!(Permissions::owned_by(dom(0)).allow(dom(5), Access::Read).to_string(), "n0,r5");
    }

    #[test]
    fn malformed_entries_are_refused() {
        for bad in ["", "0", "r", "x0", "r-1", "r1,", "r70000", "n32752", "é1"] {
            assert!(bad.parse::<Permissions>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn entries_that_name_no_domain_give_nothing() {
        assert_eq!("n1,r32752,r2".parse::<Permissions>().unwrap().to_string(), "n1,r2");
    }

    #[test]
    fn access_follows_owner_entry_default() {
        let perms: Permissions = "r3,b5,n6".parse().unwrap();
        assert_eq!(perms.access(dom(3)), Access::Both);
        assert_eq!(perms.access(dom(0)), Access::Both);
        assert_eq!(perms.access(dom(5)), Access::Both);
        assert_eq!(perms.access(dom(6)), Access::None);
        assert_eq!(perms.access(dom(7)), Access::Read);
    }
}
