//! How busy the machine is while something runs.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often memory is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What was seen; nothing where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// The share of all processors' time that was used, from 0 to 1.
    pub(crate) busy: Option<f64>,
    /// The most memory in use at once, in KiB.
    pub(crate) memory_kib: Option<u64>,
}

impl Load {
    /// The share for people.
    pub(crate) fn busy(&self) -> String {
        self.busy.map_or_else(|| "?".to_owned(), |busy| format!("{:.0} %", busy * 100.0))
    }

    /// The memory for people.
    pub(crate) fn memory(&self) -> String {
        // Of a few GiB, tenths are enough.
        self.memory_kib
            .map_or_else(|| "?".to_owned(), |kib| format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)))
    }
}

/// Looks at the machine until it is stopped.
pub(crate) struct Meter {
    begun: Option<Times>,
    stop: Sender<()>,
    memory: JoinHandle<Option<u64>>,
}

impl Meter {
    /// Begins.
    pub(crate) fn start() -> Self {
        let (stop, stopped) = mpsc::channel();
        let memory = thread::spawn(move || {
            let mut most = None;
            loop {
                most = most.max(fs::read_to_string("/proc/meminfo").ok().and_then(|text| used_kib(&text)));
                match stopped.recv_timeout(EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return most,
                }
            }
        });
        Self { begun: Times::now(), stop, memory }
    }

    /// Ends, and says what was seen.
    pub(crate) fn stop(self) -> Load {
        let busy = self.begun.zip(Times::now()).and_then(|(before, now)| before.busy_until(now));
        // It ends all the same when it has ended already.
        let _ = self.stop.send(());
        Load { busy, memory_kib: self.memory.join().ok().flatten() }
    }
}

/// What all processors have done since the machine began, in ticks.
#[derive(Debug, Clone, Copy)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; guests' time is part of the
    /// first two.
    fn parse(stat: &str) -> Option<Self> {
        let words = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
    }

    fn busy_until(self, now: Self) -> Option<f64> {
        let (all, idle) = (now.all.checked_sub(self.all)?, now.idle.checked_sub(self.idle)?);
        (all > 0).then(|| 1.0 - idle as f64 / all as f64)
    }
}

/// The memory that `/proc/meminfo` says is in use and cannot be had at once.
fn used_kib(meminfo: &str) -> Option<u64> {
    let value = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    value("MemTotal:")?.checked_sub(value("MemAvailable:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_of_the_time_between() {
        let before = Times::parse("cpu  100 0 50 800 50 0 0 0 7 7\ncpu0 1\n").unwrap();
        let now = Times::parse("cpu  190 0 60 810 50 0 0 0 7 7\n").unwrap();
        let busy = before.busy_until(now).unwrap();
        assert!((busy - 100.0 / 110.0).abs() < 1e-9, "{busy}");
        assert!(before.busy_until(before).is_none() && Times::parse("intr 1").is_none());
    }

    #[test]
    fn memory_in_use_is_what_cannot_be_had() {
        assert_eq!(used_kib("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n"), Some(600));
        assert_eq!(used_kib("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn machine_is_looked_at() {
        let load = Meter::start().stop();
        assert!(load.memory_kib.is_some_and(|kib| kib > 0), "{load:?}");
    }
}
