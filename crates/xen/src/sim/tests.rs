use super::*;
use crate::hypervisor::Hypervisor;

fn pv() -> DomainSpec {
    DomainSpec::new(DomainKind::Pv, [7; 16], 1)
}

#[test]
fn the_nth_call_fails_and_no_other() {
    let xen = SimHypervisor::new();
    xen.fail_nth_call(2);
    let domid = xen.create_domain(&pv()).expect("the first call is done");
    let error = xen.set_max_vcpus(domid, 1).expect_err("the second call fails");
    assert_eq!(error.errno(), Some(Errno::EIO));
    xen.set_max_vcpus(domid, 1).expect("the third call is done");
    let done: Vec<bool> = xen.operations().iter().map(|operation| operation.done).collect();
    assert_eq!(done, [true, false, true]);
}

#[test]
fn a_named_call_fails_until_healed() {
    let xen = SimHypervisor::new();
    xen.fail_operation("create_domain", Errno::ENOMEM);
    for _ in 0..2 {
        assert_eq!(xen.create_domain(&pv()).expect_err("refused").errno(), Some(Errno::ENOMEM));
    }
    xen.heal();
    assert_eq!(xen.create_domain(&pv()).expect("healed").get(), 1);
}

#[test]
fn what_is_left_is_told() {
    let xen = SimHypervisor::new();
    assert!(xen.leftovers().is_empty());
    let domid = xen.create_domain(&pv()).expect("made");
    xen.alloc_unbound_port(domid, DomId::DOM0).expect("a port");
    assert_eq!(xen.leftovers(), ["domain 1 with 0 KiB and 1 ports"]);
    xen.destroy_domain(domid).expect("destroyed");
    assert!(xen.leftovers().is_empty());
    assert_eq!(xen.create_domain(&pv()).expect("made").get(), 2, "numbers are not used again soon");
}

#[test]
fn a_guest_shuts_itself_down_only_when_it_runs() {
    let xen = SimHypervisor::new();
    let domid = xen.create_domain(&pv()).expect("made");
    xen.guest_shuts_down(domid, ShutdownReason::Reboot);
    let state = |xen: &SimHypervisor| xen.domain_info(domid).expect("asked").expect("there").state;
    assert_eq!(state(&xen).shutdown, None);
    xen.unpause_domain(domid).expect("unpaused");
    xen.guest_shuts_down(domid, ShutdownReason::Reboot);
    assert_eq!(state(&xen).shutdown, Some(ShutdownReason::Reboot));
    assert_eq!(state(&xen).to_string(), "---s--");
}

#[test]
fn an_observer_plays_the_guest() {
    let xen = SimHypervisor::new();
    xen.observe(|xen, operation| {
        if let Operation { name: "unpause_domain", domid: Some(domid), done: true } = operation {
            xen.guest_shuts_down(*domid, ShutdownReason::PowerOff);
            let info = xen.domain_info(*domid).expect("an observer may make calls");
            assert!(info.is_some());
        }
    });
    for _ in 0..2 {
        let domid = xen.create_domain(&pv()).expect("made");
        xen.unpause_domain(domid).expect("unpaused");
        let info = xen.domain_info(domid).expect("asked").expect("there");
        assert_eq!(info.state.shutdown, Some(ShutdownReason::PowerOff));
    }
}
