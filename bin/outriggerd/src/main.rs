//! The daemon that owns the lifecycles of guests.
#![forbid(unsafe_code)]

fn main() {}
