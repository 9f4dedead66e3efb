//! The older protocol of PCI hot-plug, translated to QMP.
//!
//! The toolstack writes `parameter`, then `command`; QEMU of old answered in `state` and `parameter`. What is
//! expected of both sides is in libxl (`tools/libs/light/libxl_pci.c` of Xen 4.17: `qemu_pci_add_xenstore`,
//! `qemu_pci_remove_xenstore`), which puts `state` back afterwards.
//!
//! ```text
//!  pci-ins  <address>[@<devfn>][,options]   device_add, query-pci    pci-inserted, and the devfn in parameter
//!                                                                    pci-insert-failed, and why in parameter
//!  pci-rem  <address>                       device_del, its event    pci-removed
//! ```
//!
//! The toolstack has attached the device to the stubdomain before; the kernel may not have found it yet.

use std::time::Duration;

use serde_json::{Value, json};
use stubdom_abi::{DmKey, PCI_WORD, harmless};

use crate::effect::Effect;
use crate::qmp::{Command, Purpose};

/// The longest text that is returned as a reason, in characters.
const REASON_MAX: usize = 120;
/// How long the stubdomain's kernel may take to find a device that was attached. libxl waits longer for the answer.
const APPEARS: Duration = Duration::from_secs(10);

/// A PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl Address {
    /// Reads `0000:00:10.0`, and the two digits that pciback writes for a function.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let domain = hex(parts.next()?, 4)?;
        let bus = u8::try_from(hex(parts.next()?, 2)?).ok()?;
        let (device, function) = parts.next()?.split_once('.')?;
        let device = u8::try_from(hex(device, 2)?).ok().filter(|device| *device < 32)?;
        let function = u8::try_from(hex(function, 2)?).ok().filter(|function| *function < 8)?;
        parts.next().is_none().then_some(Self { domain, bus, device, function })
    }

    /// The name that libxl gives to the device in QEMU.
    fn id(self) -> String {
        format!("pci-pt-{:02x}_{:02x}.{:01x}", self.bus, self.device, self.function)
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:01x}", self.domain, self.bus, self.device, self.function)
    }
}

#[derive(Debug)]
enum Phase {
    Idle,
    /// The stubdomain's kernel has to find the device.
    Appearing {
        device: Address,
        devfn: Option<u16>,
        until: Duration,
    },
    /// `device_add` is under way.
    Adding {
        id: String,
    },
    /// `query-pci` will show where it was plugged in.
    Locating {
        id: String,
    },
    /// `device_del` is under way, or its event is awaited.
    Removing {
        id: String,
    },
}

/// The protocol's state.
#[derive(Debug)]
pub(crate) struct PciCommands {
    phase: Phase,
    /// Counts commands: an answer to an earlier one, which the toolstack abandoned, is ignored.
    number: u32,
    /// Whether QEMU has the rights that it needs for a device.
    is_able: bool,
}

impl PciCommands {
    /// Whether QEMU `is_able` to take a device is decided at its start.
    pub(crate) fn new(is_able: bool) -> Self {
        Self { phase: Phase::Idle, number: 0, is_able }
    }

    /// Takes a command. What it wants next, [`look`](Self::look) returns.
    pub(crate) fn command(&mut self, now: Duration, command: &[u8], parameter: &[u8]) -> Vec<Effect> {
        let text = harmless(parameter);
        let (place, _options) = text.split_once(',').unwrap_or((&text, ""));
        let (address, devfn) = place.split_once('@').map_or((place, None), |(a, devfn)| (a, Some(devfn)));
        let slot = devfn.map(|devfn| hex(devfn, 2).filter(|devfn| *devfn < 256));
        self.number = self.number.wrapping_add(1);
        match (command, Address::parse(address), slot) {
            (b"pci-ins", Some(_), None | Some(Some(_))) if !self.is_able => {
                self.failed(&format!("QEMU was started without a PCI device and without {PCI_WORD}"))
            }
            (b"pci-ins", Some(device), None | Some(Some(_))) => {
                self.phase = Phase::Appearing { device, devfn: slot.flatten(), until: now + APPEARS };
                Vec::new()
            }
            (b"pci-rem", Some(address), _) => {
                let id = address.id();
                let ask = self.ask("device_del", json!({"id": id}));
                self.phase = Phase::Removing { id };
                vec![ask]
            }
            (b"pci-ins", ..) => self.failed(&format!("\"{text}\" is not a PCI address")),
            (b"pci-rem", ..) => vec![Effect::Log(format!("pci-rem: \"{text}\" is not a PCI address"))],
            (b"", ..) => Vec::new(),
            _ => vec![Effect::Log(format!("the command \"{}\" is unknown", harmless(command)))],
        }
    }

