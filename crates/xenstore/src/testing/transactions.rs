use core::cell::Cell;
use std::thread;

use super::{Bench, Daemon, Trouble, Verdict, cases, refused, same};
use crate::wire::ErrorCode;
use crate::{Request, Store, StoreError};

cases![
    a_commit_shows_all_at_once,
    a_failed_body_leaves_nothing,
    a_read_that_went_stale_is_tried_again,
    a_name_made_beside_is_no_conflict_for_oxenstored,
    changes_elsewhere_do_not_matter,
    a_transaction_sees_its_own_changes,
    rm_in_a_transaction_counts_at_the_commit,
    made_and_removed_in_one_transaction_is_nothing,
    a_batch_in_a_transaction_is_committed,
    counting_in_threads_loses_nothing,
    conflicts_without_end_are_given_up,
    a_write_that_changes_nothing_is_no_conflict_for_oxenstored,
];

fn a_commit_shows_all_at_once(bench: &Bench<'_>) -> Verdict {
    let (a, b) = (bench.at("a")?, bench.at("b/c")?);
    let other = bench.another()?;
    let seen = bench.dom0.transaction(|t| {
        t.write(&a, b"1")?;
        t.write(&b, b"2")?;
        Ok((other.read(&a)?, other.read(&b)?))
    })?;
    same("before", seen, (None, None))?;
    same("a", other.read(&a)?, Some(b"1".to_vec()))?;
    same("b", other.read(&b)?, Some(b"2".to_vec()))
}

fn a_failed_body_leaves_nothing(bench: &Bench<'_>) -> Verdict {
    let a = bench.at("a")?;
    let result: Result<(), Trouble> = bench.dom0.try_transaction(|t| {
        t.write(&a, b"1")?;
        Err(Trouble::Skip("on purpose"))
    });
    same("own error", matches!(result, Err(Trouble::Skip("on purpose"))), true)?;
    same("value", bench.dom0.read(&a)?, None)
}

fn a_read_that_went_stale_is_tried_again(bench: &Bench<'_>) -> Verdict {
    let (count, seen) = (bench.at("count")?, bench.at("seen")?);
    bench.dom0.write(&count, b"1")?;
    let other = bench.another()?;
    let tries = Cell::new(0);
    bench.dom0.transaction(|t| {
        tries.set(tries.get() + 1);
        let value = t.read(&count)?.unwrap_or_default();
        if tries.get() == 1 {
            other.write(&count, b"2")?;
        }
        t.write(&seen, &value)
    })?;
    same("tries", tries.get(), 2)?;
    same("seen", bench.dom0.read(&seen)?, Some(b"2".to_vec()))
}

fn a_name_made_beside_is_no_conflict_for_oxenstored(bench: &Bench<'_>) -> Verdict {
    let (mine, theirs) = (bench.at("dir/mine")?, bench.at("dir/theirs")?);
    bench.dom0.mkdir(&bench.at("dir")?)?;
    let other = bench.another()?;
    let tries = Cell::new(0);
    bench.dom0.transaction(|t| {
        tries.set(tries.get() + 1);
        t.write(&mine, b"")?;
        if tries.get() == 1 { other.write(&theirs, b"") } else { Ok(()) }
    })?;
    // oxenstored carries out a transaction's requests once more on what others have made meanwhile, and commits that if
    // each gets the same answer as before.
    let (wanted, order) = match bench.daemon() {
        Daemon::C => (2, ["theirs", "mine"]),
        Daemon::OCaml => (1, ["mine", "theirs"]),
    };
    same("tries", tries.get(), wanted)?;
    let list = bench.dom0.list(&bench.at("dir")?)?.unwrap_or_default();
    same("both", list, order.map(str::to_owned).to_vec())
}

fn changes_elsewhere_do_not_matter(bench: &Bench<'_>) -> Verdict {
    let (mine, theirs) = (bench.at("mine")?, bench.at("theirs")?);
    bench.dom0.write(&mine, b"")?;
    bench.dom0.write(&theirs, b"")?;
    let other = bench.another()?;
    let tries = Cell::new(0);
    bench.dom0.transaction(|t| {
        tries.set(tries.get() + 1);
        t.write(&mine, b"x")?;
        other.write(&theirs, b"y")
    })?;
    same("tries", tries.get(), 1)
}

