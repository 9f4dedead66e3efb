//! Runs the contract cases against the xenstored of this host.
fn main() {}
