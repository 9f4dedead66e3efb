//! The emulated machine: how large it is, and which QEMU command line makes it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::escape::escape;
use crate::member::Member;
use crate::{Accel, Emulator, Extension, TimeScale, Xenstored};

/// The processor model of the patched QEMU (`crates/image/emulator`), without what it too gets wrong.
///
/// - `-monitor`: its MWAIT faults in Xen's idle loop.
const PATCHED_CPU: &str = "EPYC-Rome,-monitor";
/// The processor model of Debian's QEMU, without what that gets wrong: the same, and
///
/// - `-smap`: QEMU 7.2's IRET from ring 3 reads the stack with supervisor rights; a PV dom0 kernel dies at its first
///   `sync_core`.
/// - `-rdtscp`: it reports an intercepted RDTSCP as RDTSC, which is a byte shorter; Xen cannot step over it, and a Linux
///   HVM guest dies.
/// - `-xsave`: its XSAVE and XRSTOR ignore CR0.TS, by which Xen switches the registers of PV guests lazily: a process in
///   dom0 goes on with older SSE registers, and `memcpy` writes to wild places. FXSAVE is right.
const DEBIAN_CPU: &str = "EPYC-Rome,-smap,-monitor,-rdtscp,-xsave";

/// The 9p mount tag of the shared folder, known to dom0's init.
const SHARE_TAG: &str = "outrigger";
/// The slot of a PCI device without a driver, which is there to be passed through: QEMU's `edu`.
const PCI_SLOT: u8 = 0x10;

/// The words of Xen's command line that the software emulation needs.
///
/// The older scheduler: under emulation credit2, the usual one, now and then leaves dom0 in its queue while all
/// processors idle, for ever ("r" at Xen's console shows it), when many guests wake dom0 at once. The patched emulator
/// makes no difference: with two Linux guests booting, xenstored did not come to answer for more than ten seconds.
const XEN_UNDER_TCG: &str = "sched=credit";
/// The word for a processor of AMD's: the IOMMU is Intel's, since QEMU cannot save the state of AMD's, and their page
/// tables are of two kinds.
const XEN_ON_AMD: &str = "iommu=no-sharept";

/// The size of the emulated host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Processors of the host.
    pub cpus: u32,
    /// Memory of the host in MiB.
    pub memory_mib: u32,
    /// Memory of dom0 in MiB, part of `memory_mib`.
    pub dom0_memory_mib: u32,
    /// Virtual processors of dom0.
    pub dom0_cpus: u32,
    /// More words for Xen's command line.
    pub xen_arguments: String,
    /// More words for the command line of dom0's kernel.
    pub dom0_arguments: String,
    /// What keeps xenstore in dom0.
    pub xenstored: Xenstored,
    /// A raw file that is the machine's disk: `/dev/vda` in dom0, once the modules of `/modules/disk-order` are loaded.
    /// What is written to it outlives the machine, so such a machine boots from scratch every time.
    pub disk: Option<PathBuf>,
    /// What emulates it.
    pub emulator: Emulator,
    /// What executes its instructions.
    pub accel: Accel,
    /// Its place in a pair of hosts, which [`crate::pair::run`] sets; none of a host alone.
    pub member: Option<Member>,
    /// Raw files that another machine has as disks too: in dom0 the disks after `disk`.
    pub shared_disks: Vec<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory_mib: 4096,
            dom0_memory_mib: 1024,
            dom0_cpus: 1,
            xen_arguments: "loglvl=warning guest_loglvl=warning".to_owned(),
            dom0_arguments: String::new(),
            xenstored: Xenstored::default(),
            disk: None,
            emulator: Emulator::default(),
            accel: Accel::default(),
            member: None,
            shared_disks: Vec::new(),
        }
    }
}

