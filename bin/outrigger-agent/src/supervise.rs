//! What the agent does while QEMU runs, without I/O.
//!
//! ```text
//!            Running                 Stop (SIGTERM from /sbin/poweroff)
//! Starting ─────────▶ Serving ─────────────────────────────▶ Stopping
//!    │                   │                                      │   │ 5 s: SIGKILL
//!    └───────────────────┴───────── Ended ──────────────────────┘◀──┘
//!                                     ▼
//!                    agent/exit, then power off, or crash when QEMU failed
//! ```

use std::time::Duration;

use stubdom_abi::{AgentExit, DmKey, HEARTBEAT_INTERVAL, Heartbeat};

/// How long QEMU may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(5);
/// After this time without `running`, the log says so. The toolstack has its own deadline and acts on it.
const SLOW: Duration = Duration::from_secs(20);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// QEMU wrote `running`.
    Running,
    /// Someone wants the stubdomain to end.
    Stop,
    /// QEMU ended. The text is its last line.
    Ended(AgentExit, String),
    /// Time passed.
    Tick,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Say it on console 0.
    Say(String),
    /// Say how QEMU is confined.
    Inspect,
    /// Offer dom0 the ways to QEMU.
    OpenBridges,
    /// Write a key.
    Write(DmKey, String),
    /// Ask QEMU to end.
    Terminate,
    /// End QEMU.
    Kill,
    /// End the domain: power off when clean, else crash.
    End { clean: bool },
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Starting { told: bool },
    Serving,
    Stopping { deadline: Duration },
    Over,
}

/// The agent's state while QEMU runs. Times are since the kernel's start.
#[derive(Debug)]
pub(crate) struct Supervisor {
    phase: Phase,
    started: Duration,
    next_beat: Duration,
}

impl Supervisor {
    /// QEMU was started at this time.
    pub(crate) fn new(now: Duration) -> Self {
        Self { phase: Phase::Starting { told: false }, started: now, next_beat: now }
    }

    /// When [`Event::Tick`] is due at the latest.
    pub(crate) fn deadline(&self) -> Duration {
        match self.phase {
            Phase::Starting { told: false } => self.next_beat.min(self.started + SLOW),
            Phase::Stopping { deadline } => self.next_beat.min(deadline),
            _ => self.next_beat,
        }
    }

    /// Takes an event.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Running if matches!(self.phase, Phase::Starting { .. }) => {
                self.phase = Phase::Serving;
                let took = now.saturating_sub(self.started).as_millis();
                vec![
                    Action::Say(format!("QEMU is running, {took} ms after its start")),
                    Action::Inspect,
                    Action::OpenBridges,
                ]
            }
            Event::Stop if !matches!(self.phase, Phase::Stopping { .. } | Phase::Over) => {
                self.phase = Phase::Stopping { deadline: now + STOP };
                vec![Action::Say("shutdown requested; ending QEMU".to_owned()), Action::Terminate]
            }
            Event::Ended(exit, last_line) => self.ended(exit, &last_line),
            Event::Tick => self.tick(now),
            Event::Running | Event::Stop => Vec::new(),
        }
    }

    fn ended(&mut self, exit: AgentExit, last_line: &str) -> Vec<Action> {
        let stopped = matches!(self.phase, Phase::Stopping { .. });
        self.phase = Phase::Over;
        let mut actions = vec![Action::Say(exit.to_string())];
        if !exit.is_clean() && !last_line.is_empty() {
            actions.push(Action::Say(format!("QEMU's last line: {last_line}")));
        }
        let exit = if stopped { AgentExit::Stopped } else { exit };
        actions.push(Action::Write(DmKey::AgentExit, exit.encode()));
        actions.push(Action::End { clean: exit.is_clean() });
        actions
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match &mut self.phase {
            Phase::Over => return actions,
            Phase::Starting { told } if !*told && now >= self.started + SLOW => {
                *told = true;
                actions.push(Action::Say(format!("QEMU is not ready after {} s", SLOW.as_secs())));
            }
            Phase::Stopping { deadline } if now >= *deadline => {
                *deadline = now + STOP;
                actions.push(Action::Say("QEMU does not end; killing it".to_owned()));
                actions.push(Action::Kill);
            }
            _ => {}
        }
        if now >= self.next_beat {
            self.next_beat = now + HEARTBEAT_INTERVAL;
            actions.push(Action::Write(DmKey::AgentHeartbeat, Heartbeat(now.as_secs()).encode()));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(10);

    fn after(seconds: u64) -> Duration {
        T0 + Duration::from_secs(seconds)
    }

    fn exit_of(actions: &[Action]) -> (String, bool) {
        match actions {
            [.., Action::Write(DmKey::AgentExit, exit), Action::End { clean }] => (exit.clone(), *clean),
            _ => panic!("the domain does not end: {actions:?}"),
        }
    }

    #[test]
    fn a_failed_qemu_ends_in_a_crash_with_its_last_words() {
        let mut supervisor = Supervisor::new(T0);
        let actions =
            supervisor.handle(after(1), Event::Ended(AgentExit::Exited(1), "bad option".to_owned()));
        assert!(actions.contains(&Action::Say("QEMU's last line: bad option".to_owned())));
        assert_eq!(exit_of(&actions), ("exited 1".to_owned(), false));
    }

    #[test]
    fn a_qemu_that_quits_powers_off() {
        let mut supervisor = Supervisor::new(T0);
        supervisor.handle(after(1), Event::Running);
        let actions = supervisor.handle(after(9), Event::Ended(AgentExit::Exited(0), "warning".to_owned()));
        assert_eq!(exit_of(&actions), ("exited 0".to_owned(), true));
    }

    #[test]
    fn a_told_stop_is_clean_even_when_qemu_has_to_be_killed() {
        let mut supervisor = Supervisor::new(T0);
        assert!(supervisor.handle(after(1), Event::Stop).contains(&Action::Terminate));
        assert_eq!(supervisor.handle(after(2), Event::Stop), []);
        assert!(supervisor.deadline() <= after(6));
        assert!(supervisor.handle(after(6), Event::Tick).contains(&Action::Kill));
        let actions = supervisor.handle(after(7), Event::Ended(AgentExit::Killed(9), String::new()));
        assert_eq!(exit_of(&actions), ("stopped".to_owned(), true));
    }

    #[test]
    fn the_heart_beats_at_its_interval() {
        let mut supervisor = Supervisor::new(T0);
        let beat = |text: &str| vec![Action::Write(DmKey::AgentHeartbeat, text.to_owned())];
        assert_eq!(supervisor.handle(T0, Event::Tick), beat("10"));
        assert_eq!(supervisor.deadline(), after(5));
        assert_eq!(supervisor.handle(after(4), Event::Tick), []);
        assert_eq!(supervisor.handle(after(5), Event::Tick), beat("15"));
    }

    #[test]
    fn a_slow_start_is_told_once() {
        let mut supervisor = Supervisor::new(T0);
        let slow = Action::Say("QEMU is not ready after 20 s".to_owned());
        assert!(supervisor.handle(after(20), Event::Tick).contains(&slow));
        assert!(!supervisor.handle(after(30), Event::Tick).contains(&slow));
    }

    #[test]
    fn running_is_told_once() {
        let mut supervisor = Supervisor::new(T0);
        assert!(supervisor.handle(after(2), Event::Running).contains(&Action::OpenBridges));
        assert_eq!(supervisor.handle(after(3), Event::Running), []);
    }
}
