//! The daemon that serves every PV console of every domain.
#![forbid(unsafe_code)]

fn main() {}