/// Where the machine's memory lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Memory<'a> {
    /// In QEMU, gone with it.
    Anonymous,
    /// In a new file that QEMU writes through to: the boot that is to become a snapshot.
    File(&'a Path),
    /// In the copy of a snapshot's file, to which QEMU writes through: what is to become the next snapshot.
    Continued(&'a Path),
    /// A private copy on write of a snapshot's file.
    CopyOf(&'a Path),
}

/// The five byte streams between the host and the caller, each a unix socket that QEMU connects to.
pub(crate) const CHANNELS: [&str; 5] = ["console", "shell", "control", "output", "qmp"];

impl Machine {
    /// The machine whose daemons in dom0 stretch their deadlines by `scale`: the kernel gives words with `=` that it does
    /// not know to its first program's environment, and that to the daemons.
    #[must_use]
    pub fn stretched(mut self, scale: TimeScale) -> Self {
        if scale != TimeScale::default() {
            self.dom0_arguments = format!("{}={scale} {}", TimeScale::VARIABLE, self.dom0_arguments);
        }
        self
    }

    /// Whether HVM guests may run on every processor: Debian's emulator breaks one on the first now and then.
    #[must_use]
    pub fn guests_may_run_anywhere(&self) -> bool {
        self.accel != Accel::Tcg || self.emulator.is_patched()
    }

    /// Whether a snapshot of it may be made and used. One knows nothing of what was written to a disk since. With KVM
    /// none was tried, and a boot is quick.
    pub(crate) fn can_be_restored(&self) -> bool {
        self.disk.is_none() && self.accel == Accel::Tcg
    }

    /// What of the machine, besides its emulator, decides whether a snapshot fits it.
    pub(crate) fn identity(&self) -> String {
        // dom0 loads the driver of shared disks only after the snapshot, so that it knows nothing of them.
        let anywhere = Self {
            member: self.member.as_ref().map(Member::anywhere),
            shared_disks: vec![PathBuf::new(); self.shared_disks.len()],
            ..self.clone()
        };
        let nowhere = Path::new("");
        format!("{:?}", anywhere.qemu_arguments(nowhere, nowhere, Memory::Anonymous))
    }

    fn xen_command_line(&self) -> String {
        // No scrub of free memory at boot: it would touch, and so allocate, every page of a snapshot's file.
        let common = format!(
            "dom0_mem={0}M,max:{0}M dom0_max_vcpus={1} console=com1 com1=115200,8n1 noreboot \
             console_timestamps=boot bootscrub=0",
            self.dom0_memory_mib, self.dom0_cpus
        );
        let special = match self.accel {
            Accel::Tcg => format!("{XEN_UNDER_TCG} {XEN_ON_AMD}"),
            Accel::Kvm(Extension::Svm) => XEN_ON_AMD.to_owned(),
            Accel::Kvm(Extension::Vmx) => String::new(),
        };
        format!("{common} {special} {}", self.xen_arguments)
    }

    /// What executes the instructions, the processor, and how QEMU's `-machine` begins.
    ///
    /// With KVM nothing is taken away from this machine's processor and Xen has its usual scheduler: those are cures for
    /// what the emulation gets wrong. An IOMMU that remaps interrupts wants KVM to leave the I/O APIC to QEMU
    /// (`kernel-irqchip=split`).
    ///
    /// QEMU 7.2 takes these arguments. Not tried, for want of a machine on which KVM nests: a boot of Xen with a PV dom0, an
    /// HVM guest on it, a device passed through this IOMMU, and the saving and restoring of a snapshot.
    fn processor(&self) -> [&'static str; 3] {
        match self.accel {
            Accel::Tcg if self.emulator.is_patched() => ["tcg,thread=multi", PATCHED_CPU, "q35"],
            Accel::Tcg => ["tcg,thread=multi", DEBIAN_CPU, "q35"],
            Accel::Kvm(_) => ["kvm", "host", "q35,kernel-irqchip=split"],
        }
    }

    /// The modules for QEMU's `-initrd`, where a comma ends a module and two are one of its command line.
    fn modules(&self) -> String {
        let more = self.dom0_arguments.replace(',', ",,");
        let member = self.member.as_ref().map(|member| member.kernel_word() + " ").unwrap_or_default();
        let xenstored = self.xenstored.kernel_word();
        let kernel =
            format!("vmlinuz console=hvc0 rdinit=/init loglevel=4 net.ifnames=0 {xenstored} {member}{more}");
        format!("{},initramfs.img", kernel.trim_end())
    }

    /// QEMU's arguments for the disks that another machine has too.
    ///
    /// Each is without QEMU's lock on the file (`locking=off`), which would let only one machine in. QEMU keeps no sectors
    /// of a raw file: both machines read and write this machine's page cache, so one reads what the other has written. A
    /// flush has nothing to do for that (`cache=unsafe`): only a crash of this machine would lose anything.
    fn shared_disk_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        for (number, path) in self.shared_disks.iter().enumerate() {
            let file = format!("file.filename={},file.locking=off", escape(path));
            add("-drive", format!("if=none,id=shared{number},format=raw,cache=unsafe,{file}"));
            add("-device", format!("virtio-blk-pci,drive=shared{number},serial=shared{number}"));
        }
        arguments
    }

    /// QEMU's arguments. The program is to run in the image's folder, so that no path of it stands in `-initrd`,
    /// where a comma would end a module's name.
    pub(crate) fn qemu_arguments(&self, sockets: &Path, share: &Path, memory: Memory<'_>) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        let [accel, processor, machine] = self.processor();
        add(&["-accel", accel, "-cpu", processor]);
        add(&["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        let in_file = format!("{machine},memory-backend=ram0");
        let backend = |path: &Path, share: &str| {
            format!(
                "memory-backend-file,id=ram0,size={}M,mem-path={},share={share}",
                self.memory_mib,
                escape(path)
            )
        };
        match memory {
            Memory::Anonymous => add(&["-machine", machine]),
            Memory::File(path) => {
                add(&["-machine", &in_file, "-object", &backend(path, "on")]);
            }
            Memory::Continued(path) => {
                add(&["-machine", &in_file, "-object", &backend(path, "on")]);
                add(&["-incoming", "defer"]);
            }
            Memory::CopyOf(path) => {
                add(&["-machine", &in_file, "-object", &backend(path, "off")]);
                add(&["-incoming", "defer"]);
            }
        }
        // Before the devices that it is for.
        add(&["-device", "intel-iommu,intremap=on"]);
        add(&["-device", &format!("edu,addr={PCI_SLOT:x}")]);
        add(&["-kernel", "xen", "-append", &self.xen_command_line()]);
        add(&["-initrd", &self.modules()]);
        for name in CHANNELS {
            let path = escape(&sockets.join(name));
            add(&["-chardev", &format!("socket,id={name},path={path},server=off")]);
        }
        add(&["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]);
        add(&["-device", "virtio-serial-pci,max_ports=4"]);
        add(&["-device", "virtconsole,nr=0,chardev=shell"]);
        add(&["-device", "virtserialport,nr=1,chardev=control,name=control"]);
        add(&["-device", "virtserialport,nr=2,chardev=output,name=output"]);
        add(&["-fsdev", &format!("local,id=share,path={},security_model=none", escape(share))]);
        add(&["-device", &format!("virtio-9p-pci,fsdev=share,mount_tag={SHARE_TAG}")]);
        if let Some(disk) = &self.disk {
            // The emulator may be killed at any moment, the machine that it runs on may not: what dom0 has synced is
            // then in the page cache, and nothing has to wait for a real disk.
            add(&["-drive", &format!("if=none,id=disk,format=raw,cache=unsafe,file={}", escape(disk))]);
            add(&["-device", "virtio-blk-pci,drive=disk"]);
        }
        arguments.extend(self.member.iter().flat_map(Member::qemu_arguments).map(OsString::from));
        arguments.extend(self.shared_disk_arguments().into_iter().map(OsString::from));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_of_paths_are_doubled() {
        let arguments = Machine::default().qemu_arguments(
            Path::new("/run/a,b"),
            Path::new("/share,c"),
            Memory::Anonymous,
        );
        let all: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        assert!(all.iter().any(|word| word.contains("path=/run/a,,b/qmp,server")));
        assert!(all.iter().any(|word| word.contains("path=/share,,c,security")));
    }

    #[test]
    fn shared_disks_are_raw_unlocked_and_in_order() {
        let machine = Machine { shared_disks: vec!["/x".into(), "/y,z".into()], ..Machine::default() };
        let words = machine.shared_disk_arguments().join(" ");
        assert!(words.contains("id=shared0,format=raw,cache=unsafe,file.filename=/x,file.locking=off"));
        assert!(words.contains("id=shared1,format=raw,cache=unsafe,file.filename=/y,,z,file.locking=off"));
        assert!(Machine::default().shared_disk_arguments().is_empty());
    }

    #[test]
    fn disk_is_there_only_when_asked_for() {
        let words = |machine: &Machine| {
            let arguments = machine.qemu_arguments(Path::new("/run"), Path::new("/share"), Memory::Anonymous);
            arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        assert!(!words(&Machine::default()).contains("virtio-blk"));
        let machine = Machine { disk: Some("/disks/a,b".into()), ..Machine::default() };
        assert!(words(&machine).contains("file=/disks/a,,b -device virtio-blk-pci,drive=disk"));
    }

    #[test]
    fn cures_for_the_emulation_are_for_the_emulation() {
        let words = |accel| {
            let machine = Machine { accel, ..Machine::default() };
            let path = Path::new("/x");
            let arguments = machine.qemu_arguments(path, path, Memory::Anonymous);
            let all: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
            (all.join(" "), machine.can_be_restored())
        };
        let (tcg, restored) = words(Accel::Tcg);
        assert!(tcg.contains("-accel tcg,thread=multi -cpu EPYC-Rome,-smap") && restored);
        assert!(tcg.contains("-machine q35 ") && tcg.contains(" sched=credit iommu=no-sharept "));
        for (extension, split) in [(Extension::Svm, true), (Extension::Vmx, false)] {
            let (kvm, restored) = words(Accel::Kvm(extension));
            assert!(kvm.contains("-accel kvm -cpu host ") && !restored);
            assert!(kvm.contains("-machine q35,kernel-irqchip=split ") && !kvm.contains("sched=credit"));
            assert_eq!(kvm.contains("iommu=no-sharept"), split);
        }
    }

    #[test]
    fn patched_emulator_has_a_processor_of_its_own() {
        let compiled = |folder: &str| image::compiled::Compiled {
            layer: image::root::Layer { package: None, folder: folder.into() },
            key: "k".to_owned(),
        };
        let machine =
            |folder| Machine { emulator: Emulator::patched(&compiled(folder)), ..Machine::default() };
        let identity = machine("/a").identity();
        assert!(identity.contains("\"EPYC-Rome,-monitor\""), "{identity}");
        assert_eq!(identity, machine("/b").identity());
    }

    #[test]
    fn words_for_dom0s_kernel_stay_with_the_kernel() {
        let plain = "vmlinuz console=hvc0 rdinit=/init loglevel=4 net.ifnames=0 OUTRIGGER_XENSTORED=ocaml";
        assert_eq!(Machine::default().modules(), format!("{plain},initramfs.img"));
        let machine = Machine { dom0_arguments: "a=1,2 b".to_owned(), ..Machine::default() };
        assert_eq!(machine.modules(), format!("{plain} a=1,,2 b,initramfs.img"));
        let stretched = machine.clone().stretched(TimeScale::default().times(3.0));
        assert_eq!(stretched.modules(), format!("{plain} OUTRIGGER_TIME_SCALE=3 a=1,,2 b,initramfs.img"));
        assert_ne!(stretched.identity(), machine.identity());
    }

    #[test]
    fn each_xenstored_has_its_own_snapshots() {
        let [c, ocaml] =
            [Xenstored::C, Xenstored::OCaml].map(|xenstored| Machine { xenstored, ..Machine::default() });
        assert!(ocaml.modules().contains(" OUTRIGGER_XENSTORED=ocaml"), "{}", ocaml.modules());
        assert_ne!(c.identity(), ocaml.identity());
    }

    #[test]
    fn restored_machine_waits_for_its_state_and_maps_memory_privately() {
        let path = Path::new("/s/ram");
        let arguments = Machine::default().qemu_arguments(path, path, Memory::CopyOf(path));
        let all = arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        assert!(all.contains("-incoming defer") && all.contains("mem-path=/s/ram,share=off"));
    }
}
