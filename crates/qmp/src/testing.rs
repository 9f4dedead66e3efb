//! A QEMU that is played by a test, and the conformance suite that it passes as the real monitor does.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::commands::{QueryStatus, Status};
use crate::error::{ErrorClass, QmpError};
use crate::monitor::{Event, Events, Monitor, Request, run};

/// What a played QEMU does with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Play {
    /// Gives this back.
    Return(Value),
    /// Gives this back after it has told of these events.
    ReturnAfter(Vec<Event>, Value),
    /// Refuses: class and description.
    Refuse(ErrorClass, String),
    /// Never answers.
    Silence,
    /// The session is lost.
    Lose,
}

type Player = dyn FnMut(&str, &Value) -> Play + Send;

/// A monitor without a QEMU: a function answers. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct FakeMonitor {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    news: Condvar,
}

struct Inner {
    player: Box<Player>,
    asked: Vec<(String, Value)>,
    told: Vec<Told>,
    /// The number of the first entry of `told`.
    lost: bool,
}

#[derive(Clone)]
enum Told {
    Event(Event),
    Lost,
}

impl FakeMonitor {
    /// A monitor whose QEMU is played by a function of command and arguments.
    pub fn new(player: impl FnMut(&str, &Value) -> Play + Send + 'static) -> Self {
        let inner = Inner { player: Box::new(player), asked: Vec::new(), told: Vec::new(), lost: false };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), news: Condvar::new() }) }
    }

    /// A monitor that answers `query-status` with `running`, and everything else with nothing.
    #[must_use]
    pub fn agreeable() -> Self {
        Self::new(agreeable)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole between any two statements that hold the lock.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of an event.
    pub fn tell(&self, name: &str, data: Value) {
        self.lock().told.push(Told::Event(Event { name: name.to_owned(), data }));
        self.shared.news.notify_all();
    }

    /// Loses the session; it is not made anew.
    pub fn lose(&self) {
        let mut inner = self.lock();
        inner.lost = true;
        inner.told.push(Told::Lost);
        drop(inner);
        self.shared.news.notify_all();
    }

    /// All that was asked: commands with their arguments, null without any.
    #[must_use]
    pub fn asked(&self) -> Vec<(String, Value)> {
        self.lock().asked.clone()
    }
}

fn agreeable(command: &str, _: &Value) -> Play {
    match command {
        "query-status" => Play::Return(json!({"running": true, "status": "running", "singlestep": false})),
        _ => Play::Return(json!({})),
    }
}

impl Monitor for FakeMonitor {
    fn execute(&self, request: &Request, deadline: Instant) -> Result<Box<RawValue>, QmpError> {
        let command = request.command.clone();
        let arguments = match &request.arguments {
            Some(raw) => serde_json::from_str(raw.get())
                .map_err(|source| QmpError::BadRequest { command: command.clone(), source })?,
            None => Value::Null,
        };
        let mut inner = self.lock();
        if inner.lost {
            return Err(QmpError::NoSession { command, why: "the session is lost".to_owned() });
        }
        let play = (inner.player)(&command, &arguments);
        inner.asked.push((command.clone(), arguments));
        let value = match play {
            Play::Return(value) => value,
            Play::ReturnAfter(events, value) => {
                inner.told.extend(events.into_iter().map(Told::Event));
                self.shared.news.notify_all();
                value
            }
            Play::Refuse(class, description) => {
                return Err(QmpError::Refused { command, class, description });
            }
            Play::Silence => {
                // Only a loss of the session ends the wait before the deadline.
                while !inner.lost {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        return Err(QmpError::Timeout { command });
                    };
                    let waited = self.shared.news.wait_timeout(inner, left);
                    inner = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                return Err(QmpError::Lost { command, why: "the test has lost it".to_owned() });
            }
            Play::Lose => {
                drop(inner);
                self.lose();
                return Err(QmpError::Lost { command, why: "the test has lost it".to_owned() });
            }
        };
        serde_json::value::to_raw_value(&value).map_err(|source| QmpError::BadAnswer { command, source })
    }

    fn events(&self, names: &[&str]) -> Result<Box<dyn Events>, QmpError> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let from = self.lock().told.len();
        Ok(Box::new(FakeEvents { monitor: self.clone(), names, from }))
    }
}

struct FakeEvents {
    monitor: FakeMonitor,
    names: VecDeque<String>,
    from: usize,
}

