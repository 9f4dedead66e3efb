//! `outrigger list | head -1`: a reader that has seen enough is no error.

use std::panic;
use std::process::exit;

/// What a shell says of a program that SIGPIPE has ended.
const ENDED_BY_SIGPIPE: i32 = 128 + 13;

/// From now on the program ends without a word when nobody reads its standard output any more.
///
/// Rust ignores SIGPIPE, and `println!` panics instead; to give the signal its meaning back would need unsafe code.
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
