//! The life of the stubdomain while QEMU runs, and before that while it is held.
//!
//! ```text
//!       Start           Running              Stop (SIGTERM from /sbin/poweroff)
//! Held ──────▶ Starting ──────▶ Serving ─────────────────────────────▶ Stopping
//!  │ │            │                │                                      │   │ 5 s: SIGKILL
//!  │ └────────────┴────────────────┴────── Ended ─────────────────────────┘◀──┘
//!  │ Stop                                    ▼
//!  └───────────────────────▶ agent/exit, then power off, or crash when QEMU failed
//! ```
//!
//! The vchans are open from Serving on; for a QEMU that was held, from the moment when its monitor answers, because the
//! toolstack may want to look at it before it runs (`-S`).

use std::time::Duration;

use stubdom_abi::{AgentExit, DmKey, HEARTBEAT_INTERVAL, Heartbeat};

use crate::effect::Effect;

/// How long QEMU may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(5);
/// After this time without `running`, the log says so. The toolstack has its own deadline and acts on it.
const SLOW: Duration = Duration::from_secs(20);

/// The value of `agent/step` once QEMU is started.
pub(crate) use stubdom_abi::SERVING_STEP as SERVING;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The toolstack wants the QEMU started that is held.
    Start,
    /// QEMU's monitor answers.
    MonitorReady,
    /// QEMU wrote `running`.
    Running,
    /// The stubdomain is asked to shut down.
    Stop,
    /// QEMU ended. The text is its last line.
    Ended(AgentExit, String),
    /// Time passed.
    Tick,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Held,
    Starting { logged: bool },
    Serving,
    Stopping { deadline: Duration },
    Over,
}

/// The agent's state while QEMU runs. Times are since the kernel's start.
#[derive(Debug)]
pub(crate) struct Supervisor {
    phase: Phase,
    started: Duration,
    next_heartbeat: Duration,
    bridges: Bridges,
}

/// Whether dom0 has the vchans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridges {
    WhenRunning,
    WhenMonitorReady,
    Open,
}

impl Supervisor {
    /// QEMU was started at this time.
    pub(crate) fn new(now: Duration) -> Self {
        let phase = Phase::Starting { logged: false };
        Self { phase, started: now, next_heartbeat: now, bridges: Bridges::WhenRunning }
    }

