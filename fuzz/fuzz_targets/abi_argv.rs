//! QEMU's arguments as the stubdomain reads them, in both encodings.
#![no_main]

use stubdom_abi::Argv;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(argv) = Argv::from_dmargs(data) {
        within_bounds(&argv);
        // The older form cannot hold every list, but what it can hold comes back.
        if let Ok(value) = argv.to_dmargs() {
            assert_eq!(Argv::from_dmargs(&value).as_ref(), Ok(&argv));
        }
    }
    // Keys and values from the bytes: three of a key, and a value up to the next newline.
    let keys = data.split(|byte| *byte == b'\n').map(|line| {
        let (key, value) = line.split_at(line.len().min(3));
        (String::from_utf8_lossy(key).into_owned(), value.to_vec())
    });
    if let Ok(argv) = Argv::from_keys(keys) {
        within_bounds(&argv);
        assert_eq!(Argv::from_keys(argv.to_keys()).as_ref(), Ok(&argv));
    }
});

fn within_bounds(argv: &Argv) {
    assert!(!argv.is_empty() && argv.len() <= Argv::MAX_ARGS);
    assert!(argv.iter().all(|argument| argument.len() <= Argv::MAX_ARG_LEN));
}
