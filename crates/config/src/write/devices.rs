//! Disks, network interfaces, serial ports and channels.

use super::File;
use crate::guest;
use crate::model::{
    Access, Channel, ChannelConnection, Disk, DiskController, DiskFormat, DiskKind, DiskSource, GuestConfig,
    Nic, NicKind, Rate, SerialOutput,
};

pub(super) fn write(file: &mut File, guest: &GuestConfig) {
    let disks: Vec<String> = guest.disks.iter().map(disk).collect();
    file.list("disk", &disks);
    match guest.disk_controller {
        DiskController::Ide => {}
        DiskController::Ahci => file.text("hdtype", "ahci"),
    }
    let nics: Vec<String> = (0..).zip(&guest.nics).map(|(index, nic)| self::nic(nic, index)).collect();
    file.list("vif", &nics);
    let serials: Vec<String> = guest.serials.iter().map(serial).collect();
    match serials.as_slice() {
        [one] => file.text("serial", one),
        more => file.list("serial", more),
    }
    let channels: Vec<String> = guest.channels.iter().map(channel).collect();
    file.list("channel", &channels);
}

fn disk(disk: &Disk) -> String {
    let format = match (&disk.source, disk.format) {
        (DiskSource::Empty, _) => "empty",
        (_, DiskFormat::Raw) => "raw",
    };
    let access = match disk.access {
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
    };
    let mut words =
        vec![format!("format={format}"), format!("vdev={}", disk.vdev), format!("access={access}")];
    match disk.kind {
        DiskKind::Disk => {}
        DiskKind::CdRom => words.push("devtype=cdrom".to_owned()),
    }
    words.extend(disk.backend.iter().map(|backend| format!("backend={backend}")));
    words.extend(disk.discard.map(|discard| if discard { "discard" } else { "no-discard" }.to_owned()));
    words.extend(disk.direct_io_safe.then(|| "direct-io-safe".to_owned()));
    words.extend((!disk.trusted).then(|| "untrusted".to_owned()));
    let target = match &disk.source {
        DiskSource::Empty => None,
        DiskSource::Path(path) => Some(path),
        DiskSource::Script { script, target } => {
            words.push(format!("script={script}"));
            Some(target)
        }
    };
    // The last, because it takes everything behind it but one comma at the very end.
    words.extend(
        target.map(|target| format!("target={target}{}", if target.ends_with(',') { "," } else { "" })),
    );
    words.join(", ")
}

fn nic(nic: &Nic, index: u32) -> String {
    let mut words = Vec::new();
    let mut word = |key: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("{key}={value}")));
    };
    word("type", (nic.kind == NicKind::Vif).then(|| "vif".to_owned()));
    word("mac", nic.mac.map(|mac| mac.to_string()));
    word("bridge", nic.bridge.clone());
    word("model", Some(nic.model.clone()).filter(|model| model != Nic::DEFAULT_MODEL));
    word("script", nic.script.clone());
    word("vifname", nic.vifname.clone());
    word("ip", nic.ip.clone());
    word("gatewaydev", nic.gateway_dev.clone());
    word("backend", nic.backend.clone());
    word("rate", nic.rate.map(rate));
    word("devid", (nic.devid != index).then(|| nic.devid.to_string()));
    word("mtu", nic.mtu.map(|mtu| mtu.to_string()));
    words.extend((!nic.trusted).then(|| "untrusted".to_owned()));
    words.join(", ")
}

/// A rate in the first unit that can express it exactly.
fn rate(rate: Rate) -> String {
    const USECS: u128 = 1_000_000;
    let Rate { bytes_per_interval, interval_usecs } = rate;
    let interval = u128::from(interval_usecs.max(1));
    let units = [("B", 1), ("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    // The least number of bytes a second that makes the interval's: a larger one cannot be nearer.
    let in_bytes = units.iter().map(|(unit, scale)| {
        let number = (u128::from(bytes_per_interval) * USECS).div_ceil(interval * scale);
        format!("{number}{unit}/s@{interval_usecs}us")
    });
    let in_bits = units.iter().map(|(unit, scale)| {
        let bytes = (u128::from(bytes_per_interval) * USECS).div_ceil(interval);
        format!("{}{}/s@{interval_usecs}us", (bytes * 8).div_ceil(*scale), unit.replace('B', "b"))
    });
    let mut candidates = in_bytes.chain(in_bits);
    let exact = candidates.find(|text| guest::rate(text).is_ok_and(|read| read == rate));
    exact.unwrap_or_else(|| format!("{bytes_per_interval}B/s@1s"))
}

fn serial(serial: &SerialOutput) -> String {
    match serial {
        SerialOutput::Pty => "pty".to_owned(),
        SerialOutput::File(path) => format!("file:{path}"),
        SerialOutput::Null => "null".to_owned(),
    }
}

fn channel(channel: &Channel) -> String {
    let name = &channel.name;
    match &channel.connection {
        ChannelConnection::Pty => format!("name={name}, connection=pty"),
        ChannelConnection::Socket(path) => format!("name={name}, connection=socket, path={path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_exactly() {
        for text in [
            "10Mb/s",
            "250KB/s@20ms",
            "1GB/s@1s",
            "1GB/s@4000s",
            "4294967295GB/s@1us",
            "3b/s@3s",
            "4294967295Gb/s@7us",
        ] {
            let Ok(read) = guest::rate(text) else { continue };
            assert_eq!(guest::rate(&rate(read)), Ok(read), "{text}: {}", rate(read));
        }
    }
}
