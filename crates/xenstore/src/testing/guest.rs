//! Cases for the inside of an unprivileged domain.

use xen_types::{DomId, EventPort, Gfn};

use super::{Bench, Daemon, Trouble, Verdict, cases, first_event, next_path, refused, same};
use crate::wire::ErrorCode;
use crate::{Permissions, RelPath, Request, SpecialWatch, Store, StoreError, XsPath};

cases![
    it_knows_itself,
    others_directories_are_closed,
    its_own_directory_tells_what_is_missing,
    what_it_makes_is_its_own,
    ownership_stays,
    a_node_may_be_so_large,
    so_many_nodes_and_no_more,
    so_many_transactions_and_no_more,
    so_many_watches_and_no_more,
    management_is_for_domain_zero,
    its_relative_watches_fire,
    special_events_stay_silent,
    batches_work,
];

fn rel(text: &str) -> Result<RelPath, Trouble> {
    Ok(RelPath::new(text).map_err(StoreError::from)?)
}

fn domid(bench: &Bench<'_>) -> Result<DomId, Trouble> {
    let text = bench.dom0.read_string(&rel("domid")?, 5)?.unwrap_or_default();
    text.parse().map_err(|_| Trouble::Failed(format!("domid {text:?}")))
}

fn home(bench: &Bench<'_>) -> Result<XsPath, Trouble> {
    Ok(XsPath::domain(domid(bench)?))
}

fn it_knows_itself(bench: &Bench<'_>) -> Verdict {
    same("path", bench.dom0.get_domain_path(domid(bench)?)?, home(bench)?)
}

fn others_directories_are_closed(bench: &Bench<'_>) -> Verdict {
    for name in ["name", "no-such-name"] {
        let node = XsPath::domain(DomId::DOM0).join(name).map_err(StoreError::from)?;
        refused(name, bench.dom0.write(&node, b"x"), &ErrorCode::Access)?;
        if (name, bench.daemon()) == ("no-such-name", Daemon::OCaml) {
            // It tells everybody what is missing.
            same(name, bench.dom0.read(&node)?, None)?;
            bench.dom0.rm(&node)?;
        } else {
            refused(name, bench.dom0.read(&node), &ErrorCode::Access)?;
            refused(name, bench.dom0.rm(&node), &ErrorCode::Access)?;
        }
    }
    Ok(())
}

fn its_own_directory_tells_what_is_missing(bench: &Bench<'_>) -> Verdict {
    same("read", bench.dom0.read(&rel("no-such-name")?)?, None)?;
    same("list", bench.dom0.list(&rel("no-such-name")?)?, None)?;
    // It may read, not write there.
    refused("write", bench.dom0.write(&rel("no-such-name")?, b""), &ErrorCode::Access)?;
    refused("rm", bench.dom0.rm(&rel("domid")?), &ErrorCode::Access)
}

fn what_it_makes_is_its_own(bench: &Bench<'_>) -> Verdict {
    bench.dom0.write(&rel("data/outrigger/a")?, b"1")?;
    let wanted = Permissions::owned_by(domid(bench)?);
    same("permissions", bench.dom0.get_perms(&rel("data/outrigger/a")?)?, Some(wanted))?;
    Ok(bench.dom0.rm(&rel("data/outrigger")?)?)
}

fn ownership_stays(bench: &Bench<'_>) -> Verdict {
    let own = Permissions::owned_by(domid(bench)?);
    bench.dom0.write(&rel("data/outrigger")?, b"1")?;
    let node = rel("data/outrigger")?;
    bench.dom0.set_perms(&node, &own.clone().others(crate::Access::Read))?;
    let away = bench.dom0.set_perms(&node, &Permissions::owned_by(DomId::DOM0));
    let not_owner = match bench.daemon() {
        Daemon::C => ErrorCode::Permission,
        Daemon::OCaml => ErrorCode::Access,
    };
    refused("giving away", away, &not_owner)?;
    refused("of domain 0", bench.dom0.set_perms(&rel("domid")?, &own), &ErrorCode::Access)?;
    let many = (1..=4).try_fold(own, |all, n| Ok::<_, Trouble>(all.allow(dom(n)?, crate::Access::None)))?;
    bench.dom0.set_perms(&node, &many)?;
    let more = many.allow(dom(5)?, crate::Access::None);
    match bench.daemon() {
        Daemon::C => refused("six entries", bench.dom0.set_perms(&node, &more), &ErrorCode::NoSpace)?,
        Daemon::OCaml => bench.dom0.set_perms(&node, &more)?,
    }
    Ok(bench.dom0.rm(&node)?)
}

/// What xenstored says when the quota of nodes or of transactions is used up.
fn quota(bench: &Bench<'_>) -> ErrorCode {
    match bench.daemon() {
        Daemon::C => ErrorCode::NoSpace,
        Daemon::OCaml => ErrorCode::Quota,
    }
}

fn dom(number: u16) -> Result<DomId, Trouble> {
    DomId::new(number).map_err(|e| Trouble::Failed(e.to_string()))
}

