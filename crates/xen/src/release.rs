//! Which release of Xen runs, which one this program was built for, and what differs between releases.
//!
//! [`Release`] itself is in the crate `xen-types`, because programs that are not linked with Xen's libraries need its
//! paths and package names too.

pub use xen_types::Release;

#[cfg(feature = "libxenctrl")]
use crate::{Hypervisor, Result, XenError};

/// The release whose libraries this program is linked with.
#[cfg(feature = "libxenctrl")]
pub const BUILT: Release = match Release::parse(xen_sys::VERSION) {
    Some(release) => release,
    None => panic!("the version of the bindings is not a release of Xen"),
};

/// The release that [`SimHypervisor`](crate::SimHypervisor) pretends to be, unless told otherwise.
#[cfg(feature = "libxenctrl")]
pub(crate) const SIMULATED: Release = BUILT;
#[cfg(not(feature = "libxenctrl"))]
pub(crate) const SIMULATED: Release = Release::DEBIAN_12;

/// Checks that the running Xen is of the release that this program was built for, and returns that release.
///
/// A daemon has to call this before anything else. Xen refuses most calls of a library of another release, and only
/// with `EACCES`, as if root's rights were missing.
///
/// # Errors
/// [`XenError::Release`] when another release runs; otherwise as [`Hypervisor::version_info`].
#[cfg(feature = "libxenctrl")]
pub fn check(hypervisor: &dyn Hypervisor) -> Result<Release> {
    let running = hypervisor.release()?;
    if running == BUILT { Ok(running) } else { Err(XenError::Release { running, built: BUILT }) }
}

#[cfg(all(test, feature = "libxenctrl"))]
mod tests {
    use super::*;
    use crate::SimHypervisor;

    #[test]
    fn the_release_of_the_bindings_is_accepted() {
        assert_eq!(BUILT.to_string(), xen_sys::VERSION);
        assert_eq!(check(&SimHypervisor::new()).expect("the same release"), BUILT);
    }

    #[test]
    fn another_release_is_refused_with_the_package_that_fits() {
        let hypervisor = SimHypervisor::new();
        let running = Release::new(BUILT.major, BUILT.minor + 3);
        hypervisor.set_release(running);
        let error = check(&hypervisor).expect_err("another release");
        assert!(matches!(error, XenError::Release { running: r, built: BUILT } if r == running), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!(
                "Xen {running} is running, but this program was built for Xen {BUILT}: the package that fits is \
                 outriggerd-xen{running}; to use this one, boot Xen {BUILT}"
            )
        );
    }
}
