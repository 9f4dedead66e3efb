//! What the arguments ask of the stubdomain, worked out without I/O.

use stubdom_abi::{Argv, STATE_IN_FD};

/// The longest name of a network interface (`IFNAMSIZ` is 16 with the final NUL).
const IFNAME_MAX: usize = 15;

/// QEMU's device for a passed-through one.
const PCI_DEVICE: &[u8] = b"xen-pci-passthrough";

/// What QEMU is to be started with, and what has to exist before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The toolstack's arguments with the incoming state's descriptor filled in.
    pub(crate) args: Vec<Vec<u8>>,
    /// Whether an argument names the incoming state.
    pub(crate) incoming: bool,
    /// Whether an argument passes a device of the host through.
    pub(crate) names_pci: bool,
    /// The block devices that the arguments name (`/dev/xvda`), each once.
    pub(crate) disks: Vec<String>,
    /// The taps that QEMU will make, each with its place among the stubdomain's PV NICs.
    pub(crate) nics: Vec<Nic>,
}

/// One emulated NIC: QEMU's tap and the PV NIC that it is bridged with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nic {
    /// The tap's name.
    pub(crate) tap: String,
    /// The PV NIC's number (`/local/domain/<stub>/device/vif/<devid>`).
    pub(crate) devid: u32,
}

impl Nic {
    /// The NIC that a PV NIC makes which was plugged in later.
    pub(crate) fn plugged(devid: u32) -> Self {
        Self { tap: stubdom_abi::plugged_tap(devid), devid }
    }

    /// The bridge's name.
    pub(crate) fn bridge(&self) -> String {
        format!("br{}", self.devid)
    }
}

impl Plan {
    /// Reads the arguments.
    pub(crate) fn of(argv: &Argv) -> Self {
        let incoming = argv.iter().any(|arg| arg == Argv::RESTORE_INCOMING.as_bytes());
        let args = argv.iter().map(fill_in).collect();
        let names_pci = argv.iter().any(|arg| find(arg, PCI_DEVICE).is_some());
        Self { args, incoming, names_pci, disks: disks(argv), nics: nics(argv) }
    }
}

fn fill_in(arg: &[u8]) -> Vec<u8> {
    if arg == Argv::RESTORE_INCOMING.as_bytes() {
        format!("fd:{STATE_IN_FD}").into_bytes()
    } else {
        arg.to_vec()
    }
}

/// Every `/dev/xvd<letters>` anywhere in the arguments. What the arguments do not name is a PV disk that QEMU never
/// opens, or a drive without a medium, whose device never comes.
fn disks(argv: &Argv) -> Vec<String> {
    const PREFIX: &[u8] = b"/dev/xvd";
    let mut found = Vec::new();
    for arg in argv.iter() {
        let mut rest = arg;
        while let Some(at) = find(rest, PREFIX) {
            rest = rest.get(at + PREFIX.len()..).unwrap_or_default();
            let letters: String =
                rest.iter().take_while(|b| b.is_ascii_lowercase()).map(|b| char::from(*b)).collect();
            let name = format!("/dev/xvd{letters}");
            if (1..=3).contains(&letters.len()) && !found.contains(&name) {
                found.push(name);
            }
        }
    }
    found
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The taps of `-netdev`, in order. A `-netdev` with the id `net<n>` belongs to the PV NIC n, as xl numbers them;
/// with another id to the next number.
fn nics(argv: &Argv) -> Vec<Nic> {
    let args: Vec<&[u8]> = argv.iter().collect();
    let mut nics: Vec<Nic> = Vec::new();
    for pair in args.windows(2) {
        let [b"-netdev" | b"--netdev", option] = pair else { continue };
        let Some((id, tap)) = tap_of(option) else { continue };
        let next = nics.iter().map(|nic| nic.devid + 1).max().unwrap_or(0);
        let devid = id.and_then(|id| id.strip_prefix("net")?.parse::<u16>().ok()).map_or(next, u32::from);
        if nics.iter().all(|nic| nic.tap != tap && nic.devid != devid) {
            nics.push(Nic { tap, devid });
        }
    }
    nics
}

/// The id and the interface name of a `-netdev` option, when it is a tap and names its interface.
fn tap_of(option: &[u8]) -> Option<(Option<String>, String)> {
    let (mut kind, mut id, mut ifname) = (None, None, None);
    for (index, field) in option_fields(core::str::from_utf8(option).ok()?).into_iter().enumerate() {
        match field.split_once('=') {
            None if index == 0 => kind = Some(field),
            Some(("type", value)) => kind = Some(value.to_owned()),
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("ifname", value)) => ifname = Some(value.to_owned()),
            _ => {}
        }
    }
    let ifname = ifname.filter(|name| is_ifname(name))?;
    (kind.as_deref() == Some("tap")).then_some((id, ifname))
}

