# The devices of the stubdomain's QEMU, on top of an empty list: what a Xen HVM guest can be given, and what the
# machine `xenfv` (or `pc`) brings with it by itself (bridge, IDE, keyboard, timers, floppy controller, serial ports,
# power management). Xen's own devices, the platform device and passthrough among them, come with --enable-xen.

# The only machine type that Xen's `xenfv` and `pc,accel=xen` are made of.
CONFIG_I440FX=y
#: from 10.0
# Came with it by itself before: the floppy controller, which every saved state of this machine has.
CONFIG_FDC_ISA=y
#: any
# Debian's own QEMU has one, and a state of it does not load without.
CONFIG_HPET=y

# vga="stdvga" and vga="cirrus".
CONFIG_VGA_PCI=y
CONFIG_VGA_CIRRUS=y

# vif model=: the default, what most guides name, and the other cards that hvmloader's firmware can start from.
CONFIG_RTL8139_PCI=y
CONFIG_E1000_PCI=y
CONFIG_NE2000_PCI=y
CONFIG_PCNET_PCI=y
CONFIG_EEPRO100_PCI=y

# hdtype="ahci".
CONFIG_AHCI_ICH9=y
# Disks named sd*.
CONFIG_LSI_SCSI_PCI=y

# usbversion= 1, 2 and 3; usbdevice= tablet, mouse and keyboard come with any of them.
CONFIG_USB_UHCI=y
CONFIG_USB_EHCI_PCI=y
CONFIG_USB_XHCI_NEC=y
#: from 10.0
# Came with them before. QEMU adds the hub by itself where ports run out.
CONFIG_USB_HID=y
CONFIG_USB_HUB=y
#: any
# usbdevice="wacom-tablet".
CONFIG_USB_TABLET_WACOM=y

# soundhw=.
CONFIG_AC97=y
CONFIG_ADLIB=y
CONFIG_CS4231A=y
CONFIG_ES1370=y
CONFIG_GUS=y
CONFIG_HDA=y
CONFIG_SB16=y
