//! What a domain can cause in dom0, and how much of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sim::Host;

/// Counts the lines of the daemon's own log.
struct Count(Arc<AtomicU64>);

impl tracing::Subscriber for Count {
    fn enabled(&self, about: &tracing::Metadata<'_>) -> bool {
        *about.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_frontend_that_comes_and_goes_does_not_fill_the_daemons_log() {
    let lines = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Count(Arc::clone(&lines)), || {
        let mut host = Host::new();
        host.rest = Duration::from_millis(1);
        let (id, _) = host.domain(17, "null");
        for number in 1..=9 {
            host.secondary(id, number, "xenconsoled", "null");
        }
        host.turn();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            for number in 1..=9 {
                host.frontend(id, number, 8 + number, 5 + number);
            }
            host.turn();
            for number in 1..=9 {
                host.front_state(id, number, "1");
            }
            host.turn();
        }
    });
    let lines = lines.load(Ordering::Relaxed);
    // One of them says that others are left out.
    assert_eq!(lines, 65, "lines of one domain with nine consoles");
}
