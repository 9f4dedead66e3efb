//! Changing guests that run, and listing their devices.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use api::client::Client;
use api::types::{
    Channel, Channels, Disk, Disks, GuestParameter, MemSet, Nic, Nics, Progress, Sysrq, TriggerKind,
    TriggerParameters,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::json;
use xen_types::KiB;

use crate::cli::{DeviceList, Trigger};
use crate::table;
use crate::timeline::Timeline;

/// Calls a method that changes a guest, and shows its steps.
pub(crate) fn steps(client: &mut Client, method: &str, parameters: &impl Serialize) -> Result<ExitCode> {
    client.set_deadline(None)?;
    let mut timeline = Timeline::new();
    client.call_more(method, parameters, |progress: Progress| {
        timeline.follow(&progress);
        true
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a picture of a guest's screen and writes it into a file.
pub(crate) fn screenshot(client: &mut Client, guest: String, file: &Path) -> Result<ExitCode> {
    client.set_deadline(None)?;
    let mut timeline = Timeline::new();
    let mut parts = Vec::new();
    client.call_more("Screenshot", &GuestParameter { guest }, |progress: Progress| {
        timeline.follow(&progress);
        parts.extend(progress.data);
        true
    })?;
    let mut png = Vec::new();
    for part in parts {
        png.extend(BASE64_STANDARD.decode(part).context("The screenshot is not valid base64")?);
    }
    std::fs::write(file, png).with_context(|| format!("Cannot write {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Sets the memory of a guest, or its limit.
pub(crate) fn memory(client: &mut Client, method: &str, guest: String, memory: KiB) -> Result<ExitCode> {
    steps(client, method, &MemSet { guest, memory_kib: memory })
}

/// Signals a guest's virtual hardware.
pub(crate) fn trigger(client: &mut Client, guest: String, which: Trigger, vcpu: u32) -> Result<ExitCode> {
    quick(client, "Trigger", &TriggerParameters { guest, trigger: kind(which), vcpu })
}

/// Sends a magic SysRq key to a guest.
pub(crate) fn sysrq(client: &mut Client, guest: String, key: char) -> Result<ExitCode> {
    quick(client, "Sysrq", &Sysrq { guest, key: key.to_string() })
}

/// Calls a method without steps and without an answer.
fn quick(client: &mut Client, method: &str, parameters: &impl Serialize) -> Result<ExitCode> {
    let _: serde_json::Value = client.call(method, parameters)?;
    Ok(ExitCode::SUCCESS)
}

/// The trigger in the interface's words.
const fn kind(trigger: Trigger) -> TriggerKind {
    match trigger {
        Trigger::Power => TriggerKind::Power,
        Trigger::Sleep => TriggerKind::Sleep,
        Trigger::Nmi => TriggerKind::Nmi,
        Trigger::Reset => TriggerKind::Reset,
        Trigger::Init => TriggerKind::Init,
        Trigger::S3resume => TriggerKind::S3resume,
    }
}

/// Prints the disks of guests.
pub(crate) fn disks(client: &mut Client, args: &DeviceList) -> Result<ExitCode> {
    let mut all = Vec::new();
    for guest in &args.guests {
        let reply: Disks = client.call("BlockList", &GuestParameter { guest: guest.clone() })?;
        all.push((guest.clone(), reply.disks));
    }
    if args.json {
        return print_json(all.iter().map(|(guest, disks)| json!({ "guest": guest, "disks": disks })));
    }
    let row = |guest: &str, disk: &Disk| {
        vec![
            guest.to_owned(),
            disk.vdev.clone(),
            disk.devid.to_string(),
            "0".to_owned(),
            number(disk.state),
            number(disk.event_channel),
            number(disk.ring_ref),
            if disk.writable { "rw" } else { "ro" }.to_owned(),
            if disk.cdrom { "cdrom" } else { "disk" }.to_owned(),
            disk.emulated_by.clone().unwrap_or_else(|| "-".to_owned()),
            if disk.source.is_empty() { "(empty)".to_owned() } else { disk.source.clone() },
            disk.backend.clone(),
        ]
    };
    let rows: Vec<_> =
        all.iter().flat_map(|(guest, disks)| disks.iter().map(move |disk| row(guest, disk))).collect();
    let headings = [
        "GUEST",
        "VDEV",
        ">HANDLE",
        ">BE",
        ">STATE",
        ">EVT-CH",
        ">RING-REF",
        "MODE",
        "TYPE",
        "STUB",
        "SOURCE",
        "BE-PATH",
    ];
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

/// Prints the network interfaces of guests.
pub(crate) fn nics(client: &mut Client, args: &DeviceList) -> Result<ExitCode> {
    let mut all = Vec::new();
    for guest in &args.guests {
        let reply: Nics = client.call("NetworkList", &GuestParameter { guest: guest.clone() })?;
        all.push((guest.clone(), reply.nics));
    }
    if args.json {
        return print_json(all.iter().map(|(guest, nics)| json!({ "guest": guest, "nics": nics })));
    }
    let row = |guest: &str, nic: &Nic| {
        vec![
            guest.to_owned(),
            nic.devid.to_string(),
            "0".to_owned(),
            nic.mac.clone(),
            number(nic.state),
            number(nic.event_channel),
            format!("{}/{}", number(nic.tx_ring_ref), number(nic.rx_ring_ref)),
            nic.bridge.clone(),
            if nic.emulated { nic.model.clone() } else { "-".to_owned() },
            nic.backend.clone(),
        ]
    };
    let rows: Vec<_> =
        all.iter().flat_map(|(guest, nics)| nics.iter().map(move |nic| row(guest, nic))).collect();
    let headings =
        ["GUEST", ">IDX", ">BE", "MAC", ">STATE", ">EVT-CH", ">TX-/RX-RING", "BRIDGE", "EMULATED", "BE-PATH"];
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

/// Prints the channels of guests.
pub(crate) fn channels(client: &mut Client, args: &DeviceList) -> Result<ExitCode> {
    let mut all = Vec::new();
    for guest in &args.guests {
        let reply: Channels = client.call("ChannelList", &GuestParameter { guest: guest.clone() })?;
        all.push((guest.clone(), reply.channels));
    }
    if args.json {
        return print_json(
            all.iter().map(|(guest, channels)| json!({ "guest": guest, "channels": channels })),
        );
    }
    let row = |guest: &str, channel: &Channel| {
        vec![
            guest.to_owned(),
            channel.number.to_string(),
            "0".to_owned(),
            number(channel.state),
            number(channel.event_channel),
            number(channel.ring_ref),
            channel.connection.clone(),
            channel.name.clone(),
        ]
    };
    let rows: Vec<_> = all
        .iter()
        .flat_map(|(guest, channels)| channels.iter().map(move |channel| row(guest, channel)))
        .collect();
    let headings = ["GUEST", ">IDX", ">BE", ">STATE", ">EVT-CH", ">RING-REF", "CONNECTION", "NAME"];
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

fn print_json(guests: impl Iterator<Item = serde_json::Value>) -> Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&guests.collect::<Vec<_>>())?);
    Ok(ExitCode::SUCCESS)
}

/// A guest's number; a dash when it has none.
fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
