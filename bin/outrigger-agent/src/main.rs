//! PID 1 of the device-model stubdomain.
#![forbid(unsafe_code)]

fn main() {}
