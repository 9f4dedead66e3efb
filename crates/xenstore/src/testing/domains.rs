use xen_types::{DomId, EventPort, Gfn};

use super::{Bench, Daemon, Guest, Trouble, Verdict, cases, first_event, next_path, refused, same};
use crate::wire::ErrorCode;
use crate::{Access, Permissions, RelPath, Request, SpecialWatch, Store, StoreError};

cases![
    domain_zero_is_introduced,
    unknown_domains_are_refused @ Host,
    domain_zero_cannot_be_released @ Host,
    a_domains_path_is_told,
    special_permissions_can_be_set @ Host,
    a_guest_sees_only_what_it_may,
    missing_and_forbidden_look_alike,
    a_guest_owns_what_it_makes,
    only_the_owner_sets_permissions,
    a_guests_relative_paths_are_its_own,
    a_target_gives_its_rights,
    events_need_the_right_to_read,
    special_events_need_permission,
    a_guest_may_not_manage_domains,
    nodes_have_a_size_quota,
    nodes_have_a_number_quota,
    watches_have_a_quota,
    transactions_have_a_quota,
    a_released_domain_takes_its_nodes_along,
    introductions_and_releases_are_told,
];

fn unused(number: u16) -> Result<DomId, Trouble> {
    DomId::new(0x7fe0 + number).map_err(|e| Trouble::Failed(e.to_string()))
}

fn rel(text: &str) -> Result<RelPath, Trouble> {
    Ok(RelPath::new(text).map_err(StoreError::from)?)
}

fn domain_zero_is_introduced(bench: &Bench<'_>) -> Verdict {
    same("domain 0", bench.dom0.is_introduced(DomId::DOM0)?, true)?;
    same("unused", bench.dom0.is_introduced(unused(1)?)?, false)
}

fn unknown_domains_are_refused(bench: &Bench<'_>) -> Verdict {
    let unknown = match bench.daemon() {
        Daemon::C => ErrorCode::NoEntry,
        Daemon::OCaml => ErrorCode::Invalid,
    };
    refused("release", bench.dom0.release(unused(1)?), &unknown)?;
    refused("resume", bench.dom0.resume(unused(1)?), &unknown)?;
    refused("target", bench.dom0.set_target(unused(1)?, DomId::DOM0), &ErrorCode::NoEntry)?;
    let introduced = bench.dom0.introduce(unused(1)?, Gfn(1), EventPort(0));
    refused("introduction without a port", introduced, &ErrorCode::Invalid)
}

fn domain_zero_cannot_be_released(bench: &Bench<'_>) -> Verdict {
    if bench.daemon() == Daemon::OCaml {
        return Err(Trouble::Skip("oxenstored would remove every node of domain 0"));
    }
    refused("release of 0", bench.dom0.request(&Request::release(DomId::DOM0)), &ErrorCode::Invalid)
}

fn a_domains_path_is_told(bench: &Bench<'_>) -> Verdict {
    let path = bench.dom0.get_domain_path(unused(1)?)?;
    same("path", path.to_string(), format!("/local/domain/{}", unused(1)?))
}

fn special_permissions_can_be_set(bench: &Bench<'_>) -> Verdict {
    let default = Permissions::owned_by(DomId::DOM0);
    Ok(bench.dom0.set_perms(&SpecialWatch::ReleaseDomain, &default)?)
}

fn a_guest_sees_only_what_it_may(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let node = bench.at("node")?;
    bench.dom0.write(&node, b"1")?;
    refused("read none", guest.store.read(&node), &ErrorCode::Access)?;
    let dom0 = Permissions::owned_by(DomId::DOM0);
    bench.dom0.set_perms(&node, &dom0.clone().allow(guest.domid, Access::Read))?;
    same("read", guest.store.read(&node)?, Some(b"1".to_vec()))?;
    refused("write to read-only", guest.store.write(&node, b"2"), &ErrorCode::Access)?;
    bench.dom0.set_perms(&node, &dom0.clone().allow(guest.domid, Access::Write))?;
    guest.store.write(&node, b"2")?;
    refused("read write-only", guest.store.read(&node), &ErrorCode::Access)?;
    bench.dom0.set_perms(&node, &dom0.others(Access::Both).allow(guest.domid, Access::None))?;
    refused("excepted", guest.store.read(&node), &ErrorCode::Access)
}

