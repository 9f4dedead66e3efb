//! Tells xenstore how far the start is, beside the start: each write is a journey to dom0 and back, on which QEMU would
//! have to wait.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use contract::Feature;
use xen_types::DomId;
use xenstore::Connection;

use crate::store;

/// The way to the thread that tells.
#[derive(Debug)]
pub(crate) struct Teller {
    steps: Sender<&'static str>,
    thread: JoinHandle<()>,
}

impl Teller {
    /// Begins with who is here and what it can do: what every agent can, and `more`.
    pub(crate) fn start(target: DomId, more: Vec<Feature>) -> Self {
        let (steps, receiver) = channel();
        let thread = std::thread::spawn(move || tell(target, more, &receiver));
        Self { steps, thread }
    }

    /// Tells that this step has begun, soon; one that is over before it is told is not told.
    pub(crate) fn step(&self, name: &'static str) {
        // The thread has gone when xenstore did not answer; the start meets the same.
        let _ = self.steps.send(name);
    }

    /// Waits until all is told, so that the last step that is seen is the one that failed.
    pub(crate) fn finish(self) {
        drop(self.steps);
        let _ = self.thread.join();
    }
}

fn tell(target: DomId, more: Vec<Feature>, steps: &Receiver<&'static str>) {
    let Ok(store) = Connection::open_path(Path::new(store::DEVICE)) else { return };
    if store::announce(&store, target, more).is_err() {
        return;
    }
    while let Ok(mut step) = steps.recv() {
        while let Ok(newer) = steps.try_recv() {
            step = newer;
        }
        if store::tell_step(&store, target, step).is_err() {
            return;
        }
    }
}
