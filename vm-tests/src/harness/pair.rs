//! Cases that host-a conducts on both hosts of a pair: what it asks of host-b, host-b does as it would itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use api::types::State;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clean::{self, Host};
use super::clock::{self, Difference};
use super::command::{self, Stopped, run_within};
use super::config::path_of;
use super::consoles::Console;
use super::counter::{Count, MARK, Port, must_not_complain};
use super::daemons::{kill_hard, pid, start_outriggerd, to_ours, to_xl};
use super::guest::{Made, list, scratch};
use super::lowest::Lowest;
use super::peer::{Peer, Side, until};
use super::relay::{Receiver, Relay, Toolstack};
use super::screen;
use super::seconds;

/// How long a migration may take, in seconds.
const MIGRATION: u64 = 300;
/// How often host-b is asked for its time.
const QUESTIONS: u32 = 8;
/// How far free memory may be from what it was, in KiB.
const SLACK: u64 = 1024;

/// Something that either host does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Runs a command, which may take so many seconds.
    Run(Vec<String>, u64),
    /// Types a text on a guest's first serial port and waits for its echo; returns all that the port has said.
    Echo(String, String),
    /// Waits for a guest's next [`Count`].
    Count(String),
    /// Fails unless the guest's screen shows what `disc.S` draws.
    Screen(String),
    /// Names the guests that the daemon knows, with their states.
    Guests,
    /// Writes a file for the case, of this name.
    Write(String, Vec<u8>),
    /// Kills outriggerd the hard way.
    Kill,
    /// Starts it again.
    Start,
    /// Returns a [`Weight`].
    Weigh,
    /// Fails unless the host is as it was when the case began.
    Compare,
    /// Leaves the host to xl, whose console daemon has these options.
    ToXl(Vec<String>),
    /// Gives the host to our daemons again.
    ToOurs,
    /// Waits until a guest of xl's has said so many numbers; returns its last [`Count`].
    XlCount(Port, usize),
    /// Returns the time, in microseconds.
    Clock,
    /// Sets the clock forward by so many microseconds, or back.
    ShiftClock(i64),
    /// Begins to look at dom0's free memory.
    Watch,
    /// Returns the least that it had since, in KiB.
    Lowest,
    /// Ends the case.
    End,
}

/// What a leak would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Weight {
    free_kib: u64,
    /// What the open descriptors of outriggerd lead to, by kind.
    descriptors: BTreeMap<String, usize>,
    nodes: usize,
    guests: Vec<(String, State)>,
    /// Migrations that have not ended.
    open: Vec<Value>,
}

impl Weight {
    /// What is there that was not before.
    pub(crate) fn more_than(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        if self.free_kib + SLACK < before.free_kib {
            more.push(format!("{} KiB of memory are not free again", before.free_kib - self.free_kib));
        }
        if self.nodes > before.nodes {
            more.push(format!("{} nodes in xenstore instead of {}", self.nodes, before.nodes));
        }
        // The daemon keeps a few connections to Xen for later, as many as were used at once.
        let is_kept = |what: &str| ["/dev/xen/hypercall", "/dev/xen/privcmd"].contains(&what);
        for (what, now) in self.descriptors.iter().filter(|(what, _)| !is_kept(what)) {
            let before = before.descriptors.get(what).copied().unwrap_or_default();
            if *now > before {
                more.push(format!("{now} open descriptors of outriggerd ({what}) instead of {before}"));
            }
        }
        if self.guests != before.guests {
            more.push(format!("the guests are {:?}", self.guests));
        }
        more.extend(self.open.iter().map(|open| format!("a migration has not ended: {open}")));
        more
    }
}

/// Runs a case of two hosts: host-a conducts it, host-b does what it is asked.
pub(crate) fn conducted(conduct: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    let mut peer = Peer::join()?;
    let _receivers =
        [Receiver::listen(peer.side, Toolstack::Ours)?, Receiver::listen(peer.side, Toolstack::Xl)?];
    let mut hands = Hands { before: Host::look()?, lowest: None };
    match peer.side {
        // A failure here ends the connection, and so the other host's part.
        Side::A => {
            let mut pair = Pair { peer, hands, echoes: 0 };
            conduct(&mut pair)?;
            pair.ask(Side::B, Task::End)
        }
        Side::B => loop {
            let task: Task = serde_json::from_str(&peer.hear()?)?;
            let is_over = matches!(task, Task::End);
            let outcome = hands.work(task).map_err(|error| format!("{error:#}"));
            peer.tell(&serde_json::to_string(&outcome)?)?;
            if is_over {
                return Ok(());
            }
        },
    }
}

