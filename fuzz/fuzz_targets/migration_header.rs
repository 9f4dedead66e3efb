//! A file of a saved guest: xl's header with our part of it, libxl's records, QEMU's state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration_stream::{Header, Metadata, libxl, qemu};

const LIMIT: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let mut from = data;
    if let Ok(header) = Header::read(&mut from) {
        let bytes = header.encode().expect("what was read fits");
        // All but the optional flags is as it was, and nothing beyond was read.
        assert_eq!(bytes.len() + from.len(), data.len());
        assert_eq!(Header::read(&mut bytes.as_slice()).expect("what was written can be read"), header);
        metadata(&header.tail);
    } else {
        from = data;
        metadata(data);
    }
    if libxl::read_begin(&mut from).is_err() {
        from = data;
    }
    if let Ok(rest) = libxl::read_rest(&mut from, LIMIT) {
        assert!(rest.emulator.len() <= LIMIT);
        let bytes = [libxl::emulator_context(&rest.emulator).expect("it fits"), libxl::end()].concat();
        let again = libxl::read_rest(&mut bytes.as_slice(), LIMIT).expect("what was written can be read");
        assert_eq!(again.emulator, rest.emulator);
        let _ = qemu::check(&rest.emulator);
    }
    let _ = qemu::check(data);
});

fn metadata(tail: &[u8]) {
    if let Ok(Some(metadata)) = Metadata::decode(tail) {
        let bytes = metadata.encode().expect("what was read fits");
        assert_eq!(Metadata::decode(&bytes).expect("what was written can be read"), Some(metadata));
    }
}
