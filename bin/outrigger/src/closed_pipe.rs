//! `outrigger list | head -1`: it is not an error when the reader closes the pipe.

use std::panic;
use std::process::exit;

/// The exit status that a shell reports for a program killed by SIGPIPE.
const ENDED_BY_SIGPIPE: i32 = 128 + 13;

/// From now on the program exits silently when nothing reads its standard output any more.
///
/// Rust ignores SIGPIPE, and `println!` panics instead; restoring the signal's default action would need unsafe code.
pub(crate) fn end_quietly() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let words = panic.payload_as_str().unwrap_or_default();
        if words.starts_with("failed printing to stdout") && words.contains("Broken pipe") {
            exit(ENDED_BY_SIGPIPE);
        }
        usual(panic);
    }));
}
