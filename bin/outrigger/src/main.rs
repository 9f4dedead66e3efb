//! The command line of Outrigger.
#![forbid(unsafe_code)]

fn main() {}