fn missing_and_forbidden_look_alike(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    bench.dom0.write(&bench.at("there")?, b"")?;
    refused("there", guest.store.read(&bench.at("there")?), &ErrorCode::Access)?;
    refused("missing", guest.store.read(&bench.at("missing")?), &ErrorCode::Access)?;
    same("own", guest.store.read(&rel("missing")?)?, None)
}

fn a_guest_owns_what_it_makes(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let shared = bench.at("shared")?;
    bench.dom0.mkdir(&shared)?;
    let both = Permissions::owned_by(DomId::DOM0).allow(guest.domid, Access::Both);
    bench.dom0.set_perms(&shared, &both)?;
    guest.store.write(&bench.at("shared/a/b")?, b"")?;
    let permissions = bench.dom0.get_perms(&bench.at("shared/a")?)?;
    let wanted = Permissions::owned_by(guest.domid).allow(guest.domid, Access::Both);
    same("permissions", permissions, Some(wanted))?;
    refused("beside", guest.store.write(&bench.at("other")?, b""), &ErrorCode::Access)
}

fn only_the_owner_sets_permissions(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let (own, shared) = (guest.home.clone(), bench.at("shared")?);
    bench.dom0.write(&shared, b"")?;
    let both = Permissions::owned_by(DomId::DOM0).allow(guest.domid, Access::Both);
    bench.dom0.set_perms(&shared, &both)?;
    refused("shared", guest.store.set_perms(&shared, &both), &ErrorCode::Access)?;
    guest.store.set_perms(&own, &Permissions::owned_by(guest.domid).others(Access::Read))?;
    let away = guest.store.set_perms(&own, &Permissions::owned_by(DomId::DOM0));
    refused("giving away", away, &ErrorCode::Permission)
}

fn a_guests_relative_paths_are_its_own(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    guest.store.write(&rel("data/x")?, b"1")?;
    let absolute = rel("data/x")?.of_domain(guest.domid).map_err(StoreError::from)?;
    same("value", bench.dom0.read(&absolute)?, Some(b"1".to_vec()))?;
    let watch = guest.store.watch(&rel("data")?)?;
    first_event(&watch)?;
    bench.dom0.write(&absolute, b"2")?;
    same("event", next_path(&watch)?, "data/x".to_owned())
}

fn a_target_gives_its_rights(bench: &Bench<'_>) -> Verdict {
    let (stub, target) = (bench.guest(1)?, bench.guest(2)?);
    let node = target.home.join("private").map_err(StoreError::from)?;
    target.store.write(&node, b"1")?;
    refused("before", stub.store.read(&node), &ErrorCode::Access)?;
    bench.dom0.set_target(stub.domid, target.domid)?;
    same("after", stub.store.read(&node)?, Some(b"1".to_vec()))?;
    stub.store.write(&node, b"2")?;
    let shared = bench.at("shared")?;
    bench.dom0.write(&shared, b"3")?;
    let readable = Permissions::owned_by(DomId::DOM0).allow(target.domid, Access::Read);
    bench.dom0.set_perms(&shared, &readable)?;
    same("granted to the target", stub.store.read(&shared)?, Some(b"3".to_vec()))?;
    let own = stub.home.join("private").map_err(StoreError::from)?;
    stub.store.write(&own, b"4")?;
    refused("not the other way round", target.store.read(&own), &ErrorCode::Access)
}

fn events_need_the_right_to_read(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let secret = bench.at("secret/deep")?;
    bench.dom0.write(&secret, b"1")?;
    let watch = guest.store.watch(&secret)?;
    first_event(&watch)?;
    bench.dom0.write(&secret, b"2")?;
    same("forbidden", bench.settle(&guest.store, &watch)?, vec![])?;
    let readable = Permissions::owned_by(DomId::DOM0).allow(guest.domid, Access::Read);
    bench.dom0.set_perms(&secret, &readable)?;
    bench.dom0.write(&secret, b"3")?;
    same("allowed", next_path(&watch)?, secret.to_string())?;
    bench.settle(&guest.store, &watch)?;
    bench.dom0.set_perms(&secret, &Permissions::owned_by(DomId::DOM0))?;
    same("on losing it", next_path(&watch)?, secret.to_string())
}

fn special_events_need_permission(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let special = SpecialWatch::IntroduceDomain;
    let watch = guest.store.watch(&special)?;
    first_event(&watch)?;
    let second = bench.guest(2)?;
    same("before", bench.settle(&guest.store, &watch)?, vec![])?;
    let allowed = Permissions::owned_by(DomId::DOM0).allow(guest.domid, Access::Read);
    bench.dom0.set_perms(&special, &allowed)?;
    bench.dom0.release(second.domid)?;
    bench.guest(3)?;
    let found = next_path(&watch);
    bench.dom0.set_perms(&special, &Permissions::owned_by(DomId::DOM0))?;
    same("after", found?, special.to_string())?;
    refused("by itself", guest.store.set_perms(&special, &allowed), &ErrorCode::Access)
}

