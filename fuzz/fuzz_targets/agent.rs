//! The stubdomain's agent: its monitor session with a hostile QEMU, the older PCI protocol, QEMU's arguments, the kernel's
//! answers about interfaces.
#![no_main]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use stubdom_abi::Argv;

#[path = "../../bin/outrigger-agent/src/effect.rs"]
#[allow(dead_code)]
mod effect;
#[path = "../../bin/outrigger-agent/src/machines/pci.rs"]
#[allow(dead_code)]
mod pci;
#[path = "../../bin/outrigger-agent/src/plan.rs"]
#[allow(dead_code)]
mod plan;
#[path = "../../bin/outrigger-agent/src/qmp.rs"]
#[allow(dead_code)]
mod qmp;
#[path = "../../bin/outrigger-agent/src/services/rtnl.rs"]
#[allow(dead_code)]
mod rtnl;

use effect::Effect;
use qmp::{Message, Purpose, Qmp};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 3 {
        0 => session(data),
        1 => plan_of(data),
        _ => {
            let sequence =
                data.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let _ = rtnl::outcome(data, sequence);
            let _ = rtnl::outcome(data, 7);
        }
    }
});

/// A session: bytes of QEMU's, commands of the toolstack's and time.
fn session(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket");
    theirs.set_nonblocking(true).expect("a socket");
    let (mut qmp, mut pci) = (Qmp::new(ours), pci::PciCommands::new(data.len() % 8 > 0));
    let mut now = Duration::from_secs(1);
    let mut rest = data;
    while let [kind, length, more @ ..] = rest {
        let (bytes, behind) = more.split_at(more.len().min(usize::from(*length)));
        rest = behind;
        let effects = match kind % 6 {
            0 => drop_result(theirs.write_all(bytes)),
            1 => drop_result(theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n")),
            2 => {
                let mut parts = bytes.splitn(2, |byte| *byte == 0);
                let mut part = || parts.next().unwrap_or_default();
                pci.command(now, part(), part())
            }
            3 => {
                let words: [&[u8]; 3] = [b"pci-ins", b"pci-rem", b""];
                let parameters: [&[u8]; 3] =
                    [b"0000:00:10.0", b"0000:00:10.0@38,msitranslate=1", b"0000:ff:1f.7"];
                let choose = |at: usize| usize::from(bytes.get(at).copied().unwrap_or(0));
                pci.command(now, words[choose(0) % 3], parameters[choose(1) % 3])
            }
            4 => pci.look(now, |device| (length % 2 == 0).then_some(device)),
            _ => {
                now += Duration::from_secs(u64::from(*length));
                pci.look(now, |_| None)
            }
        };
        perform(&mut qmp, effects);
        if let Ok(messages) = qmp.pump() {
            for message in messages {
                let effects = match message {
                    Message::Greeting => Vec::new(),
                    Message::Answer(Purpose::Pci(number), answer) => pci.answered(number, &answer),
                    Message::Answer(..) => Vec::new(),
                    Message::Event(name, data) => pci.event(&name, &data),
                };
                perform(&mut qmp, effects);
            }
        }
    }
}

fn drop_result(_: std::io::Result<()>) -> Vec<Effect> {
    Vec::new()
}

fn perform(qmp: &mut Qmp, effects: Vec<Effect>) {
    for effect in effects {
        match effect {
            Effect::Ask(command) => drop(qmp.ask(command, None)),
            Effect::Write(_, text) => assert!(text.len() <= 256 && !text.contains('\0'), "{text:?}"),
            Effect::Log(line) => assert!(!line.contains('\n'), "{line:?}"),
            _ => {}
        }
    }
}

fn plan_of(data: &[u8]) {
    let Ok(argv) = Argv::from_dmargs(data) else { return };
    let plan = plan::Plan::of(&argv);
    assert_eq!(plan.args.len(), argv.len());
    for disk in &plan.disks {
        let letters = disk.strip_prefix("/dev/xvd").expect("a PV disk");
        assert!((1..=3).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_lowercase()));
    }
    for (at, nic) in plan.nics.iter().enumerate() {
        assert!((1..=15).contains(&nic.tap.len()) && !nic.tap.contains('/'), "{nic:?}");
        let earlier = &plan.nics[..at];
        assert!(earlier.iter().all(|other| other.tap != nic.tap && other.devid != nic.devid), "{nic:?}");
    }
}
