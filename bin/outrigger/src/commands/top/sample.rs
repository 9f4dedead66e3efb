//! From two lists of guests to what they have used in between.

use std::cmp::Ordering;
use std::time::Instant;

use api::types::{Guest, State};
use serde::Serialize;
use xen_types::{DomId, KiB};

/// The guests at one time.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) guests: Vec<Guest>,
}

/// A guest or a stubdomain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) domid: DomId,
    /// The guest of a stubdomain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stubdomain_of: Option<String>,
    /// The guest's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<State>,
    /// The part of one CPU that it has used since the last sample; none at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_percent: Option<f64>,
    pub(super) cpu_time_ns: u64,
    pub(super) memory_kib: KiB,
    /// The guest's vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vcpus: Option<u32>,
}

/// By what guests are sorted; a stubdomain follows its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// CPU time with the stubdomain's, the most first.
    Cpu,
    /// Memory with the stubdomain's, the most first.
    Memory,
    /// Name.
    Name,
}

impl Order {
    /// The one after it.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Name,
            Self::Name => Self::Cpu,
        }
    }

    /// The word for people.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Name => "name",
        }
    }
}

/// A guest with its stubdomain, if that exists.
struct Pair {
    guest: Row,
    stub: Option<Row>,
}

impl Pair {
    fn cpu(&self) -> f64 {
        let of = |row: &Row| row.cpu_percent.unwrap_or(0.0);
        of(&self.guest) + self.stub.as_ref().map_or(0.0, of)
    }

    fn memory(&self) -> KiB {
        self.guest.memory_kib + self.stub.as_ref().map_or(KiB(0), |stub| stub.memory_kib)
    }

    fn compare(&self, other: &Self, order: Order) -> Ordering {
        let first = match order {
            Order::Cpu => other.cpu().total_cmp(&self.cpu()),
            Order::Memory => other.memory().cmp(&self.memory()),
            Order::Name => Ordering::Equal,
        };
        first.then_with(|| self.guest.name.cmp(&other.guest.name))
    }
}

/// The rows for a sample; `before` is the one before it.
pub(super) fn rows(before: Option<&Sample>, now: &Sample, order: Order) -> Vec<Row> {
    let mut pairs: Vec<Pair> = now.guests.iter().map(|guest| pair(before, now, guest)).collect();
    pairs.sort_by(|a, b| a.compare(b, order));
    pairs.into_iter().flat_map(|pair| [Some(pair.guest), pair.stub]).flatten().collect()
}

fn pair(before: Option<&Sample>, now: &Sample, guest: &Guest) -> Pair {
    // A guest that was restarted since is in another domain, which has used nothing yet.
    let old = before.and_then(|before| {
        let old = before.guests.iter().find(|old| old.uuid == guest.uuid && old.domid == guest.domid)?;
        Some((old, now.at.saturating_duration_since(before.at).as_nanos()))
    });
    let used = |time: fn(&Guest) -> u64| {
        old.and_then(|(old, wall)| percent(time(guest).saturating_sub(time(old)), wall))
    };
    let stub = guest.stub_domid.map(|domid| Row {
        name: format!("{}-dm", guest.name),
        domid,
        stubdomain_of: Some(guest.name.clone()),
        status: None,
        cpu_percent: used(|guest| guest.stub_cpu_time_ns),
        cpu_time_ns: guest.stub_cpu_time_ns,
        memory_kib: guest.stub_memory_kib,
        vcpus: None,
    });
    let row = Row {
        name: guest.name.clone(),
        domid: guest.domid,
        stubdomain_of: None,
        status: Some(guest.state),
        cpu_percent: used(|guest| guest.cpu_time_ns),
        cpu_time_ns: guest.cpu_time_ns,
        memory_kib: guest.memory_kib,
        vcpus: Some(guest.vcpus),
    };
    Pair { guest: row, stub }
}

/// In tenths of a percent, which is all that is shown.
fn percent(used: u64, wall: u128) -> Option<f64> {
    let tenths = (u128::from(used) * 1000).checked_div(wall)?;
    u32::try_from(tenths).ok().map(|tenths| f64::from(tenths) / 10.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn guest(name: &str, domid: u16, seconds: u64, stub_seconds: u64) -> Guest {
        Guest {
            name: name.to_owned(),
            uuid: format!("uuid of {name}"),
            domid: DomId::new(domid).unwrap(),
            stub_domid: DomId::new(domid + 1).ok(),
            stub_uuid: None,
            state: State::Running,
            memory_kib: KiB::from_mib(64 * u64::from(domid)),
            stub_memory_kib: KiB::from_mib(32),
            vcpus: 1,
            cpu_time_ns: seconds * 1_000_000_000,
            stub_cpu_time_ns: stub_seconds * 1_000_000_000,
            serials: 0,
            listing: None,
        }
    }

    fn shown(rows: &[Row]) -> Vec<(&str, Option<f64>)> {
        rows.iter().map(|row| (row.name.as_str(), row.cpu_percent)).collect()
    }

    #[test]
    fn use_between_samples_is_that_of_the_same_domain() {
        let start = Instant::now();
        let first = Sample { at: start, guests: vec![guest("a", 1, 10, 5), guest("b", 3, 50, 1)] };
        let all = rows(None, &first, Order::Cpu);
        assert_eq!(shown(&all), [("a", None), ("a-dm", None), ("b", None), ("b-dm", None)]);
        let at = start + Duration::from_secs(4);
        let second = Sample { at, guests: vec![guest("a", 1, 11, 5), guest("b", 3, 52, 2)] };
        let all = rows(Some(&first), &second, Order::Cpu);
        let expected = [("b", Some(50.0)), ("b-dm", Some(25.0)), ("a", Some(25.0)), ("a-dm", Some(0.0))];
        assert_eq!(shown(&all), expected);
        let restarted = Sample { at, guests: vec![guest("a", 7, 1, 1)] };
        assert_eq!(shown(&rows(Some(&first), &restarted, Order::Cpu)), [("a", None), ("a-dm", None)]);
    }

    #[test]
    fn guests_are_sorted_with_their_stubdomains() {
        let sample = Sample { at: Instant::now(), guests: vec![guest("b", 1, 0, 0), guest("a", 3, 0, 0)] };
        let names = |order| {
            let names = rows(None, &sample, order).into_iter().map(|row| row.name);
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(Order::Memory), "a a-dm b b-dm");
        assert_eq!(names(Order::Name), "a a-dm b b-dm");
        assert_eq!(
            [Order::Cpu.next(), Order::Memory.next(), Order::Name.next()],
            [Order::Memory, Order::Name, Order::Cpu]
        );
    }
}