/// Both hosts, for host-a.
#[derive(Debug)]
pub(crate) struct Pair {
    peer: Peer,
    hands: Hands,
    /// How often a guest was asked for an echo.
    echoes: u32,
}

impl Pair {
    /// Has one of the hosts do something.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, side: Side, task: Task) -> Result<T> {
        let name = side.host_name();
        let value = if side == self.peer.side {
            self.hands.work(task).with_context(|| name.to_owned())?
        } else {
            self.peer.tell(&serde_json::to_string(&task)?)?;
            let outcome: Result<Value, String> = serde_json::from_str(&self.peer.hear()?)?;
            outcome.map_err(|error| anyhow!("{name}: {error}"))?
        };
        serde_json::from_value(value).with_context(|| format!("what {name} answers"))
    }

    /// Runs `outrigger` on one of the hosts.
    pub(crate) fn outrigger(&mut self, side: Side, args: &[&str]) -> Result<command::Output> {
        let words = std::iter::once("outrigger").chain(args.iter().copied());
        self.ask(side, Task::Run(words.map(str::to_owned).collect(), MIGRATION))
    }

    /// Migrates a guest from one host to the other, by a relay of its own, and returns what was reported.
    pub(crate) fn migrate(&mut self, from: Side, guest: &str, relay: &Relay) -> Result<command::Output> {
        self.outrigger(from, &migration(from, guest, &relay.command()))
    }

    /// Begins a migration from host-a.
    pub(crate) fn begin(&self, guest: &str, relay: &Relay) -> Result<Stopped> {
        let mut command = Command::new("outrigger");
        command.args(migration(Side::A, guest, &relay.command())).stdout(Stdio::null());
        Ok(Stopped(command.spawn().context("cannot run outrigger migrate")?))
    }

    /// Sets host-b's clock to host-a's, and returns how far it is ahead then.
    pub(crate) fn set_clocks(&mut self) -> Result<Difference> {
        let ahead = self.difference()?.ahead;
        self.ask::<()>(Side::B, Task::ShiftClock(-ahead))?;
        self.difference()
    }

    /// The difference by the quickest of some questions.
    fn difference(&mut self) -> Result<Difference> {
        let mut quickest: Option<Difference> = None;
        for _ in 0..QUESTIONS {
            let before = clock::now()?;
            let answer = self.ask(Side::B, Task::Clock)?;
            let now = Difference::of(before, answer, clock::now()?);
            quickest = Some(quickest.map_or(now, |known| if known.took < now.took { known } else { now }));
        }
        quickest.context("nothing was asked")
    }

    /// A guest's first serial port echoes what it has not echoed before; returns what the port has said.
    pub(crate) fn echo(&mut self, side: Side, guest: &str) -> Result<String> {
        self.echoes += 1;
        let text = format!("<{}>", self.echoes);
        self.ask(side, Task::Echo(guest.to_owned(), text))
    }

    /// Fails unless only this host knows the guest, which runs there.
    pub(crate) fn runs_only(&mut self, side: Side, guest: &str) -> Result<()> {
        let found = self.found(guest)?;
        ensure!(found.is_at(side), "{guest} should run on {} only: {found:?}", side.host_name());
        Ok(())
    }

    /// What both hosts know of a guest. It never runs on both.
    pub(crate) fn found(&mut self, guest: &str) -> Result<Found> {
        let mut here = self.state(Side::A, guest)?;
        let there = self.state(Side::B, guest)?;
        if here == Some(State::Running) && there == here {
            // It may have moved between the two questions.
            here = self.state(Side::A, guest)?;
            ensure!(here != Some(State::Running), "{guest} runs on both hosts");
        }
        Ok(Found([here, there]))
    }

    fn state(&mut self, side: Side, guest: &str) -> Result<Option<State>> {
        let guests: Vec<(String, State)> = self.ask(side, Task::Guests)?;
        Ok(guests.into_iter().find(|(name, _)| name == guest).map(|(_, state)| state))
    }

    /// Has host-a settle with host-b what became of the guest.
    pub(crate) fn resolve(&mut self, guest: &str) -> Result<command::Output> {
        let relay = Relay::to(Side::B).command();
        let words = ["migrate", "--resolve", guest, Side::B.host_name(), "--connect", &relay];
        self.outrigger(Side::A, &words)
    }

    /// Waits until one host runs the guest and the other has nothing of it, and returns which one. If one of them
    /// has it and does not run it, the migration is resolved, once.
    pub(crate) fn settled(&mut self, guest: &str) -> Result<Side> {
        let mut resolved = None;
        let settled = until(&format!("{guest} is not on one host alone"), || {
            // Two that run, or a daemon that does not answer, are no matter of time.
            let found = match self.found(guest) {
                Ok(found) => found,
                Err(error) => return Ok(Err(error)),
            };
            if let Some(side) = found.only() {
                return Ok(Ok(side));
            }
            if found.is_open() && resolved.is_none() {
                // It may have ended by itself meanwhile, and there is nothing to resolve.
                match self.resolve(guest) {
                    Ok(said) => resolved = Some(said.to_string()),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Err(std::io::Error::other(format!("{found:?}, resolved: {resolved:?}")))
        });
        settled?
    }
}

/// The states of a guest on host-a and on host-b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found([Option<State>; 2]);

impl Found {
    /// Whether it runs on this host, and the other has nothing of it.
    fn is_at(self, side: Side) -> bool {
        self.only() == Some(side)
    }

    /// Whether a host has it and does not run it: at host-a after a hand-over without an answer, at host-b when it waits for
    /// a sender that has given up.
    fn is_open(self) -> bool {
        self.0.iter().flatten().any(|state| *state != State::Running)
    }

    /// The host that runs it, if the other has nothing of it.
    fn only(self) -> Option<Side> {
        match self.0 {
            [Some(State::Running), None] => Some(Side::A),
            [None, Some(State::Running)] => Some(Side::B),
            _ => None,
        }
    }
}

/// The arguments of `outrigger` for a migration.
pub(crate) fn migration<'a>(from: Side, guest: &'a str, relay: &'a str) -> [&'a str; 6] {
    ["migrate", "--json", "--connect", relay, guest, from.other().host_name()]
}

