//! Who may connect to the sockets, and how many connections each user may have.
//!
//! Which role a connection has is the policy's to say. Here it is about what connections cost: descriptors of this
//! process, places of a guest's session, and lines in the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::qmp::policy::Policy;
use nix::unistd::{Gid, Group};
use thiserror::Error;
use toolstack::GuestId;

/// Connections of one user to one guest.
const PER_GUEST: usize = 8;
/// Connections of one user to all guests.
const PER_USER: usize = 32;
/// Connections of all users but root to one guest: less than a session takes, so that root always gets one.
const OTHERS_PER_GUEST: usize = 96;
/// Connections of all users but root to all guests, of the 4096 descriptors and more that this process has.
const OTHERS: usize = 1024;
/// How often refusals are reported.
const REPORT: Duration = Duration::from_secs(60);

/// Why the sockets can belong to no group.
#[derive(Debug, Error)]
pub(crate) enum GroupError {
    #[error(
        "It names peers but no group for the sockets; add group = \"NAME\" at the top, with a group that \
         they are in"
    )]
    Missing,
    #[error("The group {0} does not exist; create it with groupadd, or use another one")]
    Unknown(String),
    #[error("Cannot look up the group {name}")]
    Look { name: String, source: nix::Error },
}

/// Access to the sockets of all guests.
pub(crate) struct Access {
    pub(super) policy: Arc<Policy>,
    /// The group whose members may connect besides root.
    pub(super) group: Option<Gid>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    connections: BTreeMap<(u32, GuestId), usize>,
    /// Refusals that are not reported yet.
    refused: u64,
    reported: Option<Instant>,
}

/// The right to one connection, until it is dropped.
pub(super) struct Permit {
    access: Arc<Access>,
    of: (u32, GuestId),
}

impl Access {
    /// Access by this policy.
    pub(crate) fn new(policy: Policy) -> Result<Self, GroupError> {
        let group = match policy.socket_group() {
            Some(name) => Some(find_group(name)?),
            None if policy.has_others() => return Err(GroupError::Missing),
            None => None,
        };
        Ok(Self { policy: Arc::new(policy), group, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // The numbers are right between any two statements that hold the lock.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection of a user to a guest; nothing when there are too many.
    pub(super) fn permit(self: &Arc<Self>, uid: u32, guest: GuestId) -> Option<Permit> {
        let mut taken = self.taken();
        if uid != 0 && !taken.has_room(uid, guest) {
            return None;
        }
        *taken.connections.entry((uid, guest)).or_default() += 1;
        Some(Permit { access: Arc::clone(self), of: (uid, guest) })
    }

    /// Counts a refusal; returns how many are to be reported now.
    pub(super) fn refused(&self, now: Instant) -> Option<u64> {
        let mut taken = self.taken();
        taken.refused += 1;
        if taken.reported.is_some_and(|reported| now.saturating_duration_since(reported) < REPORT) {
            return None;
        }
        taken.reported = Some(now);
        Some(std::mem::take(&mut taken.refused))
    }
}

impl Taken {
    fn has_room(&self, uid: u32, guest: GuestId) -> bool {
        let count = |wanted: &dyn Fn(u32, GuestId) -> bool| -> usize {
            let of = self.connections.iter().filter(|((uid, guest), _)| *uid != 0 && wanted(*uid, *guest));
            of.map(|(_, count)| count).sum()
        };
        count(&|of, to| of == uid && to == guest) < PER_GUEST
            && count(&|of, _| of == uid) < PER_USER
            && count(&|_, to| to == guest) < OTHERS_PER_GUEST
            && count(&|_, _| true) < OTHERS
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.access.taken();
        if let Some(count) = taken.connections.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.connections.remove(&self.of);
            }
        }
    }
}

fn find_group(name: &str) -> Result<Gid, GroupError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(GroupError::Unknown(name.to_owned())),
        Err(source) => Err(GroupError::Look { name: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use config::Uuid;

    use super::*;

    fn access(text: &str) -> Result<Access, GroupError> {
        Access::new(Policy::parse(text).unwrap())
    }

    fn guest(n: u128) -> GuestId {
        GuestId(Uuid::from_u128(n))
    }

    #[test]
    fn group_of_the_sockets_has_to_exist() {
        let peers = "[peers]\n1000 = [\"observer\"]";
        assert_eq!(access("").unwrap().group, None);
        assert!(matches!(access(peers), Err(GroupError::Missing)));
        let error = access(&format!("group = \"no-such-group\"\n{peers}")).err().unwrap();
        assert!(matches!(&error, GroupError::Unknown(name) if name == "no-such-group"), "{error}");
        assert_eq!(access(&format!("group = \"root\"\n{peers}")).unwrap().group, Some(Gid::from_raw(0)));
    }

    #[test]
    fn connections_of_a_user_are_limited() {
        let access = Arc::new(access("").unwrap());
        let mut permits = Vec::new();
        let mut take = |uid, n| access.permit(uid, guest(n)).map(|permit| permits.push(permit)).is_some();
        for n in 0..4 {
            assert!((0..PER_GUEST).all(|_| take(1000, n)) && !take(1000, n), "guest {n}");
        }
        // All guests together, regardless of other users' connections.
        assert!(!take(1000, 9) && take(1001, 9));
        assert!((0..1000).all(|_| take(0, 9)));
        permits.remove(0);
        assert!(access.permit(1000, guest(9)).is_some());
    }

    #[test]
    fn root_gets_a_connection_when_others_have_taken_theirs() {
        let access = Arc::new(access("").unwrap());
        let all: Vec<_> = (1..1000).filter_map(|uid| access.permit(uid, guest(1))).collect();
        assert_eq!(all.len(), OTHERS_PER_GUEST);
        assert!(access.permit(0, guest(1)).is_some());
        drop(all);
        assert!(access.taken().connections.is_empty());
    }

    #[test]
    fn refusals_are_reported_once_a_minute() {
        let access = access("").unwrap();
        let start = Instant::now();
        assert_eq!(access.refused(start), Some(1));
        let later = (1..60).map(|second| access.refused(start + Duration::from_secs(second)));
        assert!(later.collect::<Vec<_>>().iter().all(Option::is_none));
        assert_eq!(access.refused(start + REPORT), Some(60));
    }
}