fn a_transaction_sees_its_own_changes(bench: &Bench<'_>) -> Verdict {
    let (a, b) = (bench.at("a")?, bench.at("a/b")?);
    bench.dom0.write(&a, b"old")?;
    let (value, list) = bench.dom0.transaction(|t| {
        t.write(&a, b"new")?;
        t.write(&b, b"")?;
        Ok((t.read(&a)?, t.list(&a)?))
    })?;
    same("value", value, Some(b"new".to_vec()))?;
    same("list", list, Some(vec!["b".to_owned()]))
}

fn rm_in_a_transaction_counts_at_the_commit(bench: &Bench<'_>) -> Verdict {
    let (tree, leaf) = (bench.at("tree")?, bench.at("tree/leaf")?);
    bench.dom0.write(&leaf, b"1")?;
    let other = bench.another()?;
    let (inside, outside) = bench.dom0.transaction(|t| {
        t.rm(&tree)?;
        Ok((t.read(&leaf)?, other.read(&leaf)?))
    })?;
    same("inside", inside, None)?;
    same("outside", outside, Some(b"1".to_vec()))?;
    same("after", other.read(&tree)?, None)?;
    same("list", other.list(&bench.root)?, Some(Vec::new()))
}

fn made_and_removed_in_one_transaction_is_nothing(bench: &Bench<'_>) -> Verdict {
    let (tree, leaf) = (bench.at("tree")?, bench.at("tree/leaf")?);
    bench.dom0.transaction(|t| {
        t.write(&leaf, b"1")?;
        t.rm(&tree)
    })?;
    same("tree", bench.dom0.read(&tree)?, None)?;
    same("list", bench.dom0.list(&bench.root)?, Some(Vec::new()))
}

fn a_batch_in_a_transaction_is_committed(bench: &Bench<'_>) -> Verdict {
    let paths: Result<Vec<_>, Trouble> = (0..150).map(|n| bench.at(&format!("device/{n}/key"))).collect();
    let paths = paths?;
    let requests: Vec<_> = paths.iter().map(|path| Request::write(path, b"value")).collect();
    bench.dom0.transaction(|t| t.request_all(&requests))?;
    for path in &paths {
        same(path.as_str(), bench.dom0.read(path)?, Some(b"value".to_vec()))?;
    }
    Ok(())
}

fn counting_in_threads_loses_nothing(bench: &Bench<'_>) -> Verdict {
    const THREADS: u64 = 4;
    const EACH: u64 = 10;
    let count = bench.at("count")?;
    bench.dom0.write(&count, b"0")?;
    let store = &bench.dom0;
    let failed = thread::scope(|scope| {
        let count = &count;
        let add = move || -> Result<(), StoreError> {
            for _ in 0..EACH {
                store.transaction(|t| {
                    let now = t.read_number(count)?.unwrap_or(0);
                    t.write(count, (now + 1).to_string().as_bytes())
                })?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(add)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()?.err()).next()
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    same("count", bench.dom0.read_number(&count)?, Some(THREADS * EACH))
}

fn conflicts_without_end_are_given_up(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let other = bench.another()?;
    other.write(&node, b"")?;
    let tries = Cell::new(0);
    let result = bench.dom0.transaction(|t| {
        tries.set(tries.get() + 1);
        t.read(&node)?;
        other.write(&node, tries.get().to_string().as_bytes())?;
        t.write(&node, b"mine")
    });
    match result {
        Err(StoreError::Conflict { .. }) => {}
        other => return Err(Trouble::Failed(format!("{other:?}"))),
    }
    // A refusal within is no conflict.
    let missing = bench.at("missing")?;
    let outcome = bench.dom0.transaction(|t| t.request(&Request::read(&missing)));
    refused("within", outcome, &ErrorCode::NoEntry)
}

fn a_write_that_changes_nothing_is_no_conflict_for_oxenstored(bench: &Bench<'_>) -> Verdict {
    let node = bench.at("node")?;
    let other = bench.another()?;
    other.write(&node, b"same")?;
    let tries = Cell::new(0);
    bench.dom0.transaction(|t| {
        tries.set(tries.get() + 1);
        t.read(&node)?;
        if tries.get() < 4 {
            other.write(&node, b"same")?;
        }
        t.write(&node, b"mine")
    })?;
    let wanted = match bench.daemon() {
        Daemon::C => 4,
        Daemon::OCaml => 1,
    };
    same("tries", tries.get(), wanted)
}