/// Splits one of QEMU's options at its commas; a doubled comma is one comma of a value.
fn option_fields(option: &str) -> Vec<String> {
    const COMMA: &str = "\u{1}";
    option.replace(",,", COMMA).split(',').map(|field| field.replace(COMMA, ",")).collect()
}

fn is_ifname(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
    (1..=IFNAME_MAX).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn plan(args: &[&str]) -> Plan {
        Plan::of(&Argv::new(args.iter().copied()).unwrap())
    }

    fn nic(devid: u32, tap: &str) -> Nic {
        Nic { tap: tap.to_owned(), devid }
    }

    #[test]
    fn the_incoming_state_gets_its_descriptor() {
        let plan = plan(&["-incoming", "$STUBDOM_RESTORE_INCOMING_ARG", "a $STUBDOM_RESTORE_INCOMING_ARG"]);
        assert!(plan.incoming);
        assert_eq!(plan.args[1], b"fd:3");
        assert_eq!(plan.args[2], b"a $STUBDOM_RESTORE_INCOMING_ARG", "only a whole argument is replaced");
    }

    #[test]
    fn every_named_disk_is_waited_for_once() {
        let plan = plan(&[
            "-drive",
            "file=/dev/xvda,if=ide,index=0",
            "-drive",
            "file=/dev/xvdab,if=none",
            "-x",
            "/dev/xvda/dev/xvdb",
            "/dev/xvd",
            "/dev/xvdABC",
        ]);
        assert_eq!(plan.disks, ["/dev/xvda", "/dev/xvdab", "/dev/xvdb"]);
    }

    #[test]
    fn taps_belong_to_the_nics_that_their_ids_name() {
        let plan = plan(&[
            "-netdev",
            "type=tap,id=net1,ifname=vif7.1-emu,br=xenbr0,script=no,downscript=no",
            "-netdev",
            "tap,id=net0,ifname=vif7.0-emu",
            "-netdev",
            "tap,id=lan,ifname=extra",
            "-netdev",
            "user,id=net9,ifname=nothing",
            "-netdev",
            "type=tap,id=net5",
        ]);
        assert_eq!(plan.nics, [nic(1, "vif7.1-emu"), nic(0, "vif7.0-emu"), nic(2, "extra")]);
        assert_eq!(plan.nics[0].bridge(), "br1");
    }

    #[test]
    fn absurd_interface_names_are_no_nics() {
        for name in ["", "../../etc", "a/b", "sixteen-bytes-xx", "a b", "..", "caf\u{e9}"] {
            assert_eq!(plan(&["-netdev", &format!("tap,id=net0,ifname={name}")]).nics, [], "{name:?}");
        }
    }

    #[test]
    fn doubled_commas_stay_in_the_value() {
        assert_eq!(option_fields("tap,ifname=a,,b,id=x"), ["tap", "ifname=a,b", "id=x"]);
    }

    #[test]
    fn two_taps_never_share_a_nic() {
        let plan = plan(&["-netdev", "tap,id=net0,ifname=a", "-netdev", "tap,id=net0,ifname=b"]);
        assert_eq!(plan.nics, [nic(0, "a")]);
    }

    proptest! {
        #[test]
        fn any_arguments_give_a_plan(args in vec(vec(1..=255_u8, 0..80), 0..30)) {
            let argv = Argv::new(args).unwrap();
            let plan = Plan::of(&argv);
            prop_assert_eq!(plan.args.len(), argv.len());
        }

        #[test]
        fn any_netdev_gives_a_name_that_is_safe_in_a_path(
            option in "(type=)?tap,(id=net[0-9]{0,12},)?ifname=[ -~]{0,24}",
        ) {
            let plan = Plan::of(&Argv::new(["-netdev".to_owned(), option]).unwrap());
            prop_assert!(plan.nics.iter().all(|nic| is_ifname(&nic.tap)));
        }
    }
}
