//! A QEMU that has CD drives and processors, and an agent that keeps its sets of descriptors true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use config::{Vdev, VdevBus};
use qmp::testing::{FakeMonitor, Play};
use qmp::{ErrorClass, Event, Monitor, QmpError};
use serde_json::{Value, json};
use toolstack::{Cause, DeviceStates, Domain, GuestId, Monitors};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Store as _, XsPath};

/// A CD drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tray {
    pub(crate) open: bool,
    pub(crate) locked: bool,
    /// It has a disc.
    pub(crate) disc: bool,
}

/// Draws a picture into the file of this name.
type Draw = Box<dyn Fn(&str) + Send>;

#[derive(Default)]
struct Machine {
    trays: BTreeMap<String, Tray>,
    cpus: u64,
    /// Network backends, and cards.
    netdevs: BTreeSet<String>,
    cards: BTreeSet<String>,
    /// Block nodes that were added, and the SCSI disks on them by their ids.
    nodes: BTreeSet<String>,
    scsi: BTreeMap<String, String>,
    /// It has a SCSI controller.
    controller: bool,
    draw: Option<Draw>,
    /// The guest lets no card go.
    holds_cards: bool,
    /// What is on its PCI bus.
    places: Vec<Value>,
    /// It was stopped, or has loaded a state and was not told to run.
    stopped: bool,
    /// The stubdomain in which it has loaded a state, and the state.
    loaded: Option<(DomId, Vec<u8>)>,
    /// Its agent was told to start it before it could hold it.
    early: bool,
    /// Commands until one is refused.
    fail_after: Option<u64>,
    broken: bool,
    asked: u64,
}

/// The QEMU of the one guest of a world.
#[derive(Clone)]
pub(crate) struct Qemu {
    machine: Arc<Mutex<Machine>>,
    monitor: FakeMonitor,
    server: Arc<Server>,
}

impl Monitors for Qemu {
    fn monitor(&self, _: GuestId) -> Result<Arc<dyn Monitor>, QmpError> {
        Ok(Arc::new(self.monitor.clone()))
    }
}

/// What every state of this QEMU is.
pub(crate) const STATE: &[u8] = b"QEVM\x00\x00\x00\x03\x04 devices\x00";

impl DeviceStates for Qemu {
    fn receive(
        &self,
        stub: Domain,
        _: Duration,
        ask: &mut dyn FnMut() -> Result<(), Cause>,
    ) -> Result<Vec<u8>, Cause> {
        ask()?;
        assert!(self.take_key(stub, "state-end"), "the agent was not told that this is all");
        Ok(STATE.to_vec())
    }

    fn send(&self, stub: Domain, state: &[u8], _: Duration) -> Result<(), Cause> {
        assert!(self.take_key(stub, "start"), "the agent was not told to start QEMU");
        let mut machine = self.machine.lock().unwrap();
        (machine.stopped, machine.loaded) = (true, Some((stub.domid(), state.to_vec())));
        Ok(())
    }
}

impl Qemu {
    /// Removes a key that the toolstack has written for the agent; returns whether it was there.
    fn take_key(&self, stub: Domain, key: &str) -> bool {
        let store = self.server.connect(DomId::DOM0);
        let models = XsPath::domain(stub.domid()).join("device-model").unwrap();
        let targets = store.list(&models).unwrap().unwrap_or_default();
        let paths = targets.iter().map(|target| models.join(format!("{target}/{key}")).unwrap());
        paths.filter(|path| store.read(path).unwrap().is_some_and(|_| store.rm(path).is_ok())).count() > 0
    }

    /// Whether it runs, rather than being stopped.
    pub(crate) fn runs(&self) -> bool {
        !self.machine.lock().unwrap().stopped
    }

    /// Something is on its PCI bus, in this slot and of this class.
    pub(crate) fn put_device(&self, slot: u32, class: u32) {
        let device =
            json!({"bus": 0, "slot": slot, "function": 0, "qdev_id": "", "class_info": {"class": class}});
        self.machine.lock().unwrap().places.push(device);
    }

    /// The agent that is ready now was told already to start QEMU.
    pub(crate) fn note_early(&self) {
        self.machine.lock().unwrap().early = true;
    }

    /// Whether it was started as soon as its stubdomain had booted.
    pub(crate) fn started_early(&self) -> bool {
        self.machine.lock().unwrap().early
    }

    /// It has a display, whose memory is at this address.
    pub(crate) fn put_display(&self, address: i64) {
        let device = json!({
            "bus": 0, "slot": 2, "function": 0, "qdev_id": "", "class_info": {"class": 0x0300},
            "regions": [{"bar": 0, "type": "memory", "address": address, "size": 16 << 20}],
        });
        self.machine.lock().unwrap().places.push(device);
    }

