//! What becomes of a migration that is not settled.

use std::cell::Cell;

use anyhow::bail;
use clap::Parser as _;

use crate::cli::Cli;

use super::*;
use crate::cli::Command;
use crate::report::StillUnresolved;

#[test]
fn operator_has_to_settle_what_the_other_host_does_not() {
    let cli = Cli::try_parse_from(["outrigger", "migrate", "--connect", "false", "hello", "beta"]).unwrap();
    let Command::Migrate(args) = cli.command else { panic!("not migrate") };
    let peer = Peer::of(&args).unwrap();
    let attempts = Cell::new(0);
    let connect = || {
        attempts.set(attempts.get() + 1);
        bail!("there is no daemon")
    };
    let error = resolve::ask_again(connect, &peer, "beta", &args, &[0; 5]).unwrap_err();
    assert_eq!(attempts.get(), 5);
    assert!(error.downcast_ref::<StillUnresolved>().is_some(), "{error:#}");
    let mut pauses = resolve::PAUSES.windows(2);
    assert!(pauses.all(|pair| pair[0] < pair[1]), "they grow");
}