    /// QEMU is held from this time on.
    pub(crate) fn held(now: Duration) -> Self {
        Self { phase: Phase::Held, bridges: Bridges::WhenMonitorReady, ..Self::new(now) }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn deadline(&self) -> Duration {
        match self.phase {
            Phase::Starting { logged: false } => self.next_heartbeat.min(self.started + SLOW),
            Phase::Stopping { deadline } => self.next_heartbeat.min(deadline),
            _ => self.next_heartbeat,
        }
    }

    /// Takes an event.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Start if self.phase == Phase::Held => {
                self.phase = Phase::Starting { logged: false };
                self.started = now;
                vec![
                    Effect::Continue,
                    Effect::Write(DmKey::AgentStep, SERVING.to_owned()),
                    Effect::Log("the toolstack has QEMU started".to_owned()),
                ]
            }
            Event::MonitorReady if self.bridges == Bridges::WhenMonitorReady => {
                let took = now.saturating_sub(self.started).as_millis();
                self.bridges = Bridges::Open;
                // It may be left stopped as long as the toolstack likes.
                if let Phase::Starting { logged } = &mut self.phase {
                    *logged = true;
                }
                vec![
                    Effect::OpenBridges,
                    Effect::Log(format!("QEMU's monitor answers, {took} ms after its start")),
                ]
            }
            Event::Running if matches!(self.phase, Phase::Starting { .. }) => {
                self.phase = Phase::Serving;
                let took = now.saturating_sub(self.started).as_millis();
                let mut effects = vec![
                    Effect::Log(format!("QEMU is running, {took} ms after its start")),
                    Effect::LogConfinement,
                ];
                if self.bridges != Bridges::Open {
                    self.bridges = Bridges::Open;
                    effects.push(Effect::OpenBridges);
                }
                effects
            }
            Event::Stop if self.phase == Phase::Held => {
                self.phase = Phase::Over;
                let exit = AgentExit::Stopped;
                vec![
                    Effect::Log("shutdown requested; QEMU was not started".to_owned()),
                    Effect::Write(DmKey::AgentExit, exit.encode()),
                    Effect::End { clean: exit.is_clean() },
                ]
            }
            Event::Stop if !matches!(self.phase, Phase::Stopping { .. } | Phase::Over) => {
                self.phase = Phase::Stopping { deadline: now + STOP };
                vec![Effect::Log("shutdown requested; ending QEMU".to_owned()), Effect::Terminate]
            }
            Event::Ended(exit, last_line) => self.ended(exit, &last_line),
            Event::Tick => self.tick(now),
            Event::Start | Event::MonitorReady | Event::Running | Event::Stop => Vec::new(),
        }
    }

    fn ended(&mut self, exit: AgentExit, last_line: &str) -> Vec<Effect> {
        let stopped = matches!(self.phase, Phase::Stopping { .. });
        self.phase = Phase::Over;
        let mut effects = vec![Effect::Log(exit.to_string())];
        if !exit.is_clean() && !last_line.is_empty() {
            effects.push(Effect::Log(format!("QEMU's last line: {last_line}")));
        }
        let exit = if stopped { AgentExit::Stopped } else { exit };
        effects.push(Effect::Write(DmKey::AgentExit, exit.encode()));
        effects.push(Effect::End { clean: exit.is_clean() });
        effects
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match &mut self.phase {
            Phase::Over => return effects,
            Phase::Starting { logged } if !*logged && now >= self.started + SLOW => {
                *logged = true;
                effects.push(Effect::Log(format!("QEMU is not ready after {} s", SLOW.as_secs())));
            }
            Phase::Stopping { deadline } if now >= *deadline => {
                *deadline = now + STOP;
                effects.push(Effect::Log("QEMU does not end; killing it".to_owned()));
                effects.push(Effect::Kill);
            }
            _ => {}
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            effects.push(Effect::Write(DmKey::AgentHeartbeat, Heartbeat(now.as_secs()).encode()));
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(10);

    fn after(seconds: u64) -> Duration {
        T0 + Duration::from_secs(seconds)
    }

    fn exit_of(effects: &[Effect]) -> (String, bool) {
        match effects {
            [.., Effect::Write(DmKey::AgentExit, exit), Effect::End { clean }] => (exit.clone(), *clean),
            _ => panic!("the domain does not end: {effects:?}"),
        }
    }

    #[test]
    fn a_failed_qemu_ends_in_a_crash_with_its_last_line() {
        let mut supervisor = Supervisor::new(T0);
        let effects =
            supervisor.handle(after(1), Event::Ended(AgentExit::Exited(1), "bad option".to_owned()));
        assert!(effects.contains(&Effect::Log("QEMU's last line: bad option".to_owned())));
        assert_eq!(exit_of(&effects), ("exited 1".to_owned(), false));
    }

    #[test]
    fn a_qemu_that_quits_powers_off() {
        let mut supervisor = Supervisor::new(T0);
        supervisor.handle(after(1), Event::Running);
        let effects = supervisor.handle(after(9), Event::Ended(AgentExit::Exited(0), "warning".to_owned()));
        assert_eq!(exit_of(&effects), ("exited 0".to_owned(), true));
    }

    #[test]
    fn a_requested_stop_is_clean_even_when_qemu_has_to_be_killed() {
        let mut supervisor = Supervisor::new(T0);
        assert!(supervisor.handle(after(1), Event::Stop).contains(&Effect::Terminate));
        assert_eq!(supervisor.handle(after(2), Event::Stop), []);
        assert!(supervisor.deadline() <= after(6));
        assert!(supervisor.handle(after(6), Event::Tick).contains(&Effect::Kill));
        let effects = supervisor.handle(after(7), Event::Ended(AgentExit::Killed(9), String::new()));
        assert_eq!(exit_of(&effects), ("stopped".to_owned(), true));
    }

    #[test]
    fn the_heartbeat_is_written_at_its_interval() {
        let mut supervisor = Supervisor::new(T0);
        let heartbeat = |text: &str| vec![Effect::Write(DmKey::AgentHeartbeat, text.to_owned())];
        assert_eq!(supervisor.handle(T0, Event::Tick), heartbeat("10"));
        assert_eq!(supervisor.deadline(), after(5));
        assert_eq!(supervisor.handle(after(4), Event::Tick), []);
        assert_eq!(supervisor.handle(after(5), Event::Tick), heartbeat("15"));
    }

    #[test]
    fn a_slow_start_is_logged_once() {
        let mut supervisor = Supervisor::new(T0);
        let slow = Effect::Log("QEMU is not ready after 20 s".to_owned());
        assert!(supervisor.handle(after(20), Event::Tick).contains(&slow));
        assert!(!supervisor.handle(after(30), Event::Tick).contains(&slow));
    }

    #[test]
    fn a_held_qemu_starts_when_it_is_told_and_once() {
        let mut supervisor = Supervisor::held(T0);
        assert_eq!(
            supervisor.handle(T0, Event::Tick),
            [Effect::Write(DmKey::AgentHeartbeat, "10".to_owned())]
        );
        assert_eq!(supervisor.deadline(), after(5));
        assert_eq!(supervisor.handle(after(60), Event::Tick).len(), 1, "a heartbeat, and no complaint");
        let effects = supervisor.handle(after(61), Event::Start);
        assert_eq!(effects.first(), Some(&Effect::Continue));
        assert!(effects.contains(&Effect::Write(DmKey::AgentStep, SERVING.to_owned())));
        assert_eq!(supervisor.handle(after(61), Event::Start), []);
        // Its time counts from there.
        let slow = Effect::Log("QEMU is not ready after 20 s".to_owned());
        assert!(!supervisor.handle(after(80), Event::Tick).contains(&slow));
        assert!(supervisor.handle(after(81), Event::Tick).contains(&slow));
    }

    #[test]
    fn a_held_qemu_is_served_from_its_monitors_greeting_on() {
        let mut supervisor = Supervisor::held(T0);
        supervisor.handle(after(1), Event::Start);
        assert!(supervisor.handle(after(2), Event::MonitorReady).contains(&Effect::OpenBridges));
        assert_eq!(supervisor.handle(after(2), Event::MonitorReady), []);
        let slow = Effect::Log("QEMU is not ready after 20 s".to_owned());
        assert!(!supervisor.handle(after(60), Event::Tick).contains(&slow), "it may stay stopped");
        let effects = supervisor.handle(after(61), Event::Running);
        assert!(effects.contains(&Effect::LogConfinement) && !effects.contains(&Effect::OpenBridges));
    }

    #[test]
    fn without_a_hold_the_greeting_opens_nothing() {
        let mut supervisor = Supervisor::new(T0);
        assert_eq!(supervisor.handle(after(1), Event::Start), []);
        assert_eq!(supervisor.handle(after(1), Event::MonitorReady), []);
        assert!(supervisor.handle(after(2), Event::Running).contains(&Effect::OpenBridges));
    }

    #[test]
    fn a_held_stubdomain_stops_without_a_qemu() {
        let mut supervisor = Supervisor::held(T0);
        assert_eq!(exit_of(&supervisor.handle(after(1), Event::Stop)), ("stopped".to_owned(), true));
        assert_eq!(supervisor.handle(after(2), Event::Start), []);
        assert_eq!(supervisor.handle(after(60), Event::Tick), []);
    }

    #[test]
    fn a_launcher_that_is_gone_ends_the_hold() {
        let mut supervisor = Supervisor::held(T0);
        let effects = supervisor.handle(after(1), Event::Ended(AgentExit::Killed(9), String::new()));
        assert_eq!(exit_of(&effects), ("killed 9".to_owned(), false));
    }

    #[test]
    fn running_is_taken_once() {
        let mut supervisor = Supervisor::new(T0);
        assert!(supervisor.handle(after(2), Event::Running).contains(&Effect::OpenBridges));
        assert_eq!(supervisor.handle(after(3), Event::Running), []);
    }
}
