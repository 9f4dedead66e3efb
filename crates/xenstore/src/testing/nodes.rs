use xen_types::DomId;

use super::{Bench, Daemon, Trouble, Verdict, cases, refused, same};
use crate::wire::ErrorCode;
use crate::{Access, Permissions, RelPath, Request, Store, StoreError, XsPath};

cases![
    a_value_is_read_back,
    a_missing_node_reads_as_nothing,
    values_are_bytes_up_to_a_limit,
    write_makes_what_is_missing_above,
    mkdir_keeps_a_value,
    rm_takes_all_below,
    rm_of_nothing_is_fine,
    only_oxenstored_removes_the_root @ Host,
    children_come_in_order,
    a_long_list_comes_whole,
    permissions_are_read_back,
    new_nodes_inherit_permissions,
    relative_paths_are_below_the_domain @ Host,
    a_batch_goes_on_behind_an_error,
    numbers_and_texts_are_checked,
];

fn a_value_is_read_back(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    bench.dom0.write(&node, b"one")?;
    same("first", bench.dom0.read(&node)?, Some(b"one".to_vec()))?;
    bench.dom0.write(&node, b"")?;
    same("emptied", bench.another()?.read(&node)?, Some(Vec::new()))
}

fn a_missing_node_reads_as_nothing(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("a/b/c")?;
    same("value", bench.dom0.read(&node)?, None)?;
    same("list", bench.dom0.list(&node)?, None)?;
    same("permissions", bench.dom0.get_perms(&node)?, None)?;
    let set = bench.dom0.set_perms(&node, &Permissions::owned_by(DomId::DOM0));
    refused("set permissions", set, &ErrorCode::NoEntry)
}

fn values_are_bytes_up_to_a_limit(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("bytes")?;
    let all: Vec<u8> = (0..=255).collect();
    bench.dom0.write(&node, &all)?;
    same("all bytes", bench.dom0.read(&node)?, Some(all))?;
    let room = match bench.daemon() {
        Daemon::C => bench.dom0.payload_max() - node.as_str().len() - 1,
        // Its quota holds for domain 0 too.
        Daemon::OCaml => 2048,
    };
    let longest = vec![b'x'; room];
    bench.dom0.write(&node, &longest)?;
    same("longest", bench.dom0.read(&node)?, Some(longest))?;
    match (bench.daemon(), bench.dom0.write(&node, &vec![b'x'; room + 1])) {
        (Daemon::C, Err(StoreError::TooLong { .. })) => Ok(()),
        (Daemon::OCaml, more) => refused("one byte more", more, &ErrorCode::TooBig),
        (Daemon::C, other) => Err(Trouble::Failed(format!("one byte more: {other:?}"))),
    }
}

fn write_makes_what_is_missing_above(bench: &Bench<'_>) -> Verdict {
    bench.dom0.write(&bench.at("x/y/z")?, b"deep")?;
    same("above", bench.dom0.read(&bench.at("x")?)?, Some(Vec::new()))?;
    same("list", bench.dom0.list(&bench.at("x")?)?, Some(vec!["y".to_owned()]))
}

fn mkdir_keeps_a_value(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("kept")?;
    bench.dom0.mkdir(&node)?;
    same("new", bench.dom0.read(&node)?, Some(Vec::new()))?;
    bench.dom0.write(&node, b"v")?;
    bench.dom0.mkdir(&node)?;
    same("again", bench.dom0.read(&node)?, Some(b"v".to_vec()))?;
    bench.dom0.mkdir(&bench.at("far/below")?)?;
    same("above", bench.dom0.read(&bench.at("far")?)?, Some(Vec::new()))
}

fn rm_takes_all_below(bench: &Bench<'_>) -> Verdict {
    for below in ["t/a/b", "t/a/c", "t/d", "u"] {
        bench.dom0.write(&bench.at(below)?, b"1")?;
    }
    bench.dom0.rm(&bench.at("t")?)?;
    for below in ["t", "t/a", "t/a/b", "t/d"] {
        same(below, bench.dom0.read(&bench.at(below)?)?, None)?;
    }
    same("left", bench.dom0.list(&bench.root)?, Some(vec!["u".to_owned()]))
}

fn rm_of_nothing_is_fine(bench: &Bench<'_>) -> Verdict {
    bench.dom0.rm(&bench.at("nothing")?)?;
    bench.dom0.rm(&bench.at("nothing/below/nothing")?)?;
    // xenstored itself minds when the node above is missing too.
    let deep = bench.at("nothing/below")?;
    refused("bare request", bench.dom0.request(&Request::rm(&deep)), &ErrorCode::NoEntry)
}

fn only_oxenstored_removes_the_root(bench: &Bench<'_>) -> Verdict {
    let mut outcome = None;
    let aborted: Verdict = bench.dom0.try_transaction(|t| {
        let removed = t.request(&Request::rm(&XsPath::root()));
        outcome = Some((removed, t.list(&XsPath::root())?));
        Err(Trouble::Skip("nothing of this may be committed"))
    });
    match (bench.daemon(), outcome, aborted) {
        (Daemon::C, Some((removed, _)), _) => refused("rm", removed, &ErrorCode::Invalid)?,
        (Daemon::OCaml, Some((Ok(_), Some(left))), _) => same("left in the transaction", left, vec![])?,
        other => return Err(Trouble::Failed(format!("{other:?}"))),
    }
    let list = bench.dom0.list(&XsPath::root())?.unwrap_or_default();
    same("/tool is there", list.contains(&"tool".to_owned()), true)
}

