//! Another configuration for the host that a guest moves to (`migrate --dest-config`).
//!
//! The guest goes on with the machine that it has, so only what is behind its devices may differ, and what the host does
//! with it.

use config::{DeviceModel, Disk, DiskSource, GuestConfig, Nic};
use serde_json::Value;

use super::error::HandoverError as Error;

/// The configuration that the guest has at the other host.
///
/// # Errors
/// When it would be another machine; all differences are named.
pub(crate) fn for_receiver(own: &GuestConfig, theirs: &GuestConfig) -> Result<GuestConfig, Error> {
    let wanted = GuestConfig {
        affinity: theirs.affinity.clone(),
        disks: own.disks.iter().zip(&theirs.disks).map(|(own, theirs)| disk(own, theirs)).collect(),
        nics: own.nics.iter().zip(&theirs.nics).map(|(own, theirs)| nic(own, theirs)).collect(),
        serials: if own.serials.len() == theirs.serials.len() {
            theirs.serials.clone()
        } else {
            own.serials.clone()
        },
        device_model: DeviceModel {
            kernel: theirs.device_model.kernel.clone(),
            ramdisk: theirs.device_model.ramdisk.clone(),
            on_crash: theirs.device_model.on_crash,
            ..own.device_model.clone()
        },
        lifecycle: theirs.lifecycle,
        ..own.clone()
    };
    // A file need not name the UUID: the guest has one.
    let theirs = GuestConfig { uuid: theirs.uuid.or(own.uuid), ..theirs.clone() };
    let mut differences = Vec::new();
    for (what, own, theirs) in
        [("disk", own.disks.len(), theirs.disks.len()), ("vif", own.nics.len(), theirs.nics.len())]
    {
        if own != theirs {
            differences.push(format!("number of entries in {what}"));
        }
    }
    if differences.is_empty() {
        let json = |config: &GuestConfig| serde_json::to_value(config).unwrap_or_default();
        compare(&json(&wanted), &json(&theirs), "", &mut differences);
    }
    if differences.is_empty() { Ok(wanted) } else { Err(Error::OtherMachine { differences }) }
}

/// A drive without a medium stays one: QEMU's state says what is in it.
fn disk(own: &Disk, theirs: &Disk) -> Disk {
    let is_empty = |disk: &Disk| disk.source == DiskSource::Empty;
    let source = if is_empty(own) == is_empty(theirs) { &theirs.source } else { &own.source };
    Disk { source: source.clone(), ..own.clone() }
}

fn nic(own: &Nic, theirs: &Nic) -> Nic {
    Nic {
        bridge: theirs.bridge.clone(),
        script: theirs.script.clone(),
        vifname: theirs.vifname.clone(),
        ip: theirs.ip.clone(),
        gateway_dev: theirs.gateway_dev.clone(),
        rate: theirs.rate,
        ..own.clone()
    }
}

/// Names everything that differs, such as `disks.0.vdev`.
fn compare(own: &Value, theirs: &Value, path: &str, differences: &mut Vec<String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (own, theirs) {
        (Value::Object(own), Value::Object(theirs)) => {
            let more = theirs.keys().filter(|key| !own.contains_key(*key));
            for key in own.keys().chain(more) {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&of(own), &of(theirs), &below(key), differences);
            }
        }
        (Value::Array(own), Value::Array(theirs)) if own.len() == theirs.len() => {
            for (index, (own, theirs)) in own.iter().zip(theirs).enumerate() {
                compare(own, theirs, &below(&index.to_string()), differences);
            }
        }
        (own, theirs) if own == theirs => {}
        _ => differences.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "type = 'hvm'\nname = 'hello'\nmemory = 64\ndisk = [ '/srv/a.img,,hda', 'format=raw,vdev=hdc,devtype=cdrom,target=' ]\n\
                       vif = [ 'bridge=xenbr0,mac=00:16:3e:00:00:01' ]\nserial = 'pty'\n";

    fn config(text: &str) -> GuestConfig {
        config::load_str("hello.cfg", text).config.unwrap()
    }

    fn check(from: &str, to: &str) -> Result<GuestConfig, Vec<String>> {
        let theirs = OWN.replace(from, to);
        assert_ne!(theirs, OWN);
        for_receiver(&config(OWN), &config(&theirs)).map_err(|error| match error {
            Error::OtherMachine { differences } => differences,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_is_behind_the_devices_may_differ() {
        let moved = check("/srv/a.img", "/mnt/b.img").unwrap();
        assert_eq!(moved.disks[0].source, DiskSource::Path("/mnt/b.img".to_owned()));
        assert_eq!(check("xenbr0", "br7").unwrap().nics[0].bridge.as_deref(), Some("br7"));
        for (from, to) in [
            ("'pty'\n", "'file:/tmp/log'\n"),
            ("'pty'\n", "'pty'\non_reboot = 'destroy'\n"),
            ("'pty'\n", "'pty'\ncpus = '0'\n"),
        ] {
            assert!(check(from, to).is_ok(), "{to}");
        }
        let same = for_receiver(&config(OWN), &config(OWN)).unwrap();
        assert_eq!(same, config(OWN));
    }

    #[test]
    fn another_machine_is_refused_and_every_difference_is_named() {
        for (from, to, named) in [
            ("memory = 64", "memory = 128", &["memory", "max_memory"][..]),
            ("'hello'", "'other'", &["name"]),
            ("hda", "hdb", &["disks.0.vdev.disk"]),
            ("00:01", "00:02", &["nics.0.mac"]),
            ("'pty'\n", "'pty'\nvcpus = 2\n", &["vcpus", "max_vcpus"]),
            ("'pty'\n", "'pty'\nvga = 'stdvga'\n", &["display.vga"]),
            ("target='", "target=/srv/cd.iso'", &["disks.1.source"]),
            ("serial = 'pty'", "serial = [ 'pty', 'pty' ]", &["serials"]),
            ("vif = [", "vif = [ '',", &["number of entries in vif"]),
        ] {
            let differences = check(from, to).unwrap_err();
            for name in named {
                assert!(differences.iter().any(|found| found == name), "{to}: {differences:?}");
            }
        }
        let text = Error::OtherMachine { differences: vec!["memory".to_owned()] }.to_string();
        assert!(text.contains("memory"), "{text}");
    }
}
