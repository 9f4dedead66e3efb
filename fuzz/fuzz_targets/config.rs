//! Configuration files: any text gives a configuration or diagnostics, and every configuration gives QEMU's arguments
//! or an error.
#![no_main]

use config::Uuid;
use libfuzzer_sys::fuzz_target;
use qemu_args::{Facts, QemuFeatures};
use xen_types::DomId;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let loaded = config::load_str("fuzz.cfg", text);
    // Diagnostics point into the text: rendering them reads every span.
    let rendered = loaded.render(false);
    match &loaded.config {
        None => assert!(!rendered.is_empty(), "refused without a word"),
        Some(config) => {
            let qemu = QemuFeatures { sandbox: true, abilities: None };
            let uuid = Uuid::from_bytes([7; 16]);
            if let Ok(plan) = qemu_args::plan(config, &Facts { uuid, qemu, incoming: false }) {
                plan.argv(DomId::DOM0).expect("a plan has arguments for every domid");
            }
        }
    }
});