    /// Whether a device is to appear.
    pub(crate) const fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Appearing { .. })
    }

    /// Looks whether a device has appeared that is waited for. `inside` returns its address inside the stubdomain,
    /// which may not be that of the host, or nothing as long as the kernel has not found it.
    pub(crate) fn look(
        &mut self,
        now: Duration,
        inside: impl FnOnce(Address) -> Option<Address>,
    ) -> Vec<Effect> {
        let Phase::Appearing { device, devfn, until } = self.phase else { return Vec::new() };
        match inside(device) {
            Some(inside) => self.insert(device, inside, devfn),
            None if now >= until => {
                self.failed(&format!("{device} did not appear in {} s: is it attached?", APPEARS.as_secs()))
            }
            None => Vec::new(),
        }
    }

    fn insert(&mut self, address: Address, inside: Address, devfn: Option<u16>) -> Vec<Effect> {
        let id = address.id();
        let mut arguments =
            json!({"driver": "xen-pci-passthrough", "id": id, "hostaddr": inside.to_string()});
        if let Some(devfn) = devfn.filter(|devfn| *devfn != 0) {
            arguments["addr"] = json!(format!("{:x}.{:x}", devfn >> 3, devfn & 7));
        }
        self.phase = Phase::Adding { id };
        vec![self.ask("device_add", arguments)]
    }

    /// Takes QEMU's answer to the command with this number.
    pub(crate) fn answered(&mut self, number: u32, answer: &Result<Value, String>) -> Vec<Effect> {
        if number != self.number {
            return Vec::new();
        }
        match (core::mem::replace(&mut self.phase, Phase::Idle), answer) {
            (Phase::Adding { id }, Ok(_)) => {
                self.phase = Phase::Locating { id };
                vec![self.ask("query-pci", json!({}))]
            }
            (Phase::Locating { id }, Ok(buses)) => match devfn_of(buses, &id) {
                Some(devfn) => vec![
                    Effect::Write(DmKey::Parameter, format!("0x{devfn:02x}")),
                    Effect::Write(DmKey::State, "pci-inserted".to_owned()),
                    Effect::Log(format!("{id} was plugged in at 0x{devfn:02x}")),
                ],
                None => self.failed("QEMU accepted the device but does not list it"),
            },
            (Phase::Adding { .. } | Phase::Locating { .. }, Err(error)) => self.failed(error),
            // The guest has to agree: an event reports it.
            (phase @ Phase::Removing { .. }, Ok(_)) => {
                self.phase = phase;
                Vec::new()
            }
            (Phase::Removing { id }, Err(error)) if error.contains("not found") => removed(&id),
            (Phase::Removing { id }, Err(error)) => {
                vec![Effect::Log(format!("{id} was not removed: {error}"))]
            }
            // An answer to another command, whose number is the same only after four thousand million.
            (phase @ (Phase::Idle | Phase::Appearing { .. }), _) => {
                self.phase = phase;
                Vec::new()
            }
        }
    }

    /// Takes an event of QEMU's.
    pub(crate) fn event(&mut self, name: &str, data: &Value) -> Vec<Effect> {
        match &self.phase {
            Phase::Removing { id } if name == "DEVICE_DELETED" && data["device"] == json!(id) => {
                let effects = removed(id);
                self.phase = Phase::Idle;
                effects
            }
            _ => Vec::new(),
        }
    }

    fn ask(&self, name: &'static str, arguments: Value) -> Effect {
        Effect::Ask(Command { purpose: Purpose::Pci(self.number), name, arguments })
    }

    fn failed(&mut self, why: &str) -> Vec<Effect> {
        self.phase = Phase::Idle;
        let why: String = harmless(why.as_bytes()).chars().take(REASON_MAX).collect();
        vec![
            Effect::Log(format!("a PCI device was not plugged in: {why}")),
            Effect::Write(DmKey::Parameter, why),
            Effect::Write(DmKey::State, "pci-insert-failed".to_owned()),
        ]
    }
}

fn removed(id: &str) -> Vec<Effect> {
    vec![Effect::Write(DmKey::State, "pci-removed".to_owned()), Effect::Log(format!("{id} was removed"))]
}

/// Where `query-pci` shows the device of this name.
fn devfn_of(buses: &Value, id: &str) -> Option<u64> {
    let devices = buses.as_array()?.iter().filter_map(|bus| bus["devices"].as_array()).flatten();
    let device = devices.into_iter().find(|device| device["qdev_id"] == json!(id))?;
    let (slot, function) = (device["slot"].as_u64()?, device["function"].as_u64()?);
    (slot < 32 && function < 8).then_some(slot << 3 | function)
}

