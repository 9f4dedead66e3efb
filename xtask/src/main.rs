//! Project chores: demo, test, host, bench, bindings.
#![forbid(unsafe_code)]

fn main() {}