fn a_node_may_be_so_large(bench: &Bench<'_>) -> Verdict {
    let node = rel("data/outrigger")?;
    let (most, code) = match bench.daemon() {
        // A header of 24 bytes and 8 for the owner count.
        Daemon::C => (2048 - 24 - 8 - 1, ErrorCode::NoSpace),
        Daemon::OCaml => (2048, ErrorCode::TooBig),
    };
    bench.dom0.write(&node, &vec![b'x'; most])?;
    refused("larger", bench.dom0.write(&node, &vec![b'x'; most + 1]), &code)?;
    bench.dom0.rm(&node)?;
    refused("new", bench.dom0.write(&node, &vec![b'x'; most + 1]), &code)?;
    same("not made", bench.dom0.read(&node)?, None)
}

fn so_many_nodes_and_no_more(bench: &Bench<'_>) -> Verdict {
    let mut made = 0;
    let mut last = Ok(());
    'all: for directory in 0..11 {
        for node in 0..99 {
            last = bench.dom0.mkdir(&rel(&format!("data/outrigger/{directory}/{node}"))?);
            if last.is_err() {
                break 'all;
            }
            made += 1 + i32::from(node == 0);
        }
    }
    refused("one more", last, &quota(bench))?;
    bench.dom0.rm(&rel("data/outrigger")?)?;
    // Those that the toolstack and the domain's kernel have made count too.
    same("about 1000", (900..1000).contains(&made), true)
}

fn so_many_transactions_and_no_more(bench: &Bench<'_>) -> Verdict {
    let mut open = 0;
    let last = loop {
        match bench.dom0.request(&Request::transaction_start()) {
            Ok(_) if open < 100 => open += 1,
            other => break other,
        }
    };
    refused("one more", last, &quota(bench))?;
    same("open", open, 11)?;
    if bench.dom0.is_device() {
        // The kernel keeps RESET_WATCHES to itself; they end with the connection.
        return Ok(());
    }
    bench.dom0.request(&Request::reset_watches())?;
    Ok(())
}

fn so_many_watches_and_no_more(bench: &Bench<'_>) -> Verdict {
    let node = rel("data/outrigger")?;
    let mut set = Vec::new();
    let last = loop {
        match bench.dom0.watch(&node) {
            Ok(watch) if set.len() < 1000 => set.push(watch),
            other => break other.map(drop),
        }
    };
    // Those of the domain's kernel count too.
    let (code, about) = match (bench.daemon(), bench.dom0.is_device()) {
        (Daemon::C, _) => (ErrorCode::TooBig, 100..130),
        (Daemon::OCaml, false) => (ErrorCode::Quota, 72..102),
        // The kernel sets the watch and does not know oxenstored's word.
        (Daemon::OCaml, true) => (ErrorCode::Invalid, 72..102),
    };
    refused("one more", last, &code)?;
    same("number", (about.contains(&set.len()), set.len()), (true, set.len()))
}

fn management_is_for_domain_zero(bench: &Bench<'_>) -> Verdict {
    let me = domid(bench)?;
    let store = &bench.dom0;
    refused("introduce", store.introduce(me, Gfn(1), EventPort(1)), &ErrorCode::Access)?;
    refused("release", store.release(me), &ErrorCode::Access)?;
    refused("target", store.set_target(me, DomId::DOM0), &ErrorCode::Access)?;
    // Not the permissions of a special event: xenstored of 4.17.5 never answers that request of a guest (the error is
    // in `do_set_perms`, which takes `errno` for the result of `set_perms_special`), and no later one either.
    refused("asking", store.is_introduced(me), &ErrorCode::Access)
}

fn its_relative_watches_fire(bench: &Bench<'_>) -> Verdict {
    let watch = bench.dom0.watch(&rel("data/outrigger")?)?;
    same("first", next_path(&watch)?, "data/outrigger".to_owned())?;
    bench.dom0.write(&rel("data/outrigger/x")?, b"")?;
    same("below", next_path(&watch)?, "data/outrigger/x".to_owned())?;
    bench.dom0.rm(&rel("data/outrigger")?)?;
    same("removed", next_path(&watch)?, "data/outrigger".to_owned())?;
    let absolute = home(bench)?.join("data/outrigger").map_err(StoreError::from)?;
    let watch = bench.dom0.watch(&absolute)?;
    same("absolute", next_path(&watch)?, absolute.to_string())
}

fn special_events_stay_silent(bench: &Bench<'_>) -> Verdict {
    first_event(&bench.dom0.watch(&SpecialWatch::ReleaseDomain)?)
}

fn batches_work(bench: &Bench<'_>) -> Verdict {
    let paths: Result<Vec<_>, Trouble> = (0..40).map(|n| rel(&format!("data/outrigger/{n}"))).collect();
    let paths = paths?;
    let requests: Vec<_> = paths.iter().map(|path| Request::write(path, b"value")).collect();
    bench.dom0.request_all(&requests)?;
    bench.dom0.transaction(|t| t.request_all(&requests))?;
    for path in &paths {
        same(path.as_str(), bench.dom0.read(path)?, Some(b"value".to_vec()))?;
    }
    Ok(bench.dom0.rm(&rel("data/outrigger")?)?)
}
