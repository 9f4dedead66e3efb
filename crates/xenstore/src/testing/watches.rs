use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, PATIENCE, Trouble, Verdict, cases, first_event, next_path, refused, same};
use crate::wire::ErrorCode;
use crate::{Access, Permissions, RelPath, Request, SpecialWatch, Store, StoreError, XsPath};
use xen_types::DomId;

cases![
    a_watch_fires_when_it_is_set,
    a_watch_fires_for_changes_at_and_below,
    names_that_only_begin_alike_do_not_fire,
    rm_above_fires_with_the_watched_path,
    rm_below_fires_once_for_the_top,
    permissions_fire,
    mkdir_fires_only_for_a_new_node,
    a_transaction_fires_at_its_commit,
    an_aborted_transaction_fires_nothing,
    every_token_gets_its_event,
    a_relative_watch_gives_relative_paths @ Host,
    special_events_can_be_watched,
    the_same_watch_twice_is_refused,
    an_ended_watch_is_silent,
    waiting_for_a_value_ends_with_it,
    waiting_ends_at_its_deadline,
    callbacks_get_events,
];

fn a_watch_fires_when_it_is_set(bench: &Bench<'_>) -> Verdict {
    let missing = bench.at("missing")?;
    let watch = bench.dom0.watch(&missing)?;
    same("path", next_path(&watch)?, missing.to_string())
}

fn a_watch_fires_for_changes_at_and_below(bench: &Bench<'_>) -> Verdict {
    let (node, below) = (bench.at("node")?, bench.at("node/a/b")?);
    let watch = bench.dom0.watch(&node)?;
    first_event(&watch)?;
    let other = bench.another()?;
    other.write(&node, b"1")?;
    same("itself", next_path(&watch)?, node.to_string())?;
    other.write(&below, b"2")?;
    same("below", next_path(&watch)?, below.to_string())?;
    same("nothing else", bench.settle(&bench.dom0, &watch)?, vec![])
}

fn names_that_only_begin_alike_do_not_fire(bench: &Bench<'_>) -> Verdict {
    let watch = bench.dom0.watch(&bench.at("node")?)?;
    first_event(&watch)?;
    bench.dom0.write(&bench.at("node2")?, b"")?;
    bench.dom0.write(&bench.at("other/node")?, b"")?;
    same("nothing", bench.settle(&bench.dom0, &watch)?, vec![])
}

fn rm_above_fires_with_the_watched_path(bench: &Bench<'_>) -> Verdict {
    let deep = bench.at("a/b/c")?;
    bench.dom0.write(&deep, b"")?;
    let watch = bench.dom0.watch(&deep)?;
    first_event(&watch)?;
    bench.dom0.rm(&bench.at("a")?)?;
    same("events", bench.settle(&bench.dom0, &watch)?, vec![deep.to_string()])
}

fn rm_below_fires_once_for_the_top(bench: &Bench<'_>) -> Verdict {
    let top = bench.at("w/top")?;
    for name in ["w/top/a", "w/top/b/c"] {
        bench.dom0.write(&bench.at(name)?, b"")?;
    }
    let watch = bench.dom0.watch(&bench.at("w")?)?;
    first_event(&watch)?;
    bench.dom0.rm(&top)?;
    same("events", bench.settle(&bench.dom0, &watch)?, vec![top.to_string()])
}

fn permissions_fire(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    bench.dom0.write(&node, b"")?;
    let watch = bench.dom0.watch(&node)?;
    first_event(&watch)?;
    bench.dom0.set_perms(&node, &Permissions::owned_by(DomId::DOM0).others(Access::Read))?;
    same("events", bench.settle(&bench.dom0, &watch)?, vec![node.to_string()])
}

fn mkdir_fires_only_for_a_new_node(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let watch = bench.dom0.watch(&node)?;
    first_event(&watch)?;
    bench.dom0.mkdir(&node)?;
    same("new", bench.settle(&bench.dom0, &watch)?, vec![node.to_string()])?;
    bench.dom0.mkdir(&node)?;
    same("there", bench.settle(&bench.dom0, &watch)?, vec![])
}

fn a_transaction_fires_at_its_commit(bench: &Bench<'_>) -> Verdict {
    let (a, b) = (bench.at("w/a")?, bench.at("w/b")?);
    let watch = bench.dom0.watch(&bench.at("w")?)?;
    first_event(&watch)?;
    let early = bench.dom0.try_transaction(|t| {
        t.write(&a, b"1")?;
        t.write(&a, b"2")?;
        t.write(&b, b"3")?;
        bench.settle(&bench.dom0, &watch)
    })?;
    same("before", early, vec![])?;
    let mut events = bench.settle(&bench.dom0, &watch)?;
    events.sort();
    // oxenstored sends one for each request; the client keeps one of those that are the same.
    same("events", events, vec![a.to_string(), b.to_string()])
}

