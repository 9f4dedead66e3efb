use std::time::Duration;

use serde::Serialize;

/// What a lifecycle reports while it runs: the raw material of timelines and logs.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A step begins.
    StepStarted {
        /// What names it to programs.
        id: &'static str,
        /// What it does, for people.
        label: &'static str,
        /// Its place in the list, from 0.
        index: usize,
        /// How many steps the list has.
        of: usize,
    },
    /// A step has done its work.
    StepFinished {
        /// What names it to programs.
        id: &'static str,
        /// What it does, for people.
        label: &'static str,
        /// Its place in the list, from 0.
        index: usize,
        /// How long it took.
        #[serde(serialize_with = "seconds", rename = "seconds")]
        took: Duration,
    },
    /// A step has failed.
    StepFailed {
        /// What names it to programs.
        id: &'static str,
        /// What it does, for people.
        label: &'static str,
        /// Its place in the list, from 0.
        index: usize,
        /// How long it took.
        #[serde(serialize_with = "seconds", rename = "seconds")]
        took: Duration,
        /// The error with its causes.
        error: String,
    },
    /// The step in progress has come so far.
    Progress {
        /// What is done of it.
        done: u64,
        /// What there is to do.
        total: u64,
    },
    /// A round of a live migration begins.
    Round {
        /// Its number, from 0.
        round: u32,
        /// Pages that are to be sent.
        dirty: u64,
        /// Pages a second of the round before; 0 where there is none.
        rate: u64,
        /// How long the guest would stand still if it was suspended now.
        #[serde(serialize_with = "optional_millis", rename = "downtime_ms")]
        downtime: Option<Duration>,
    },
    /// The guest runs at the other host.
    StoodStill {
        /// From when it was asked to suspend until the other host's answer that it runs.
        #[serde(serialize_with = "seconds", rename = "seconds")]
        took: Duration,
    },
    /// A step is being undone.
    Undoing {
        /// What names it to programs.
        id: &'static str,
        /// What it does, for people.
        label: &'static str,
    },
    /// A warning for the user.
    Warning {
        /// The text.
        text: String,
    },
}

/// Passes on the warnings of what is done before an operation, whose listeners know only the operation's own steps.
pub(crate) fn warnings(events: &mut dyn FnMut(Event)) -> impl FnMut(Event) {
    |event| {
        if matches!(event, Event::Warning { .. }) {
            events(event);
        }
    }
}

fn seconds<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(took.as_secs_f64())
}

fn optional_millis<S: serde::Serializer>(took: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match took {
        Some(took) => serializer.serialize_some(&(took.as_secs_f64() * 1000.0)),
        None => serializer.serialize_none(),
    }
}
