//! What a domain number means when the guest that had it is gone.

use xen::{DomainKind, DomainSpec, Hypervisor as _};

use super::world::World;

#[test]
fn strangers_with_the_numbers_of_a_guest_that_is_gone_live_on() {
    let world = World::new();
    let service = world.start();
    let guest = service.create("").unwrap();
    service.kill().unwrap();
    // The host is started anew: all domains are gone, numbers begin anew, and another toolstack is faster.
    world.destroy_behind(&guest);
    let numbers = [guest.domid, guest.stub_domid.unwrap()];
    for (n, domid) in numbers.into_iter().enumerate() {
        let mut spec = DomainSpec::new(DomainKind::Pv, [n as u8 + 1; 16], 1);
        spec.domid = Some(domid);
        world.hypervisor.create_domain(&spec).unwrap();
    }
    let before = world.hypervisor.operations().len();
    let mut service = world.start();
    service.events.expect(&["gone", "destroyed"]);
    let done: Vec<_> = world.hypervisor.operations()[before..]
        .iter()
        .filter(|o| o.name == "destroy_domain" || o.name == "pause_domain")
        .map(|o| (o.name, o.domid, o.done))
        .collect();
    println!("done to strangers: {done:?}");
    for domid in numbers {
        let info = world.hypervisor.domain_info(domid).unwrap();
        assert!(info.is_some_and(|info| !info.state.dying), "domain {domid} of another toolstack was killed");
    }
}
