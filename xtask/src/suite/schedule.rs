//! Does pieces of work side by side, those that take longest first.

use std::sync::{Condvar, Mutex, PoisonError};

/// Something to do that another piece does not wait for.
pub(crate) struct Piece<'a> {
    /// How long it takes, in seconds, as far as anybody knows.
    pub(crate) expected: f64,
    /// How many hosts it runs at once.
    pub(crate) hosts: usize,
    /// Does it, and gives what is still to do of it.
    pub(crate) work: Box<dyn FnOnce() -> Vec<Piece<'a>> + Send + 'a>,
}

/// What is not begun yet, and how many hosts run.
struct Queue<'a> {
    waiting: Vec<Piece<'a>>,
    running: usize,
}

/// Does all pieces, with `jobs` hosts at once; a piece that needs more of them runs alone.
pub(crate) fn side_by_side(jobs: usize, pieces: Vec<Piece<'_>>) {
    let jobs = jobs.max(1);
    let queue = Mutex::new(Queue { waiting: pieces, running: 0 });
    let news = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(piece) = next(&queue, &news, jobs) {
                    // What a piece gives back is counted before it counts as done. A piece that panics is one less all the
                    // same, and its panic comes out of the scope.
                    let done = Done { queue: &queue, news: &news, hosts: piece.hosts };
                    let more = (piece.work)();
                    queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.extend(more);
                    drop(done);
                }
            });
        }
    });
}

/// Counts a piece as done when it is dropped.
struct Done<'q, 'a> {
    queue: &'q Mutex<Queue<'a>>,
    news: &'q Condvar,
    hosts: usize,
}

impl Drop for Done<'_, '_> {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).running -= self.hosts;
        self.news.notify_all();
    }
}

/// The longest piece that waits and fits; nothing when none waits and none that is being done can give more.
fn next<'a>(queue: &Mutex<Queue<'a>>, news: &Condvar, jobs: usize) -> Option<Piece<'a>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let free = jobs.saturating_sub(queue.running);
        let is_alone = queue.running == 0;
        let fitting = queue.waiting.iter().enumerate().filter(|(_, piece)| is_alone || piece.hosts <= free);
        let longest = fitting.max_by(|(_, a), (_, b)| a.expected.total_cmp(&b.expected));
        if let Some((at, _)) = longest {
            let piece = queue.waiting.swap_remove(at);
            queue.running += piece.hosts;
            return Some(piece);
        }
        if queue.running == 0 {
            return None;
        }
        queue = news.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn longest_come_first_and_what_is_left_comes_too() {
        let done = Mutex::new(Vec::new());
        let note = |name: &'static str| done.lock().unwrap().push(name);
        let piece = |name, expected, more: &'static [&'static str]| Piece {
            expected,
            hosts: 1,
            work: Box::new(move || {
                note(name);
                let rest = more.iter().map(|name| Piece {
                    expected: 0.5,
                    hosts: 1,
                    work: Box::new(move || {
                        note(name);
                        Vec::new()
                    }),
                });
                rest.collect()
            }),
        };
        side_by_side(
            1,
            vec![piece("short", 1.0, &[]), piece("long", 9.0, &["rest"]), piece("middle", 5.0, &[])],
        );
        assert_eq!(*done.lock().unwrap(), ["long", "middle", "short", "rest"]);
    }

    /// Whether two pieces of so many hosts each run at the same time where `jobs` hosts may.
    fn meet(jobs: usize, hosts: usize) -> bool {
        let (to_first, from_second) = mpsc::channel();
        let met = Mutex::new(false);
        let note = &met;
        let first = Piece {
            expected: 2.0,
            hosts,
            work: Box::new(move || {
                *note.lock().unwrap() = from_second.recv_timeout(Duration::from_millis(500)).is_ok();
                Vec::new()
            }),
        };
        let second = Piece {
            expected: 1.0,
            hosts,
            work: Box::new(move || {
                // The first may be over.
                let _ = to_first.send(());
                Vec::new()
            }),
        };
        side_by_side(jobs, vec![first, second]);
        met.into_inner().unwrap()
    }

    #[test]
    fn no_more_hosts_run_at_once_than_are_allowed() {
        assert!(meet(2, 1));
        assert!(!meet(2, 2));
        assert!(!meet(1, 2), "a piece that needs more runs alone");
    }
}
