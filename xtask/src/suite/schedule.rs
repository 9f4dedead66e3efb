//! Does pieces of work side by side, those that take longest first.

use std::sync::{Condvar, Mutex, PoisonError};

/// Something to do that another piece does not wait for.
pub(crate) struct Piece<'a> {
    /// How long it takes, in seconds, as far as anybody knows.
    pub(crate) expected: f64,
    /// Does it, and gives what is still to do of it.
    pub(crate) work: Box<dyn FnOnce() -> Vec<Piece<'a>> + Send + 'a>,
}

/// What is not begun yet, and how many pieces are being done.
struct Queue<'a> {
    waiting: Vec<Piece<'a>>,
    running: usize,
}

/// Does all pieces, `jobs` of them at once, each on a thread of its own.
pub(crate) fn side_by_side(jobs: usize, pieces: Vec<Piece<'_>>) {
    let queue = Mutex::new(Queue { waiting: pieces, running: 0 });
    let news = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(piece) = next(&queue, &news) {
                    // What a piece gives back is counted before it counts as done. A piece that panics is one less all the
                    // same, and its panic comes out of the scope.
                    let done = Done { queue: &queue, news: &news };
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
}

impl Drop for Done<'_, '_> {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).running -= 1;
        self.news.notify_all();
    }
}

/// The longest piece that waits; nothing when none waits and none that is being done can give more.
fn next<'a>(queue: &Mutex<Queue<'a>>, news: &Condvar) -> Option<Piece<'a>> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let longest =
            queue.waiting.iter().enumerate().max_by(|(_, a), (_, b)| a.expected.total_cmp(&b.expected));
        if let Some((at, _)) = longest {
            queue.running += 1;
            return Some(queue.waiting.swap_remove(at));
        }
        if queue.running == 0 {
            return None;
        }
        queue = news.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_come_first_and_what_is_left_comes_too() {
        let done = Mutex::new(Vec::new());
        let note = |name: &'static str| done.lock().unwrap().push(name);
        let piece = |name, expected, more: &'static [&'static str]| Piece {
            expected,
            work: Box::new(move || {
                note(name);
                more.iter()
                    .map(|name| Piece {
                        expected: 0.5,
                        work: Box::new(move || {
                            note(name);
                            Vec::new()
                        }),
                    })
                    .collect()
            }),
        };
        side_by_side(
            1,
            vec![piece("short", 1.0, &[]), piece("long", 9.0, &["rest"]), piece("middle", 5.0, &[])],
        );
        assert_eq!(*done.lock().unwrap(), ["long", "middle", "short", "rest"]);
    }

    #[test]
    fn pieces_are_done_at_the_same_time() {
        let both = std::sync::Barrier::new(2);
        let piece = || Piece {
            expected: 1.0,
            work: Box::new(|| {
                both.wait();
                Vec::new()
            }),
        };
        side_by_side(2, vec![piece(), piece()]);
    }
}
