//! The daemon's own messages, written by a thread: the disk of its log, or of the journal, may hang like any other, and
//! consoles do not wait for it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Messages that may wait for the thread.
const WAITING_MAX: usize = 1024;

/// The way to the thread. Each copy is a writer of whole messages.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    todo: SyncSender<Todo>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Todo {
    Write(Vec<u8>),
    /// Say that all before is written.
    Confirm(Sender<()>),
}

impl Messages {
    /// Starts the thread, which writes to `output`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (todo, receiver) = sync_channel(WAITING_MAX);
        let left_out = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&left_out);
        std::thread::Builder::new()
            .name("messages".to_owned())
            .spawn(move || write_all(&receiver, &count, output))?;
        Ok(Self { todo, left_out })
    }

    /// Waits until all messages are written, at most this long.
    pub(crate) fn finish(&self, patience: Duration) {
        let (confirm, confirmed) = channel();
        if self.todo.try_send(Todo::Confirm(confirm)).is_ok() {
            // Whether it is true or too late, this is the end.
            let _ = confirmed.recv_timeout(patience);
        }
    }
}

impl Write for Messages {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        if self.todo.try_send(Todo::Write(message.to_vec())).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(todo: &Receiver<Todo>, left_out: &AtomicU64, mut output: impl Write) {
    for next in todo {
        match next {
            // Nobody could be told of a failure.
            Todo::Write(message) => drop(output.write_all(&message)),
            Todo::Confirm(confirm) => drop(confirm.send(())),
        }
        let count = left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            let _ = writeln!(
                output,
                "outrigger-consoled: {count} messages were left out, since the log was too slow"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// An output of which each write waits for a word.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_hangs_stops_nobody_and_lacks_counted_messages() {
        let (go, wait) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut messages = Messages::start(Slow(wait, Arc::clone(&written))).unwrap();
        for _ in 0..3 * WAITING_MAX {
            messages.write_all(b"message\n").unwrap();
        }
        messages.finish(Duration::ZERO);
        assert!(written.lock().unwrap().is_empty());
        drop(go);
        // The queue may still be full.
        let deadline = std::time::Instant::now() + PATIENCE;
        let counted = |text: &str| {
            let number = |line: &str| {
                line.strip_prefix("outrigger-consoled: ")?.split(' ').next()?.parse::<usize>().ok()
            };
            text.lines().filter_map(number).sum::<usize>()
        };
        loop {
            messages.finish(PATIENCE);
            let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
            let whole = text.lines().filter(|line| *line == "message").count();
            if whole + counted(&text) == 3 * WAITING_MAX {
                assert!(whole >= WAITING_MAX, "{whole} messages were written");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{whole} messages");
        }
    }
}
