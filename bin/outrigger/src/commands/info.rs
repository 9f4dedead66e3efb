//! `outrigger info`.

use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::types::{GuestParameter, Info as Reply, Inspection};
use serde_json::json;

use crate::cli::Info;

/// Prints the host, or a guest in detail.
pub(crate) fn info(client: &mut Client, args: &Info) -> Result<ExitCode> {
    match &args.guest {
        None => host(client, args.json)?,
        Some(guest) => one(client, guest, args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn host(client: &mut Client, json: bool) -> Result<()> {
    let info = client.call::<_, Reply>("HostInfo", &json!({}))?.info;
    if json {
        println!("{}", serde_json::to_string_pretty(&info)?);
        return Ok(());
    }
    field("Outrigger", &info.version);
    field("Xen", &info.xen_version);
    field("Guest kinds", &info.xen_caps);
    field("Processor", &info.virt_caps);
    field("Processors", &info.cpus.to_string());
    field("Memory", &info.total_memory_kib.to_string());
    field("Free memory", &info.free_memory_kib.to_string());
    let image = if info.image_present { info.image } else { format!("{} (absent)", info.image) };
    field("Stubdomain image", &image);
    field("Guests", &info.guests.to_string());
    Ok(())
}

fn one(client: &mut Client, guest: &str, json: bool) -> Result<()> {
    let found: Inspection = client.call("Inspect", &GuestParameter { guest: guest.to_owned() })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    let guest = &found.guest;
    field("Name", &guest.name);
    field("UUID", &guest.uuid);
    field("Domain", &guest.domid.to_string());
    field("State", guest.state.word());
    field("Memory", &guest.memory_kib.to_string());
    field("VCPUs", &guest.vcpus.to_string());
    field("Serial ports", &guest.serials.to_string());
    let stub = guest.stub_domid.map_or_else(|| "gone".to_owned(), |id| id.to_string());
    field("Stubdomain", &stub);
    field("Stubdomain memory", &guest.stub_memory_kib.to_string());
    if let Some(agent) = found.agent.as_object() {
        for (key, value) in agent {
            field(&format!("Agent {key}"), value.as_str().unwrap_or(&value.to_string()));
        }
    }
    field("QEMU arguments", &found.qemu_argv.join(" "));
    Ok(())
}

fn field(name: &str, value: &str) {
    println!("{name:<20} {value}");
}
