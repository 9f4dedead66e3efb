//! The manifest beside an image, and an image's packages' lists of fields.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use image::manifest::{FORMAT, Manifest};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder"));

fuzz_target!(|data: &[u8]| {
    fs::write(FOLDER.path().join(Manifest::FILE), data).expect("there is room");
    match Manifest::read(FOLDER.path()) {
        Ok(manifest) => {
            assert_eq!(manifest.format, FORMAT);
            let text = serde_json::to_vec(&manifest).expect("strings and numbers");
            fs::write(FOLDER.path().join(Manifest::FILE), text).expect("there is room");
            assert_eq!(Manifest::read(FOLDER.path()).expect("what was written can be read"), manifest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