/// What does a host's tasks.
#[derive(Debug)]
struct Hands {
    /// How the host was when the case began.
    before: Host,
    lowest: Option<Lowest>,
}

impl Hands {
    fn work(&mut self, task: Task) -> Result<Value> {
        let value = match task {
            Task::Run(words, within) => {
                let (program, args) = words.split_first().context("no command")?;
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                serde_json::to_value(run_within(seconds(within), program, &args)?)
            }
            Task::Echo(guest, text) => serde_json::to_value(echo(&guest, &text)?),
            Task::Count(guest) => serde_json::to_value(count(&guest)?),
            Task::Screen(guest) => serde_json::to_value(screen::shows_what_disc_draws(&guest)?),
            Task::Guests => serde_json::to_value(guests()?),
            Task::Write(name, content) => serde_json::to_value(scratch(&name, &content)?),
            Task::Kill => serde_json::to_value(kill_hard("outriggerd")?),
            Task::Start => serde_json::to_value(start_outriggerd()?),
            Task::Weigh => serde_json::to_value(weigh()?),
            Task::Compare => serde_json::to_value(clean::compare(&self.before)?),
            Task::ToXl(options) => {
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                serde_json::to_value(to_xl(&options)?)
            }
            Task::ToOurs => serde_json::to_value(to_ours()?),
            Task::XlCount(port, least) => serde_json::to_value(port.count(least)?),
            Task::Clock => serde_json::to_value(clock::now()?),
            Task::ShiftClock(micros) => serde_json::to_value(clock::shift(micros)?),
            Task::Watch => {
                self.lowest = Some(Lowest::begin());
                Ok(Value::Null)
            }
            Task::Lowest => serde_json::to_value(self.lowest.take().context("nobody looks")?.end()?),
            Task::End => Ok(Value::Null),
        };
        Ok(value?)
    }
}

/// The serial port of a guest that stays when this is over.
fn port(guest: &str) -> Result<Console> {
    let guest = Made::named(guest)?;
    let console = Console::serial(&guest, 0);
    guest.leave();
    console
}