fn children_come_in_order(bench: &Bench<'_>) -> Verdict {
    for name in ["b", "c", "a"] {
        bench.dom0.write(&bench.at(name)?, b"")?;
    }
    let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let (made, again) = match bench.daemon() {
        // That of their creation.
        Daemon::C => (["b", "c", "a"], ["c", "a", "b"]),
        Daemon::OCaml => (["a", "b", "c"], ["a", "b", "c"]),
    };
    same("made", bench.dom0.list(&bench.root)?, list(&made))?;
    bench.dom0.rm(&bench.at("b")?)?;
    bench.dom0.write(&bench.at("b")?, b"")?;
    same("made again", bench.dom0.list(&bench.root)?, list(&again))?;
    same("none", bench.dom0.list(&bench.at("a")?)?, list(&[]))
}

fn a_long_list_comes_whole(bench: &Bench<'_>) -> Verdict {
    let names: Vec<String> = (0..900).map(|n| format!("child-{n:04}")).collect();
    let requests: Result<Vec<_>, Trouble> =
        names.iter().map(|name| Ok(Request::mkdir(&bench.at(&format!("long/{name}"))?))).collect();
    bench.dom0.request_all(&requests?)?;
    let long = bench.at("long")?;
    let bare = bench.dom0.request(&Request::directory(&long));
    match (bench.daemon(), bench.dom0.is_device()) {
        (Daemon::C, _) => refused("one message", bare, &ErrorCode::TooBig)?,
        // One message on a socket, longer than the protocol allows.
        (Daemon::OCaml, false) => same("one message", bare?.len(), names.len() * "child-0000 ".len())?,
        (Daemon::OCaml, true) => {
            refused("one message", bare, &ErrorCode::TooBig)?;
            return refused("parts", bench.dom0.list(&long), &ErrorCode::NotImplemented);
        }
    }
    same("all", bench.dom0.list(&long)?, Some(names))
}

fn permissions_are_read_back(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("guarded")?;
    bench.dom0.write(&node, b"")?;
    for access in [Access::Read, Access::Write, Access::Both, Access::None] {
        let permissions = Permissions::owned_by(DomId::DOM0).others(access).allow(DomId::DOM0, Access::Read);
        bench.dom0.set_perms(&node, &permissions)?;
        same("permissions", bench.dom0.get_perms(&node)?, Some(permissions))?;
    }
    Ok(())
}

fn new_nodes_inherit_permissions(bench: &Bench<'_>) -> Verdict {
    let open = Permissions::owned_by(DomId::DOM0).others(Access::Read);
    bench.dom0.write(&bench.at("open")?, b"")?;
    bench.dom0.set_perms(&bench.at("open")?, &open)?;
    bench.dom0.write(&bench.at("open/a/b")?, b"")?;
    same("below", bench.dom0.get_perms(&bench.at("open/a/b")?)?, Some(open.clone()))?;
    bench.dom0.set_perms(&bench.at("open")?, &Permissions::owned_by(DomId::DOM0))?;
    same("stays", bench.dom0.get_perms(&bench.at("open/a")?)?, Some(open))
}

fn relative_paths_are_below_the_domain(bench: &Bench<'_>) -> Verdict {
    let path = RelPath::new("outrigger-conformance-rel/x").map_err(StoreError::from)?;
    let absolute = path.of_domain(DomId::DOM0).map_err(StoreError::from)?;
    bench.dom0.write(&path, b"rel")?;
    let found = bench.dom0.read(&absolute)?;
    bench.dom0.rm(&RelPath::new("outrigger-conformance-rel").map_err(StoreError::from)?)?;
    same("value", found, Some(b"rel".to_vec()))
}

fn a_batch_goes_on_behind_an_error(bench: &Bench<'_>) -> Verdict {
    let (one, two, missing) = (bench.at("one")?, bench.at("two")?, bench.at("missing")?);
    let requests = [Request::write(&one, b"1"), Request::read(&missing), Request::write(&two, b"2")];
    refused("batch", bench.dom0.request_all(&requests), &ErrorCode::NoEntry)?;
    same("before", bench.dom0.read(&one)?, Some(b"1".to_vec()))?;
    same("behind", bench.dom0.read(&two)?, Some(b"2".to_vec()))
}

fn numbers_and_texts_are_checked(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("value")?;
    let is_bad = |result: Result<(), StoreError>| matches!(result, Err(StoreError::BadValue { .. }));
    bench.dom0.write(&node, b"17")?;
    same("number", bench.dom0.read_number(&node)?, Some(17))?;
    same("text", bench.dom0.read_string(&node, 2)?, Some("17".to_owned()))?;
    same("long", is_bad(bench.dom0.read_string(&node, 1).map(drop)), true)?;
    for bad in [&b"+17"[..], b"", b"1\0", b"18446744073709551616"] {
        bench.dom0.write(&node, bad)?;
        same("not a number", is_bad(bench.dom0.read_number(&node).map(drop)), true)?;
    }
    bench.dom0.write(&node, b"a\nb")?;
    same("control character", is_bad(bench.dom0.read_string(&node, 9).map(drop)), true)
}
