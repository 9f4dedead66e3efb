//! The embedded Xen host: builds it, boots it under QEMU, runs a script in its dom0.
