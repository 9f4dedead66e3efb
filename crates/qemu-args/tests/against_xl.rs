//! Our arguments against those that xl of Xen 4.17 wrote to `dm-argv` for the same configurations, with a Linux
//! stubdomain. `tests/xl/NAME.argv` was recorded in a dom0 from `xl create NAME.cfg`, one argument a line, with the
//! domid replaced by 7. Every difference is one of those in the crate's documentation, and is made here by name.

use config::Uuid;
use qemu_args::{Facts, QemuFeatures, plan};
use xen_types::DomId;

fn ours(cfg: &str) -> Vec<String> {
    let loaded = config::load_str("xl.cfg", cfg);
    let rendered = loaded.render(false);
    let config = loaded.config.unwrap_or_else(|| panic!("{rendered}"));
    let target = DomId::new(7).expect("7 is not reserved");
    let facts = Facts { uuid: Uuid::from_u128(1), qemu: QemuFeatures::default(), incoming: false };
    let plan = plan(&config, &facts).unwrap_or_else(|error| panic!("{error}"));
    let argv = plan.argv(target).unwrap_or_else(|error| panic!("{error}"));
    argv.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}

struct Theirs(Vec<String>);

impl Theirs {
    fn recorded(argv: &str) -> Self {
        Self(argv.lines().map(str::to_owned).collect())
    }

    fn replace(mut self, old: &str, new: &str) -> Self {
        let mut found = false;
        for arg in &mut self.0 {
            found |= arg.contains(old);
            *arg = arg.replace(old, new);
        }
        assert!(found, "xl does not say {old:?}");
        self
    }

    fn remove(mut self, args: &[&str]) -> Self {
        let at = self.0.windows(args.len()).position(|window| window == args);
        let at = at.unwrap_or_else(|| panic!("xl does not say {args:?}"));
        self.0.drain(at..at + args.len());
        self
    }

    /// Moves arguments to the end.
    fn last(self, args: &[&str]) -> Self {
        let mut this = self.remove(args);
        this.0.extend(args.iter().map(|arg| (*arg).to_owned()));
        this
    }

    /// `-device` with the PCI slots that QEMU gives by itself, in the arguments' order.
    fn in_slots(self, slots: &[(&str, &str)]) -> Self {
        slots.iter().fold(self, |this, (device, slot)| {
            let with_slot = format!("{device},addr={slot}");
            let mut found = 0;
            let arg = |arg: String| {
                let is_it = arg == *device;
                found += usize::from(is_it);
                if is_it { with_slot.clone() } else { arg }
            };
            let args = this.0.into_iter().map(arg).collect();
            assert_eq!(found, 1, "xl says {device:?} once");
            Self(args)
        })
    }

    /// `-name NAME` is `-name guest=NAME`.
    fn named(mut self) -> Self {
        let at = self.0.iter().position(|arg| arg == "-name").expect("xl names the guest");
        self.0[at + 1].insert_str(0, "guest=");
        self
    }
}

#[test]
fn a_disk_and_two_serial_ports() {
    let theirs = Theirs::recorded(include_str!("xl/one.argv")).named().replace("xenfv,", "xenfv-3.1,");
    let theirs = theirs.in_slots(&[("cirrus-vga,vgamem_mb=8", "0x3")]);
    assert_eq!(ours(include_str!("xl/one.cfg")), theirs.0);
}

#[test]
fn disks_on_ahci_and_scsi_drives_usb_sound_and_arguments() {
    let theirs = Theirs::recorded(include_str!("xl/two.argv"))
        .named()
        .replace("xenfv,", "xenfv-3.1,")
        .last(&["-trace", "xen*"])
        .last(&["-global", "isa-fdc.fdtypeA=none"])
        .in_slots(&[
            ("lsi53c895a", "0x3"),
            ("VGA,vgamem_mb=32", "0x4"),
            ("intel-hda", "0x5"),
            ("ahci,id=ahci0", "0x6"),
        ]);
    assert_eq!(ours(include_str!("xl/two.cfg")), theirs.0);
}

#[test]
fn nics_another_machine_and_a_disk_that_xl_gives_another_letter() {
    let theirs = Theirs::recorded(include_str!("xl/three.argv"))
        .named()
        .remove(&["-no-acpi"])
        .replace("pc,accel=xen", "pc-i440fx-7.2,accel=xen")
        .replace("max-ram-below-4g=2147483648", "max-ram-below-4g=2147483648,acpi=off")
        .replace("ifname=vif7.0-emu,br=xenbr0", "ifname=tap0")
        .replace("ifname=vif7.2-emu,br=xenbr0", "ifname=tap2")
        .replace("/dev/xvdc", "/dev/xvdb")
        // Without Xen's platform device, its slot is free.
        .in_slots(&[
            ("lsi53c895a", "0x2"),
            ("e1000,id=nic0,netdev=net0,mac=00:16:3e:00:00:01", "0x3"),
            ("rtl8139,id=nic2,netdev=net2,mac=00:16:3e:00:00:03", "0x4"),
            ("xen-pvdevice,device-id=0xc000", "0x5"),
        ]);
    assert_eq!(ours(include_str!("xl/three.cfg")), theirs.0);
}
