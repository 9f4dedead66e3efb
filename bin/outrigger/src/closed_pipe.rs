//! `outrigger list | head -1`: it is not an error when the reader closes the pipe. `outrigger list > /dev/full` is one, and
//! no panic.

use std::io::{self, ErrorKind, Write};
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
        if let Some(why) = words.strip_prefix("failed printing to stdout: ") {
            if why.contains("Broken pipe") {
                exit(ENDED_BY_SIGPIPE);
            }
            let _ = writeln!(io::stderr(), "error: Cannot write to standard output\n  because: {why}");
            exit(1);
        }
        usual(panic);
    }));
}

/// Prints a text on standard output. Unlike with `print!`, a full file system is an error and not a panic.
///
/// # Errors
/// When it cannot be written and somebody still reads it.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match printed {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(ENDED_BY_SIGPIPE),
        printed => printed,
    }
}