fn an_aborted_transaction_fires_nothing(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let watch = bench.dom0.watch(&node)?;
    first_event(&watch)?;
    let aborted: Result<(), Trouble> = bench.dom0.try_transaction(|t| {
        t.write(&node, b"1")?;
        Err(Trouble::Skip("on purpose"))
    });
    same("aborted", aborted.is_err(), true)?;
    same("events", bench.settle(&bench.dom0, &watch)?, vec![])
}

fn every_token_gets_its_event(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let (one, two) = (bench.dom0.watch(&node)?, bench.another()?.watch(&node)?);
    let three = bench.dom0.watch(&XsPath::root())?;
    for watch in [&one, &two, &three] {
        first_event(watch)?;
    }
    bench.dom0.write(&node, b"1")?;
    for watch in [&one, &two] {
        same("path", next_path(watch)?, node.to_string())?;
    }
    // Others change nodes of a living host too.
    let deadline = Instant::now() + PATIENCE;
    while next_path(&three)? != node.as_str() {
        same("in time", Instant::now() < deadline, true)?;
    }
    Ok(())
}

fn a_relative_watch_gives_relative_paths(bench: &Bench<'_>) -> Verdict {
    let top = RelPath::new("outrigger-conformance-rel").map_err(StoreError::from)?;
    let below = top.join("x").map_err(StoreError::from)?;
    let watch = bench.dom0.watch(&top)?;
    same("first", next_path(&watch)?, top.to_string())?;
    bench.dom0.write(&below, b"1")?;
    let found = next_path(&watch);
    drop(watch);
    bench.dom0.rm(&top)?;
    same("below", found?, below.to_string())
}

fn special_events_can_be_watched(bench: &Bench<'_>) -> Verdict {
    for special in [SpecialWatch::IntroduceDomain, SpecialWatch::ReleaseDomain] {
        let watch = bench.dom0.watch(&special)?;
        same("first", next_path(&watch)?, special.to_string())?;
    }
    Ok(())
}

fn the_same_watch_twice_is_refused(bench: &Bench<'_>) -> Verdict {
    if bench.dom0.is_device() {
        return Err(Trouble::Skip("the kernel keeps the watches of its clients apart and lets it through"));
    }
    let node = bench.at("node")?;
    let set = Request::watch(&node, "outrigger-conformance-twice");
    let end = Request::unwatch(&node, "outrigger-conformance-twice");
    bench.dom0.request(&set)?;
    refused("second", bench.dom0.request(&set), &ErrorCode::Exists)?;
    bench.dom0.request(&end)?;
    refused("ended twice", bench.dom0.request(&end), &ErrorCode::NoEntry)
}

fn an_ended_watch_is_silent(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let (sender, receiver) = mpsc::channel();
    let watch = bench.dom0.watch(&node)?;
    first_event(&watch)?;
    let guard = watch.into_callback(move |event| {
        let _ = sender.send(event.is_ok());
    });
    guard.end()?;
    bench.dom0.write(&node, b"1")?;
    bench.dom0.read(&node)?;
    same("event", receiver.try_recv().ok(), None)
}

fn waiting_for_a_value_ends_with_it(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("state")?;
    let other = bench.another()?;
    let deadline = Instant::now() + PATIENCE;
    let (sender, asked) = mpsc::channel();
    let writer = thread::spawn({
        let node = node.clone();
        move || -> Result<(), StoreError> {
            for value in ["starting", "running"] {
                // The waiting side has looked and seen the value before.
                let _ = asked.recv_timeout(PATIENCE);
                other.write(&node, value.as_bytes())?;
            }
            Ok(())
        }
    });
    let found = bench.dom0.wait_for(&node, deadline, |value| {
        let _ = sender.send(());
        (value == Some(b"running")).then_some(7)
    });
    let written = writer.join().unwrap_or(Ok(()));
    same("found", found?, 7)?;
    Ok(written?)
}

fn waiting_ends_at_its_deadline(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("state")?;
    bench.dom0.write(&node, b"stuck")?;
    let deadline = Instant::now() + Duration::from_millis(50);
    let found = bench.dom0.wait_for(&node, deadline, |value| (value != Some(b"stuck")).then_some(()));
    match found {
        Err(StoreError::NotReached { last, .. }) => same("last", last.as_str(), "\"stuck\""),
        other => Err(Trouble::Failed(format!("{other:?}"))),
    }
}

fn callbacks_get_events(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let (sender, receiver) = mpsc::channel();
    let store = bench.dom0.clone();
    let asked = Arc::new(node.clone());
    let guard = bench.dom0.watch(&node)?.into_callback(move |event| {
        // Only the reading thread itself must not ask.
        let inside = matches!(store.read(&*asked), Err(StoreError::InCallback { .. }));
        let _ = sender.send(event.map(|event| (event.path.to_string(), inside)).ok());
    });
    bench.dom0.write(&node, b"1")?;
    // The event of the write comes on the reading thread, while an earlier one may come on this.
    loop {
        let event = receiver.recv_timeout(PATIENCE).ok().flatten();
        let (path, inside) =
            event.ok_or_else(|| Trouble::Failed("no event on the reading thread".to_owned()))?;
        same("path", path, node.to_string())?;
        if inside {
            break;
        }
    }
    Ok(guard.end()?)
}
