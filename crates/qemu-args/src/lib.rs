//! From a guest's configuration to QEMU's arguments and device plan, without I/O.