impl Events for FakeEvents {
    fn next(&mut self, deadline: Instant) -> Result<Event, QmpError> {
        let event = || self.names.iter().cloned().collect::<Vec<_>>().join(" or ");
        let mut inner = self.monitor.lock();
        loop {
            while let Some(told) = inner.told.get(self.from).cloned() {
                self.from += 1;
                match told {
                    Told::Event(event) if self.names.is_empty() || self.names.contains(&event.name) => {
                        return Ok(event);
                    }
                    Told::Event(_) => {}
                    Told::Lost => {
                        return Err(QmpError::Lost {
                            command: event(),
                            why: "the test has lost it".to_owned(),
                        });
                    }
                }
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(QmpError::NoEvent { event: event() });
            };
            let waited = self.monitor.shared.news.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What has to be made for [`conformance`]: a monitor whose QEMU is played by a function.
pub trait Stage {
    /// A monitor whose QEMU is played so.
    fn monitor(&self, player: Box<Player>) -> Arc<dyn Monitor>;
    /// Has that QEMU tell of an event.
    fn tell(&self, name: &str, data: Value);
    /// Ends that QEMU's session.
    fn lose(&self);
}

/// What every monitor must do. Panics where one does not.
pub fn conformance(stage: &dyn Stage) {
    let soon = || Instant::now() + Duration::from_secs(20);
    let monitor = stage.monitor(Box::new(|command, arguments| match command {
        "device_del" => {
            let gone = Event { name: "DEVICE_DELETED".into(), data: json!({"device": arguments["id"]}) };
            Play::ReturnAfter(vec![gone], json!({}))
        }
        "eject" => Play::Refuse(ErrorClass::DeviceNotFound, "no\u{1b}[2J such\ndrive".into()),
        "query-version" => Play::Return(json!({"qemu": "new"})),
        "stop" => Play::Silence,
        "quit" => Play::Lose,
        other => agreeable(other, arguments),
    }));

    let status = run(&*monitor, &QueryStatus {}, soon()).expect("it answers");
    assert_eq!(status, Status { running: true, status: "running".into() });

    let refused = monitor.execute(&Request::new("eject"), soon()).expect_err("it refuses");
    assert!(refused.is_refused_as(&ErrorClass::DeviceNotFound), "{refused:?}");

    let bad = run(&*monitor, &crate::commands::QueryVersion {}, soon());
    assert!(matches!(bad, Err(QmpError::BadAnswer { .. })), "{bad:?}");

    let mut events = monitor.events(&["DEVICE_DELETED"]).expect("it can be subscribed to");
    stage.tell("STOP", Value::Null);
    stage.tell("DEVICE_DELETED", json!({"device": "other"}));
    let request = Request::with("device_del", &json!({"id": "nic1"})).expect("arguments");
    monitor.execute(&request, soon()).expect("it answers");
    let event = events.wait(soon(), |event| event.text("device") == Some("nic1")).expect("the event");
    assert_eq!(event.name, "DEVICE_DELETED");
    let none = events.next(Instant::now() + Duration::from_millis(20));
    assert!(matches!(none, Err(QmpError::NoEvent { .. })), "{none:?}");

    let slow = monitor.execute(&Request::new("stop"), Instant::now() + Duration::from_millis(50));
    assert!(matches!(slow, Err(QmpError::Timeout { .. })), "{slow:?}");
}

/// What every monitor must do when its session is lost. Panics where one does not.
pub fn conformance_after_loss(stage: &dyn Stage) {
    let soon = || Instant::now() + Duration::from_secs(20);
    let monitor = stage.monitor(Box::new(|command, arguments| match command {
        "quit" => Play::Lose,
        other => agreeable(other, arguments),
    }));
    run(&*monitor, &QueryStatus {}, soon()).expect("it answers");
    let mut events = monitor.events(&[]).expect("it can be subscribed to");
    let lost = monitor.execute(&Request::new("quit"), soon());
    assert!(matches!(lost, Err(QmpError::Lost { .. })), "{lost:?}");
    let lost = events.wait(soon(), |_| false);
    assert!(matches!(lost, Err(QmpError::Lost { .. })), "{lost:?}");

    let (arrives, arrived) = std::sync::mpsc::channel();
    let monitor = stage.monitor(Box::new(move |command, _| {
        if command == "query-status" {
            // Nobody listens any more once the test is over.
            let _ = arrives.send(());
        }
        Play::Silence
    }));
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| monitor.execute(&Request::new("query-status"), soon()));
        // A request that is made after the loss would be the next session's.
        arrived.recv_timeout(Duration::from_secs(20)).expect("the request");
        stage.lose();
        let lost = asked.join().expect("no panic");
        assert!(matches!(lost, Err(QmpError::Lost { .. } | QmpError::NoSession { .. })), "{lost:?}");
    });
}

/// The stage of [`FakeMonitor`].
#[derive(Default)]
pub struct FakeStage {
    current: Mutex<Option<FakeMonitor>>,
}

impl FakeStage {
    fn current(&self) -> FakeMonitor {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().expect("a monitor was made")
    }
}

impl Stage for FakeStage {
    fn monitor(&self, mut player: Box<Player>) -> Arc<dyn Monitor> {
        let monitor = FakeMonitor::new(move |command, arguments| player(command, arguments));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor.clone());
        Arc::new(monitor)
    }

    fn tell(&self, name: &str, data: Value) {
        self.current().tell(name, data);
    }

    fn lose(&self) {
        self.current().lose();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fake_monitor_passes_the_conformance_suite() {
        conformance(&FakeStage::default());
        conformance_after_loss(&FakeStage::default());
    }
}
