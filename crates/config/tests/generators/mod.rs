//! Configurations as libvirt, Ganeti and xen-tools write them.

/// What a generator adds to or changes in its usual file, and the diagnostic that refuses it, if one does.
pub(crate) type Variant = (&'static str, Option<&'static str>);

/// Everything that `virsh domxml-to-native xen-xl` writes for an HVM guest, with a disk and an interface of their own.
pub(crate) fn libvirt(lines: &str) -> String {
    let has = |key: &str| lines.lines().any(|line| line.starts_with(&format!("{key} =")));
    let mut text = String::new();
    for (key, value) in [
        ("name", "\"Guest2\""),
        ("uuid", "\"7a6e1f0c-5b3d-4f0e-9a52-1f3c5d7e9b11\""),
        ("maxmem", "1024"),
        ("memory", "1024"),
        ("vcpus", "2"),
        ("pae", "1"),
        ("acpi", "1"),
        ("apic", "1"),
        ("viridian", "0"),
        ("rtc_timeoffset", "0"),
        ("localtime", "0"),
        ("on_poweroff", "\"destroy\""),
        ("on_reboot", "\"restart\""),
        ("on_crash", "\"restart\""),
        ("device_model", "\"/usr/lib/xen/bin/qemu-system-i386\""),
        ("sdl", "0"),
        ("vnc", "1"),
        ("vncunused", "1"),
        ("vnclisten", "\"127.0.0.1\""),
        ("vif", "[ \"mac=00:16:3e:12:34:56,bridge=xenbr1,script=vif-bridge,model=e1000\" ]"),
        ("parallel", "\"none\""),
        ("serial", "\"none\""),
        ("builder", "\"hvm\""),
        ("boot", "\"c\""),
        ("disk", "[ \"format=raw,vdev=hda,access=rw,backendtype=phy,target=/dev/vg/guest2\" ]"),
    ] {
        if !has(key) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text + lines + "\n"
}

const REFUSED: Option<&str> = Some("config::refused");

/// libvirt's.
pub(crate) const LIBVIRT: &[Variant] = &[
    ("", None),
    ("type = \"hvm\"", None),
    // Disks.
    ("disk = [ ]", None),
    ("disk = [ \"format=raw,vdev=hda,access=rw,backendtype=qdisk,target=/srv/guest2.img\" ]", None),
    ("disk = [ \"format=raw,vdev=hda,access=rw,target=/srv/guest2.img\" ]", None),
    ("disk = [ \"format=raw,vdev=hdc,access=ro,backendtype=qdisk,devtype=cdrom,target=/srv/a.iso\" ]", None),
    ("disk = [ \"format=raw,vdev=hdc,access=ro,backendtype=phy,devtype=cdrom,target=/srv/a.iso\" ]", None),
    ("disk = [ \"format=raw,vdev=hdc,access=ro,devtype=cdrom,target=\" ]", None),
    ("disk = [ \"/dev/vg/guest2,raw,hda,w,backendtype=phy\", \"/srv/a.iso,raw,hdc,r,devtype=cdrom\" ]", None),
    (
        "disk = [ \"/dev/vg/guest2,,hda,,backendtype=phy\", \"/srv/home,,hdb,,\", \"/srv/a.iso,,hdc,,devtype=cdrom\" ]",
        None,
    ),
    ("disk = [ \"phy:/dev/vg/guest2,hda,w\", \"file:/srv/a.iso,hdc:cdrom,r\" ]", None),
    ("disk = [ \"format=raw,vdev=sda,access=ro,backendtype=phy,target=/dev/vg/guest2\" ]", None),
    ("disk = [ \"format=raw,vdev=xvda,access=rw,backendtype=tap,target=/srv/guest2.img\" ]", None),
    ("disk = [ \"format=raw,vdev=hda,access=rw,backendtype=phy,script=block-drbd,target=r0\" ]", None),
    ("disk = [ \"format=raw,vdev=hda,access=rw,backendtype=phy,backend=storage,target=/dev/vg/a\" ]", None),
    ("disk = [ \"format=qcow2,vdev=hda,access=rw,backendtype=qdisk,target=/srv/guest2.qcow2\" ]", REFUSED),
    ("disk = [ \"format=vhd,vdev=hda,access=rw,backendtype=qdisk,target=/srv/guest2.vhd\" ]", REFUSED),
    ("disk = [ \"format=qed,vdev=hda,access=rw,backendtype=qdisk,target=/srv/guest2.qed\" ]", REFUSED),
    (
        "disk = [ \"format=raw,vdev=hda,access=rw,backendtype=qdisk,target=rbd:pool/image:auth_supported=none\" ]",
        REFUSED,
    ),
    (
        "disk = [ \"format=raw,vdev=xvdb,access=!,backendtype=phy,target=/dev/vg/b\" ]",
        Some("config::bad-disk"),
    ),
    // Interfaces.
    ("vif = [ ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,script=vif-bridge,model=rtl8139,type=ioemu\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,script=vif-bridge,type=vif\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,vifname=guest2-eth0,model=e1000\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,script=vif-bridge,model=e1000,rate=10240KB/s\" ]", None),
    (
        "vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,ip=10.0.0.1 10.1.1.1 2000::1,script=vif-bridge,type=vif\" ]",
        None,
    ),
    ("vif = [ \"mac=00:16:3e:12:34:56,script=vif-route,ip=10.0.0.1,type=vif\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=ovsbr0.20,script=vif-openvswitch,model=e1000\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=ovsbr0:42:43,script=vif-openvswitch,model=e1000\" ]", None),
    ("vif = [ \"mac=5a:36:0e:be:00:09\" ]", None),
    ("vif = [ \"mac=00:16:3e:12:34:56,bridge=xenbr1,model=e1000,backend=net\" ]", None),
    // Serial and parallel ports, channels.
    ("serial = \"pty\"", None),
    ("serial = [ \"pty\", \"pty\", \"null\" ]", None),
    ("serial = \"file:/var/log/guest2\"", None),
    ("parallel = \"pty\"", None),
    ("parallel = \"tcp:localhost:9999\"", None),
    ("channel = [ \"connection=pty,name=org.guest.agent.0\" ]", None),
    ("channel = [ \"connection=socket,path=/run/guest2,name=org.guest.agent.0\" ]", None),
    ("serial = \"tcp:localhost:9999\"", REFUSED),
    ("serial = \"unix:/run/guest2.sock\"", REFUSED),
    ("serial = \"udp:localhost:9999@localhost:9998\"", REFUSED),
    ("serial = \"vc\"", REFUSED),
    ("serial = \"/dev/ttyS1\"", REFUSED),
    ("serial = [ \"none\", \"/dev/ttyS1\" ]", REFUSED),
    // Graphics, sound and USB.
    ("sdl = 1\nvnc = 0\ndisplay = \":0\"\nxauthority = \"/root/.Xauthority\"", None),
    ("vncunused = 0\nvncdisplay = 17\nvncpasswd = \"secret\"\nkeymap = \"de\"", None),
    (
        "vnc = 0\nspice = 1\nspicehost = \"127.0.0.1\"\nspiceport = 590\nspicetls_port = 500\n\
         spicedisable_ticketing = 0\nspicepasswd = \"secret\"\nspiceagent_mouse = 1\nspicevdagent = 1\n\
         spice_clipboard_sharing = 1",
        None,
    ),
    ("vga = \"stdvga\"\nvideoram = 16", None),
    ("vga = \"cirrus\"\nvideoram = 8", None),
    ("vga = \"none\"", None),
    ("vga = \"qxl\"\nvideoram = 128", REFUSED),
    ("soundhw = \"sb16\"", None),
    ("soundhw = \"hda\"", None),
    ("soundhw = \"ich6\"", Some("config::unknown-value")),
    ("soundhw = \"sb16,es1370\"", Some("config::unknown-value")),
    ("usb = 1\nusbdevice = \"tablet\"", None),
    ("usb = 1\nusbdevice = [ \"mouse\", \"tablet\" ]", None),
    ("usbctrl = [ \"type=qusb,version=2,ports=6\" ]", None),
    (
        "usbctrl = [ \"type=qusb,version=2,ports=6\" ]\nusbdev = [ \"hostbus=1,hostaddr=3,controller=0,port=1\" ]",
        REFUSED,
    ),
    ("pci = [ \"0000:01:1a.1\", \"0000:03:1a.1\" ]", REFUSED),
    // CPU, timers, memory and firmware.
    ("hap = 0", None),
    ("hap = 0\ntsc_mode = \"native\"\nhpet = 1", None),
    ("hpet = 0", None),
    ("tsc_mode = \"always_emulate\"", None),
    ("localtime = 1", None),
    ("rtc_timeoffset = 3600", None),
    ("viridian = 1", None),
    ("nestedhvm = 1", None),
    ("nestedhvm = 0", None),
    ("cpuid = \"host,tm=0,sse4.2=0,est=x\"", None),
    ("cpus = \"0-3,^1\"\nvcpus = 4\nmaxvcpus = 4", None),
    ("passthrough = \"share_pt\"", None),
    ("xen_platform_pci = 0", None),
    ("bios = \"ovmf\"", None),
    ("acpi_firmware = \"/sys/firmware/acpi/tables/SLIC\"", None),
    ("max_grant_frames = 64", None),
    ("max_event_channels = 512", None),
    ("memory = 394\nmaxmem = 579", None),
    ("boot = \"cdn\"", None),
    ("on_crash = \"coredump-destroy\"\non_poweroff = \"preserve\"\non_reboot = \"rename-restart\"", None),
    ("device_model_args = [ \"-debugcon\", \"file:/tmp/debug.log\" ]", None),
    ("device_model_override = \"/usr/bin/qemu-system-i386\"", None),
    ("tsc_mode = \"native_paravirt\"", REFUSED),
    ("kernel = \"/boot/vmlinuz\"\nramdisk = \"/boot/initrd\"\ncmdline = \"quiet\"", REFUSED),
    ("vnuma = [ [ \"pnode=0\", \"size=1024\", \"vcpus=0-1\", \"vdistances=10\" ] ]", REFUSED),
];

/// Ganeti's file for an HVM instance.
pub(crate) fn ganeti(lines: &str) -> String {
    format!(
        "# this is autogenerated by a cluster manager, please do not edit\n#\n\
         builder = 'hvm'\nkernel = '/usr/lib/xen/boot/hvmloader'\nname = 'instance1.example.org'\nmemory = 1024\n\
         maxmem = 1024\nvcpus = 2\npae = 1\nacpi = 1\napic = 1\n\
         device_model = '/usr/lib/xen/bin/qemu-dm'\nboot = 'cd'\nsdl = 0\n{lines}\n\
         on_poweroff = 'preserve'\non_reboot = 'restart'\non_crash = 'restart'\n"
    )
}

/// Ganeti's.
pub(crate) const GANETI: &[Variant] = &[
    ("disk = [ 'phy:/var/run/ganeti/instance-disks/i:0,hda,w' ]", None),
    ("disk = [ 'phy:/dev/xenvg/a.disk0,ioemu:hda,w' ]", None),
    ("disk = [ 'file:/srv/i/disk0,xvda,w', 'file:/srv/a.iso,hdc:cdrom,r' ]", None),
    ("disk = [ 'phy:/dev/drbd0,xvda,w', 'phy:/dev/drbd1,xvdb,w' ]", None),
    ("vif = [ 'mac=aa:00:00:12:34:56, bridge=xen-br0, type=ioemu' ]", None),
    (
        "vif = [ 'mac=aa:00:00:12:34:56, model=e1000, ip=192.0.2.7, script=/etc/xen/scripts/vif-ganeti' ]",
        None,
    ),
    ("vnc = 1\nvnclisten = '127.0.0.1'\nvncdisplay = 11", None),
    ("vnc = 1\nvnclisten = '0.0.0.0'\nvncunused = 1\nvncpasswd = 'secret'", None),
    ("usb = 1\nusbdevice = 'tablet'", None),
    ("usb = 1\nusbdevice = 'mouse'", None),
    ("serial = 'pty'", None),
    ("localtime = 1\nviridian = 1", None),
    ("cpus = '0-3'\ncpu_cap = 50\ncpu_weight = 256", None),
    ("cpus = [ '0', '1' ]", None),
    ("cpuid = 'host,tm=0'", None),
    ("soundhw = 'hda'", None),
    ("pci = [ '01:00.0' ]", REFUSED),
];

/// The file of `xen-create-image`, which makes PV guests; some people then make HVM guests of it.
pub(crate) fn xen_tools(lines: &str) -> String {
    format!(
        "#\n# Configuration file for the Xen instance web1, created\n# by a tool.\n#\n\
         vcpus       = '2'\nmemory      = '512'\nmaxmem      = '512'\nname        = 'web1'\n{lines}\n\
         on_poweroff = 'destroy'\non_reboot   = 'restart'\non_crash    = 'restart'\n"
    )
}

const NOT_HVM: Option<&str> = Some("config::not-hvm");

/// Those of xen-tools.
pub(crate) const XEN_TOOLS: &[Variant] = &[
    (
        "bootloader = 'pygrub'\ndisk = [ 'phy:/dev/vg/web1-disk,xvda2,w', 'phy:/dev/vg/web1-swap,xvda1,w' ]",
        NOT_HVM,
    ),
    (
        "kernel = '/boot/vmlinuz'\nextra = 'elevator=noop'\nramdisk = '/boot/initrd.img'\nroot = '/dev/xvda2 ro'",
        NOT_HVM,
    ),
    ("dhcp = 'dhcp'\nvif = [ 'mac=00:16:3E:12:34:56,bridge=xenbr0' ]\nbuilder = 'hvm'", None),
    ("vif = [ 'ip=10.0.0.5 ,mac=00:16:3E:12:34:56' ]\nbuilder = 'hvm'\nxen_shell = 'alice, bob'", None),
    ("gateway = '10.0.0.1'\nnetmask = '255.255.255.0'\nhostname = 'web1'\ntype = 'hvm'", None),
    (
        "disk = [\n    'file:/srv/xen/disk.img,xvda,w',\n    'file:/srv/xen/swap.img,xvdb,w',\n]\ntype = 'hvm'",
        None,
    ),
    ("vfb = [ 'type=vnc,vncunused=1,keymap=de' ]\ntype = 'hvm'", None),
];
