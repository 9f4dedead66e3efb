//! The limit of open files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for all clients of the API and of QMP, and for the lifecycles of many guests at once.
const WANTED: u64 = 65_536;

/// Raises the limit as far as it can be: systemd's usual one is 1024, and clients could use up all of them.
pub(crate) fn raise_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft >= WANTED {
        return;
    }
    let raised = setrlimit(Resource::RLIMIT_NOFILE, WANTED, hard.max(WANTED))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, limit = soft, "cannot raise the limit of open files; clients may exhaust it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_as_high_as_it_can_be() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(soft >= WANTED.min(hard), "{soft} of {hard}");
    }
}
