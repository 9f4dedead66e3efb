//! The daemon on a Xen of another release than it was built for.

use toolstack::Paths;
use xen::SimHypervisor;
use xen::release::{BUILT, Release};

use crate::usual_paths;

#[test]
fn another_release_of_xen_ends_the_start_with_the_package_that_fits() {
    let hypervisor = SimHypervisor::new();
    let running = Release::new(BUILT.major, BUILT.minor + 1);
    hypervisor.set_release(running);
    let said = format!("{:#}", usual_paths(&hypervisor).unwrap_err());
    for expected in [
        format!("Xen {running} is running"),
        format!("this program was built for Xen {BUILT}"),
        format!("the package that fits is {}", running.daemons_package()),
    ] {
        assert!(said.contains(&expected), "{expected:?} is missing in: {said}");
    }
    // Nothing that only this release understands was called.
    assert!(hypervisor.operations().iter().all(|operation| operation.name == "version_info"));
}

#[test]
fn the_release_that_the_daemon_was_built_for_has_its_paths() {
    assert_eq!(usual_paths(&SimHypervisor::new()).unwrap(), Paths::of(BUILT));
}
