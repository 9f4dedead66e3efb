//! libxc's stream, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration_stream::libxc::{Checker, Summary};

fuzz_target!(|data: &[u8]| {
    let Some((piece, bytes)) = data.split_first() else { return };
    let whole = check(bytes, bytes.len().max(1));
    assert_eq!(check(bytes, usize::from(*piece).max(1)), whole, "pieces matter");
    if let Ok((used, summary)) = whole {
        assert_eq!(summary.bytes, used as u64);
        assert!(summary.pages * 4096 <= summary.bytes && summary.pages <= summary.entries);
    }
});

fn check(bytes: &[u8], piece: usize) -> Result<(usize, Summary), String> {
    let mut checker = Checker::default();
    let mut used = 0;
    for piece in bytes.chunks(piece) {
        used += checker.take(piece).map_err(|error| error.to_string())?;
        if checker.is_complete() {
            break;
        }
    }
    let summary = checker.finish().map_err(|error| error.to_string())?;
    Ok((used, summary))
}
