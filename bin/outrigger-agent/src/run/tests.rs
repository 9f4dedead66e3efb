use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use stubdom_abi::{AgentExit, DmKey, paths};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Store, Xenstore};

use super::*;

fn stub() -> DomId {
    DomId::new(9).unwrap()
}

fn target() -> DomId {
    DomId::new(8).unwrap()
}

/// dom0 and QEMU, as the loop sees them.
struct Outside {
    _server: Server,
    dom0: Xenstore,
    qmp: BufReader<UnixStream>,
}

impl Outside {
    fn read(&self, key: DmKey) -> Option<String> {
        self.dom0.read_string(&key.path(stub(), target()), 128).unwrap()
    }

    fn write(&self, key: DmKey, value: &str) {
        self.dom0.write(&key.path(stub(), target()), value.as_bytes()).unwrap();
    }

    /// QEMU's side of one command: the agent has to turn until it is sent.
    fn command(&mut self, agent: &mut Loop<'_>) -> String {
        let mut line = String::new();
        until(agent, || match self.qmp.read_line(&mut line) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        });
        line
    }

    fn greet(&mut self, agent: &mut Loop<'_>) {
        self.answer("{\"QMP\": {}}\n");
        assert!(self.command(agent).contains("qmp_capabilities"));
        self.answer("{\"return\": {}}\n");
    }

    fn answer(&mut self, line: &str) {
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
    }
}

/// Turns until it is done.
fn until(agent: &mut Loop<'_>, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_done() {
        assert!(Instant::now() < deadline, "it does not happen");
        assert_eq!(agent.turn().unwrap(), None);
    }
}

fn opened(log: &mut Log) -> (Loop<'_>, Outside) {
    opened_with(log, false)
}

fn opened_with(log: &mut Log, holds: bool) -> (Loop<'_>, Outside) {
    let server = Server::start();
    let (dom0, store) = (server.connect(DomId::DOM0), server.connection(stub()));
    let folder = paths::device_model_dir(stub(), target());
    dom0.mkdir(&folder).unwrap();
    dom0.set_perms(&folder, &paths::device_model_permissions(stub(), target())).unwrap();
    store::watch(&store, target(), &[DmKey::State, DmKey::Command, DmKey::Start]).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
    }
    let nics = Nics::prepare(&[], 0, &store, &mut || ()).unwrap().0;
    let (output, _) = std::io::pipe().unwrap();
    let mut boot = Boot::for_tests(store, target());
    boot.holds = holds;
    let agent = open(boot, nics, Qemu::for_tests(output, ours), log).unwrap();
    (agent, Outside { _server: server, dom0, qmp: BufReader::new(theirs) })
}

#[test]
fn qemu_gets_no_medium_that_cannot_be_opened() {
    let mut log = Log::default();
    let (mut agent, mut outside) = opened(&mut log);
    outside.greet(&mut agent);
    let add = Command { purpose: Purpose::AddMedium(51728), name: "add-fd", arguments: Value::Null };
    let after = Command { purpose: Purpose::Pci(0), name: "query-pci", arguments: Value::Null };
    agent.perform([
        Effect::PassDisk(add.clone(), "/nonexistent/xvdb".to_owned()),
        Effect::PassDisk(add, "/dev/null".to_owned()),
        Effect::Ask(after),
    ]);
    assert!(outside.command(&mut agent).contains("add-fd"));
    outside.answer("{\"return\": {}}\n");
    assert!(outside.command(&mut agent).contains("query-pci"));
}

#[test]
fn a_pci_command_goes_from_xenstore_to_qemu_and_back() {
    let mut log = Log::default();
    let (mut agent, mut outside) = opened(&mut log);
    outside.greet(&mut agent);
    outside.write(DmKey::Parameter, "0000:00:10.0");
    outside.write(DmKey::Command, "pci-rem");
    let command = outside.command(&mut agent);
    assert!(command.contains("device_del") && command.contains("pci-pt-00_10.0"), "{command}");
    outside.answer(
        "{\"return\": {}}\n{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"pci-pt-00_10.0\"}}\n",
    );
    until(&mut agent, || outside.read(DmKey::State).as_deref() == Some("pci-removed"));
    assert!(outside.read(DmKey::AgentHeartbeat).is_some());
}

#[test]
fn a_held_qemu_is_started_by_a_key_which_is_removed() {
    let mut log = Log::default();
    let (mut agent, mut outside) = opened_with(&mut log, true);
    until(&mut agent, || outside.read(DmKey::AgentHeartbeat).is_some());
    outside.write(DmKey::Start, "");
    outside.write(DmKey::Start, "1");
    until(&mut agent, || outside.read(DmKey::Start).is_none());
    assert_eq!(outside.read(DmKey::AgentStep), None);
    outside.greet(&mut agent);
    agent.events.push(Event::Ended(AgentExit::Exited(0), String::new()));
    assert_eq!(agent.turn().unwrap(), Some(true));
    assert_eq!(outside.read(DmKey::AgentStep).as_deref(), Some("serving"));
    assert_eq!(outside.read(DmKey::AgentExit).as_deref(), Some("exited 0"));
}

#[test]
fn a_held_stubdomain_is_stopped_without_a_qemu() {
    let mut log = Log::default();
    let (mut agent, outside) = opened_with(&mut log, true);
    agent.events.push(Event::Stop);
    assert_eq!(agent.turn().unwrap(), Some(true));
    assert_eq!(outside.read(DmKey::AgentExit).as_deref(), Some("stopped"));
}

#[test]
fn the_end_of_qemu_is_reported_and_ends_the_loop() {
    let mut log = Log::default();
    let (mut agent, outside) = opened(&mut log);
    outside.write(DmKey::State, "running");
    until(&mut agent, || outside.read(DmKey::AgentHeartbeat).is_some());
    agent.events.push(Event::Ended(AgentExit::Exited(1), "bad option".to_owned()));
    assert_eq!(agent.turn().unwrap(), Some(false));
    assert_eq!(outside.read(DmKey::AgentExit).as_deref(), Some("exited 1"));
}

#[test]
fn start_that_comes_while_an_answer_is_waited_for_is_not_missed() {
    let mut log = Log::default();
    let (mut agent, outside) = opened_with(&mut log, true);
    outside.write(DmKey::Start, "1");
    // The answer comes behind the event, which xenstore's descriptor does not show any more.
    store::write(&agent.boot.store, target(), DmKey::AgentVersion, "x").unwrap();
    assert!(agent.boot.store.has_event());
    assert_eq!(agent.turn().unwrap(), None);
    assert_eq!(outside.read(DmKey::AgentStep).as_deref(), Some("serving"));
}
