//! End-to-end cases that run in the dom0 of the embedded host.
#![forbid(unsafe_code)]

fn main() {}
