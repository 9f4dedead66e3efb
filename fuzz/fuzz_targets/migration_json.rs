//! libxl's JSON of a guest, as stock xl stores it.
#![no_main]

use config::{GuestConfig, Uuid};
use libfuzzer_sys::fuzz_target;
use migration_stream::libxl_json::{Decoded, Facts, decode, encode};
use xen_types::KiB;

fuzz_target!(|data: &[u8]| {
    match decode(data) {
        Ok(decoded) => {
            assert!(!decoded.online_vcpus.is_empty() && decoded.ignored.len() <= 205);
            let once = again(&decoded.config, &decoded);
            assert_eq!(again(&once, &decoded), once);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// What is read again of a guest that was written.
fn again(config: &GuestConfig, decoded: &Decoded) -> GuestConfig {
    let facts = Facts {
        uuid: config.uuid.unwrap_or(Uuid::max()),
        online_vcpus: decoded.online_vcpus.clone(),
        paging_memory: config.shadow_memory.unwrap_or(KiB(0)),
        generation_id: decoded.generation_id,
        hvm_pirq: config.platform.hvm_pirq == Some(true),
        stub_kernel: config.device_model.kernel.clone().unwrap_or_default(),
        stub_ramdisk: config.device_model.ramdisk.clone().unwrap_or_default(),
        stub_memory: config.device_model.memory.unwrap_or(KiB(0)),
    };
    decode(&encode(config, &facts)).expect("what was written can be read").config
}