fn echo(guest: &str, text: &str) -> Result<String> {
    let mut console = port(guest)?;
    console.echo(text)?;
    Ok(console.seen)
}

/// The next number that a guest says, with all that it has complained of until then.
fn count(guest: &str) -> Result<Count> {
    let mut console = port(guest)?;
    // What the console daemon tells again.
    while console.wait_for(MARK, 0).is_ok() {}
    console.wait_for(MARK, 60)?;
    let line = console.line(30)?;
    must_not_complain(&console.seen)?;
    Count::parse(&line).with_context(|| format!("{line:?} are no numbers"))
}

fn guests() -> Result<Vec<(String, State)>> {
    Ok(list()?.into_iter().map(|guest| (guest.name, guest.state)).collect())
}

fn weigh() -> Result<Weight> {
    let said = command::outrigger(&["migrations", "--json"])?.good()?.stdout;
    let all: Vec<Value> = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    Ok(Weight {
        free_kib: clean::free_kib()?,
        descriptors: descriptors(&pid("outriggerd")?.to_string())?,
        nodes: clean::nodes()?.len(),
        guests: guests()?,
        open: all.into_iter().filter(|migration| migration["unresolved"] == true).collect(),
    })
}

/// What the open descriptors of a process lead to, without the numbers of sockets and pipes.
fn descriptors(pid: &str) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed by now.
        if let Ok(link) = fs::read_link(entry?.path()) {
            let link = link.to_string_lossy();
            *kinds.entry(link.split('[').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    Ok(kinds)
}

/// Waits until a host has nothing that it did not have before. Memory and descriptors are released late.
pub(crate) fn no_leaks(pair: &mut Pair, side: Side, before: &Weight) -> Result<()> {
    until(&format!("{} leaks", side.host_name()), || {
        let now: Weight = pair.ask(side, Task::Weigh).map_err(std::io::Error::other)?;
        let more = now.more_than(before);
        if more.is_empty() { Ok(()) } else { Err(std::io::Error::other(more.join("; "))) }
    })
}

/// Waits for the end of a process, however it ends.
pub(crate) fn ended(process: &mut Child) -> Result<()> {
    until("the process does not end", || match process.try_wait()? {
        Some(_) => Ok(()),
        None => Err(std::io::ErrorKind::WouldBlock.into()),
    })
}

/// Writes a disk from its beginning.
pub(crate) fn write_disk(device: &str, content: &[u8]) -> Result<()> {
    let mut disk = fs::OpenOptions::new().write(true).open(device)?;
    disk.write_all(content).with_context(|| format!("cannot write {device}"))?;
    Ok(disk.sync_all()?)
}

/// A place for a file of the case on host-a, where nothing is.
pub(crate) fn place(name: &str) -> Result<std::path::PathBuf> {
    let path = path_of(name);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight() -> Weight {
        let descriptors = BTreeMap::from([("socket:".to_owned(), 30)]);
        Weight { free_kib: 9000, descriptors, nodes: 12, guests: Vec::new(), open: Vec::new() }
    }

    #[test]
    fn only_more_than_before_is_a_leak() {
        let before = weight();
        let fewer = BTreeMap::from([("socket:".to_owned(), 29)]);
        let less = Weight { free_kib: 8500, descriptors: fewer, nodes: 11, ..weight() };
        assert_eq!(less.more_than(&before), [""; 0]);
        let open = vec![Value::Bool(false)];
        let more = Weight {
            free_kib: 1,
            descriptors: BTreeMap::from([("socket:".to_owned(), 31)]),
            nodes: 13,
            guests: vec![("x".into(), State::Paused)],
            open,
        };
        assert_eq!(more.more_than(&before).len(), 5, "{:?}", more.more_than(&before));
    }

    #[test]
    fn guest_is_at_one_host_when_the_other_has_nothing_of_it() {
        let only = |a, b| Found([a, b]).only();
        assert_eq!(only(Some(State::Running), None), Some(Side::A));
        assert_eq!(only(None, Some(State::Running)), Some(Side::B));
        assert_eq!(only(Some(State::Suspended), None), None);
        assert_eq!(only(Some(State::Suspended), Some(State::Running)), None);
        assert_eq!(only(None, None), None);
    }
}