    /// The state that it has loaded.
    pub(crate) fn loaded(&self) -> Option<Vec<u8>> {
        self.machine.lock().unwrap().loaded.clone().map(|(_, state)| state)
    }

    /// Whether it has loaded a state in this stubdomain, and runs.
    pub(crate) fn goes_on_in(&self, stub: DomId) -> bool {
        let machine = self.machine.lock().unwrap();
        !machine.stopped && machine.loaded.as_ref().is_some_and(|(its, _)| *its == stub)
    }

    pub(crate) fn new(server: &Arc<Server>) -> Self {
        let machine: Arc<Mutex<Machine>> = Arc::default();
        machine.lock().unwrap().cpus = 1;
        let (player, known, server) = (machine.clone(), server.clone(), server.clone());
        let monitor = FakeMonitor::new(move |command, arguments| {
            let mut machine = player.lock().unwrap();
            machine.asked += 1;
            if machine.broken {
                return Play::Refuse(ErrorClass::Generic, "broken for a test".to_owned());
            }
            if let Some(left) = machine.fail_after {
                machine.fail_after = left.checked_sub(1);
                if left == 0 {
                    return Play::Refuse(ErrorClass::Generic, "refused for a test".to_owned());
                }
            }
            let played = machine.play_state(command, arguments);
            played
                .unwrap_or_else(|| machine.play(command, arguments, &sets(&server), &devices(&server)))
                .unwrap_or_else(|why| Play::Refuse(ErrorClass::Generic, why))
        });
        Self { machine, monitor, server: known }
    }

    /// Gives the machine a CD drive.
    pub(crate) fn add_tray(&self, id: &str, disc: bool) {
        let tray = Tray { open: false, locked: false, disc };
        self.machine.lock().unwrap().trays.insert(id.to_owned(), tray);
    }

    pub(crate) fn lock_tray(&self, id: &str, locked: bool) {
        self.machine.lock().unwrap().trays.get_mut(id).unwrap().locked = locked;
    }

    /// The drives and the number of processors.
    pub(crate) fn state(&self) -> (Vec<(String, Tray)>, u64) {
        let machine = self.machine.lock().unwrap();
        (machine.trays.clone().into_iter().collect(), machine.cpus)
    }

    /// Refuses every command.
    pub(crate) fn break_down(&self, broken: bool) {
        self.machine.lock().unwrap().broken = broken;
    }

    /// Refuses the `n`th command from now on, from 1; 0 refuses none.
    pub(crate) fn fail_nth(&self, n: u64) {
        self.machine.lock().unwrap().fail_after = n.checked_sub(1);
    }

    /// The cards that were plugged in.
    pub(crate) fn cards(&self) -> Vec<String> {
        self.machine.lock().unwrap().cards.iter().cloned().collect()
    }

    /// The SCSI disks that were plugged in, and block nodes.
    pub(crate) fn scsi(&self) -> (Vec<String>, Vec<String>) {
        let machine = self.machine.lock().unwrap();
        (machine.scsi.keys().cloned().collect(), machine.nodes.iter().cloned().collect())
    }

    /// Has the guest keep its cards, whatever it is asked.
    pub(crate) fn hold_cards(&self, holds: bool) {
        self.machine.lock().unwrap().holds_cards = holds;
    }

    /// What is done when a picture of the screen is asked for, with the file's name.
    pub(crate) fn on_screendump(&self, draw: impl Fn(&str) + Send + 'static) {
        self.machine.lock().unwrap().draw = Some(Box::new(draw));
    }

    pub(crate) fn asked(&self) -> u64 {
        self.machine.lock().unwrap().asked
    }
}

/// The PV disks of stubdomains whose backend is at work: the stubdomain, and the disk's number.
fn working(server: &Server) -> Vec<(String, u32)> {
    let nodes = server.dump();
    let backend = |path: &str| {
        let mut parts = path.strip_prefix("/local/domain/0/backend/vbd/")?.split('/');
        let (domid, devid, state) = (parts.next()?, parts.next()?, parts.next()?);
        Some((domid.to_owned(), devid.parse().ok().filter(|_| state == "state")?))
    };
    let working = nodes.iter().filter(|(_, (value, _))| matches!(value.as_slice(), b"2" | b"4"));
    working
        .filter_map(|(path, _)| backend(path))
        .filter(|(domid, _)| nodes.contains_key(&format!("/local/domain/{domid}/target")))
        .collect()
}