fn a_guest_may_not_manage_domains(bench: &Bench<'_>) -> Verdict {
    let Guest { store, domid, .. } = bench.guest(1)?;
    refused("introduce", store.introduce(domid, Gfn(1), EventPort(1)), &ErrorCode::Access)?;
    refused("release", store.release(domid), &ErrorCode::Access)?;
    refused("target", store.set_target(domid, DomId::DOM0), &ErrorCode::Access)?;
    refused("asking", store.is_introduced(domid), &ErrorCode::Access)?;
    store.get_domain_path(domid)?;
    Ok(())
}

fn nodes_have_a_size_quota(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let node = rel("node")?;
    // A header of 24 bytes and 8 for the owner belong to it.
    guest.store.write(&node, &[b'x'; 2048 - 24 - 8 - 1])?;
    refused("new value", guest.store.write(&node, &[b'x'; 2048 - 24 - 8]), &ErrorCode::NoSpace)?;
    refused("new node", guest.store.write(&rel("new")?, &[b'x'; 2048 - 24 - 8]), &ErrorCode::NoSpace)?;
    same("not made", guest.store.read(&rel("new")?)?, None)
}

fn nodes_have_a_number_quota(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    // The domain's own directory counts, and each `n/…` directory.
    let mut made = 1;
    let mut last = Ok(());
    for directory in 0..20 {
        for node in 0..99 {
            last = guest.store.mkdir(&rel(&format!("{directory}/{node}"))?);
            if last.is_err() {
                break;
            }
            made += 1 + i32::from(node == 0);
        }
    }
    refused("one more", last, &ErrorCode::NoSpace)?;
    same("made", made, 1000)
}

fn watches_have_a_quota(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let node = rel("node")?;
    let mut set = 0;
    let last = loop {
        match guest.store.request(&Request::watch(&node, &format!("{set}"))) {
            Ok(_) if set < 1000 => set += 1,
            other => break other,
        }
    };
    refused("one more", last, &ErrorCode::TooBig)?;
    same("set", set, 129)?;
    guest.store.request(&Request::reset_watches())?;
    guest.store.watch(&node)?;
    Ok(())
}

fn transactions_have_a_quota(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let mut open = 0;
    let last = loop {
        match guest.store.request(&Request::transaction_start()) {
            Ok(_) if open < 100 => open += 1,
            other => break other,
        }
    };
    refused("one more", last, &ErrorCode::NoSpace)?;
    same("open", open, 11)?;
    guest.store.request(&Request::reset_watches())?;
    Ok(guest.store.transaction(|t| t.write(&rel_ok("x")?, b""))?)
}

fn rel_ok(text: &str) -> Result<RelPath, StoreError> {
    Ok(RelPath::new(text)?)
}

fn a_released_domain_takes_its_nodes_along(bench: &Bench<'_>) -> Verdict {
    let guest = bench.guest(1)?;
    let far = bench.at("shared")?;
    bench.dom0.mkdir(&far)?;
    bench.dom0.set_perms(&far, &Permissions::owned_by(guest.domid))?;
    bench.dom0.write(&bench.at("kept")?, b"")?;
    let watch = bench.dom0.watch(&far)?;
    first_event(&watch)?;
    bench.dom0.release(guest.domid)?;
    same("home", bench.dom0.read(&guest.home)?, None)?;
    same("elsewhere", bench.dom0.read(&far)?, None)?;
    same("event", next_path(&watch)?, far.to_string())?;
    same("of others", bench.dom0.read(&bench.at("kept")?)?, Some(Vec::new()))?;
    same("introduced", bench.dom0.is_introduced(guest.domid)?, false)
}

fn introductions_and_releases_are_told(bench: &Bench<'_>) -> Verdict {
    let come = bench.dom0.watch(&SpecialWatch::IntroduceDomain)?;
    let go = bench.dom0.watch(&SpecialWatch::ReleaseDomain)?;
    first_event(&come)?;
    first_event(&go)?;
    let guest = bench.guest(4)?;
    same("come", next_path(&come)?, "@introduceDomain".to_owned())?;
    bench.dom0.release(guest.domid)?;
    same("go", next_path(&go)?, "@releaseDomain".to_owned())
}