/// A number of at most `digits` hexadecimal digits, and nothing else.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u16::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(name: &'static str, arguments: Value) -> Effect {
        Effect::Ask(Command { purpose: Purpose::Pci(1), name, arguments })
    }

    fn given(command: &str, parameter: &str) -> (PciCommands, Vec<Effect>) {
        let mut commands = PciCommands::new(true);
        let mut effects = commands.command(Duration::ZERO, command.as_bytes(), parameter.as_bytes());
        effects.extend(commands.look(Duration::ZERO, Some));
        (commands, effects)
    }

    #[test]
    fn an_insertion_ends_with_the_place_of_the_device() {
        let (mut commands, effects) = given("pci-ins", "0000:00:10.1@28,msitranslate=0,power_mgmt=0");
        let asked = json!({"driver": "xen-pci-passthrough", "id": "pci-pt-00_10.1", "hostaddr": "0000:00:10.1",
                           "addr": "5.0"});
        assert_eq!(effects, [ask("device_add", asked)]);
        assert_eq!(commands.answered(1, &Ok(json!({}))), [ask("query-pci", json!({}))]);
        let buses = json!([{"bus": 0, "devices": [
            {"qdev_id": "", "slot": 1, "function": 0}, {"qdev_id": "pci-pt-00_10.1", "slot": 5, "function": 0}]}]);
        let effects = commands.answered(1, &Ok(buses));
        assert_eq!(effects[0], Effect::Write(DmKey::Parameter, "0x28".to_owned()));
        assert_eq!(effects[1], Effect::Write(DmKey::State, "pci-inserted".to_owned()));
    }

    #[test]
    fn qemus_refusal_and_nonsense_are_reported_to_the_toolstack() {
        let failed = Effect::Write(DmKey::State, "pci-insert-failed".to_owned());
        let (mut commands, _) = given("pci-ins", "0000:00:10.0,msitranslate=0,power_mgmt=0");
        let effects = commands.answered(1, &Err("Could not open config".to_owned()));
        assert!(effects.contains(&Effect::Write(DmKey::Parameter, "Could not open config".to_owned())));
        assert!(effects.contains(&failed));
        for parameter in
            ["", "10.0", "0000:00:20.0", "0000:00:10.8", "0000:00:10.0@100", "0000:00:10.0:1", "x"]
        {
            assert!(given("pci-ins", parameter).1.contains(&failed), "{parameter:?}");
        }
    }

    #[test]
    fn a_removal_waits_for_the_guest() {
        let (mut commands, effects) = given("pci-rem", "0000:00:10.0");
        assert_eq!(effects, [ask("device_del", json!({"id": "pci-pt-00_10.0"}))]);
        assert_eq!(commands.answered(1, &Ok(json!({}))), []);
        assert_eq!(commands.event("DEVICE_DELETED", &json!({"path": "/machine"})), []);
        let effects = commands.event("DEVICE_DELETED", &json!({"device": "pci-pt-00_10.0"}));
        assert_eq!(effects[0], Effect::Write(DmKey::State, "pci-removed".to_owned()));
        // What is missing is removed.
        let (mut commands, _) = given("pci-rem", "0000:00:10.0");
        let effects = commands.answered(1, &Err("Device 'pci-pt-00_10.0' not found".to_owned()));
        assert_eq!(effects[0], Effect::Write(DmKey::State, "pci-removed".to_owned()));
    }

    #[test]
    fn a_command_that_was_abandoned_changes_nothing_later() {
        let (mut commands, _) = given("pci-ins", "0000:00:10.0");
        commands.command(Duration::ZERO, b"pci-rem", b"0000:00:11.0");
        assert_eq!(commands.answered(1, &Ok(json!({}))), []);
    }

    #[test]
    fn the_address_inside_the_stubdomain_is_asked_for_under_the_hosts_name() {
        let mut commands = PciCommands::new(true);
        assert_eq!(commands.command(Duration::ZERO, b"pci-ins", b"0000:03:00.1"), []);
        // As pciback writes it.
        let effects = commands.look(Duration::ZERO, |_| Address::parse("0000:00:00.00"));
        let asked =
            json!({"driver": "xen-pci-passthrough", "id": "pci-pt-03_00.1", "hostaddr": "0000:00:00.0"});
        assert_eq!(effects, [ask("device_add", asked)]);
    }

    #[test]
    fn a_device_is_waited_for_but_not_for_ever() {
        let mut commands = PciCommands::new(true);
        assert_eq!(commands.command(Duration::ZERO, b"pci-ins", b"0000:00:10.0"), []);
        assert_eq!(commands.look(APPEARS / 2, |_| None), []);
        let effects = commands.look(APPEARS, |_| None);
        assert!(effects.contains(&Effect::Write(DmKey::State, "pci-insert-failed".to_owned())));
        assert_eq!(commands.look(APPEARS, Some), [], "what has failed is not tried again");
    }

    #[test]
    fn a_confined_qemu_is_not_asked() {
        let mut commands = PciCommands::new(false);
        let effects = commands.command(Duration::ZERO, b"pci-ins", b"0000:00:10.0");
        assert!(effects.contains(&Effect::Write(DmKey::State, "pci-insert-failed".to_owned())));
        assert!(matches!(&effects[0], Effect::Log(line) if line.ends_with(PCI_WORD)), "{effects:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_in_bounds(command in "(pci-ins|pci-rem|)[ -~]{0,3}", parameter in "\\PC{0,300}") {
            let (mut commands, effects) = given(&command, &parameter);
            let later = commands.answered(1, &Err(parameter));
            for effect in effects.into_iter().chain(later) {
                if let Effect::Write(_, value) = effect {
                    prop_assert!(value.len() <= stubdom_abi::MAX_STUB_VALUE);
                }
            }
        }
    }
}
