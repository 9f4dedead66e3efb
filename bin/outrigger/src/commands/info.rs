//! `outrigger info`.

use std::process::ExitCode;

use anyhow::Result;
use api::client::Client;
use api::types::{GuestParameter, HostCpu, HostNode, Info as Reply, Inspection, Topology};
use serde_json::json;

use crate::cli::Info;
use crate::table;

/// Prints the host, or a guest in detail.
pub(crate) fn info(client: &mut Client, args: &Info) -> Result<ExitCode> {
    match &args.guest {
        None => host(client, args)?,
        Some(guest) => one(client, guest, args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn host(client: &mut Client, args: &Info) -> Result<()> {
    let info = client.call::<_, Reply>("HostInfo", &json!({}))?.info;
    let topology: Option<Topology> =
        if args.numa { Some(client.call("HostTopology", &json!({}))?) } else { None };
    if args.json {
        let mut shown = serde_json::to_value(&info)?;
        if let Some(topology) = &topology {
            shown["topology"] = serde_json::to_value(topology)?;
        }
        println!("{}", serde_json::to_string_pretty(&shown)?);
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
    if let Some(topology) = topology {
        print_topology(&topology);
    }
    Ok(())
}

fn print_topology(topology: &Topology) {
    let cpu = |cpu: &HostCpu| [cpu.number, cpu.core, cpu.socket, cpu.node].map(|n| n.to_string()).to_vec();
    let rows: Vec<Vec<String>> = topology.cpus.iter().map(cpu).collect();
    println!();
    print!("{}", table::render(&[">CPU", ">Core", ">Socket", ">Node"], &rows));
    let node = |node: &HostNode| {
        let distances: Vec<String> = node.distances.iter().map(ToString::to_string).collect();
        let memory = [node.memory_kib, node.free_memory_kib].map(|memory| memory.mib().to_string());
        let [all, free] = memory;
        vec![node.number.to_string(), all, free, distances.join(",")]
    };
    let rows: Vec<Vec<String>> = topology.nodes.iter().map(node).collect();
    println!();
    print!("{}", table::render(&[">Node", ">MemSize(MiB)", ">MemFree(MiB)", "Distances"], &rows));
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