/// The sets that the agent has made: one for each CD drive's PV disk.
fn sets(server: &Server) -> Vec<u32> {
    let nodes = server.dump();
    let is_cdrom = |(domid, devid): &(String, u32)| {
        let kind = nodes.get(&format!("/local/domain/{domid}/device/vbd/{devid}/device-type"));
        kind.is_some_and(|(value, _)| value == b"cdrom")
    };
    working(server).into_iter().filter(is_cdrom).map(|(_, devid)| devid).collect()
}

/// The PV disks' devices.
fn devices(server: &Server) -> Vec<String> {
    let letters = (0..26).filter_map(|letter| Vdev::new(VdevBus::Xvd, letter, 0));
    let disks = working(server);
    letters
        .filter(|vdev| disks.iter().any(|(_, devid)| *devid == vdev.devid()))
        .map(|vdev| format!("/dev/{vdev}"))
        .collect()
}

impl Machine {
    /// The drives, or the named nodes.
    fn blocks(&self, command: &str) -> Value {
        if command == "query-named-block-nodes" {
            let node = |name: &String| json!({"node-name": name, "drv": "host_device"});
            return self.nodes.iter().map(node).collect();
        }
        let trays = self.trays.iter().map(|(id, tray)| drive(id, tray));
        let disks = self.scsi.iter().map(|(id, node)| {
            json!({"device": "", "qdev": id, "removable": false, "type": "unknown", "locked": false,
                "inserted": {"file": "/dev/xvda", "node-name": node, "ro": false, "drv": "host_device"}})
        });
        trays.chain(disks).collect()
    }

    /// Stopping and running, and the state of the devices.
    fn play_state(&mut self, command: &str, arguments: &Value) -> Option<Result<Play, String>> {
        let nothing = Ok(Play::Return(json!({})));
        Some(match command {
            "stop" => {
                self.stopped = true;
                nothing
            }
            "cont" => {
                self.stopped = false;
                nothing
            }
            "xen-set-global-dirty-log" => nothing,
            "xen-save-devices-state" => {
                let asked = arguments["filename"] == "/dev/fdset/1" && arguments["live"] == false;
                // QEMU would do it while it runs, and the state would be older than the memory.
                if asked && self.stopped { nothing } else { Err(format!("not now: {arguments}")) }
            }
            "query-pci" => Ok(Play::Return(json!([{"bus": 0, "devices": self.places}]))),
            "query-version" => {
                let qemu = json!({"major": 7, "minor": 2, "micro": 1});
                Ok(Play::Return(json!({"qemu": qemu, "package": ""})))
            }
            "query-migrate" => {
                let status = if self.loaded.is_some() { json!({"status": "completed"}) } else { json!({}) };
                Ok(Play::Return(status))
            }
            "query-status" => {
                let status = if self.stopped { "paused" } else { "running" };
                Ok(Play::Return(json!({"status": status, "running": !self.stopped})))
            }
            _ => return None,
        })
    }

    fn play(
        &mut self,
        command: &str,
        arguments: &Value,
        sets: &[u32],
        disks: &[String],
    ) -> Result<Play, String> {
        let nothing = Ok(Play::Return(json!({})));
        match command {
            "query-block" | "query-named-block-nodes" => return Ok(Play::Return(self.blocks(command))),
            "query-fdsets" => {
                let set = |devid| json!({"fdset-id": devid, "fds": [{"fd": 9, "opaque": format!("stub-devid:{devid}")}]});
                return Ok(Play::Return(sets.iter().map(set).collect::<Vec<_>>().into()));
            }
            "query-hotpluggable-cpus" => {
                // As QEMU does: the last one first.
                let cpu = |number| {
                    let mut cpu = json!({"type": "x-cpu", "vcpus-count": 1, "props": {"socket-id": number}});
                    if number < self.cpus {
                        cpu["qom-path"] = json!("/machine/cpu");
                    }
                    cpu
                };
                return Ok(Play::Return((0..2).rev().map(cpu).collect::<Vec<_>>().into()));
            }
            "netdev_add" => {
                let id = arguments["id"].as_str().unwrap_or_default();
                return if self.netdevs.insert(id.to_owned()) {
                    nothing
                } else {
                    Err("Duplicate ID".to_owned())
                };
            }
            "device_add" if arguments["netdev"].is_string() => {
                let netdev = arguments["netdev"].as_str().unwrap_or_default();
                let id = arguments["id"].as_str().unwrap_or_default();
                let good = self.netdevs.contains(netdev) && self.cards.insert(id.to_owned());
                return if good { nothing } else { Err("no such backend, or there already".to_owned()) };
            }
            "qom-list" if arguments["path"] == "/machine/peripheral" => {
                let card = |id: &String| json!({"name": id, "type": "child<e1000>"});
                return Ok(Play::Return(self.cards.iter().map(card).collect::<Vec<_>>().into()));
            }
            "qom-list" if self.controller && arguments["path"] == "/machine/peripheral-anon" => {
                return Ok(Play::Return(json!([{"name": "device[0]", "type": "child<lsi53c895a>"}])));
            }
            "qom-list" => return Ok(Play::Refuse(ErrorClass::DeviceNotFound, "no such path".to_owned())),
            "device_add" if arguments["driver"] == "lsi53c895a" => {
                let new = !std::mem::replace(&mut self.controller, true);
                return if new { nothing } else { Err("there already".to_owned()) };
            }
            "device_add" if arguments["driver"] == "scsi-hd" => {
                let node = arguments["drive"].as_str().unwrap_or_default().to_owned();
                let id = arguments["id"].as_str().unwrap_or_default().to_owned();
                let free =
                    self.controller && self.nodes.contains(&node) && !self.scsi.values().any(|n| *n == node);
                return if free && self.scsi.insert(id, node).is_none() {
                    nothing
                } else {
                    Err(format!("no such disk: {arguments}"))
                };
            }
            "device_del" if self.holds_cards => return nothing,
            "device_del" => {
                let id = arguments["id"].as_str().unwrap_or_default();
                let gone = Event { name: "DEVICE_DELETED".to_owned(), data: json!({"device": id}) };
                return Ok(if self.cards.remove(id) || self.scsi.remove(id).is_some() {
                    Play::ReturnAfter(vec![gone], json!({}))
                } else {
                    Play::Refuse(ErrorClass::DeviceNotFound, format!("Device '{id}' not found"))
                });
            }
            "netdev_del" => {
                let id = arguments["id"].as_str().unwrap_or_default();
                return if self.netdevs.remove(id) {
                    nothing
                } else {
                    Ok(Play::Refuse(ErrorClass::DeviceNotFound, format!("Device '{id}' not found")))
                };
            }
            "blockdev-add" => {
                let node = arguments["node-name"].as_str().unwrap_or_default();
                let there = disks.contains(&arguments["filename"].as_str().unwrap_or_default().to_owned());
                return match arguments["driver"] == "host_device"
                    && there
                    && self.nodes.insert(node.to_owned())
                {
                    true => nothing,
                    false => Err(format!("no such device, or there already: {arguments}")),
                };
            }
            "blockdev-del" => {
                let node = arguments["node-name"].as_str().unwrap_or_default();
                return if self.scsi.values().any(|used| used == node) {
                    Err(format!("Node {node} is in use"))
                } else if self.nodes.remove(node) {
                    nothing
                } else {
                    Err(format!("Failed to find node with node-name='{node}'"))
                };
            }
            "screendump" => {
                let draw = self.draw.as_ref().ok_or("There is no console to take a screendump from.")?;
                draw(arguments["filename"].as_str().unwrap_or_default());
                return nothing;
            }
            "device_add" => {
                let there = arguments["socket-id"] == self.cpus && arguments["driver"] == "x-cpu";
                self.cpus += u64::from(there);
                return if there { nothing } else { Err(format!("wrong processor {arguments}")) };
            }
            _ => {}
        }
        let id = arguments["id"].as_str().unwrap_or_default();
        let tray = self.trays.get_mut(id).ok_or_else(|| format!("no drive {id}"))?;
        match command {
            "blockdev-open-tray" => tray.open |= !tray.locked || arguments["force"] == true,
            "blockdev-close-tray" => tray.open = false,
            "blockdev-remove-medium" if tray.open => tray.disc = false,
            "blockdev-change-medium" if tray.locked && !tray.open => return Err("locked".to_owned()),
            "blockdev-change-medium" => {
                let set = |devid: &u32| arguments["filename"] == format!("/dev/fdset/{devid}");
                let said = arguments["format"] == "host_device" && arguments["read-only-mode"] == "read-only";
                if !said || !sets.iter().any(set) {
                    return Err(format!("no such medium: {arguments}"));
                }
                (tray.open, tray.disc) = (false, true);
            }
            _ => return Err(format!("{command} not now")),
        }
        nothing
    }
}

fn drive(id: &str, tray: &Tray) -> Value {
    let mut drive = json!({
        "device": id, "qdev": id, "removable": true, "type": "unknown", "locked": tray.locked, "tray_open": tray.open,
    });
    if tray.disc {
        drive["inserted"] = json!({"file": "/dev/xvdd", "ro": true, "drv": "host_device"});
    }
    drive
}
