//! `outrigger vcpu-list`, `vcpu-pin` and `vcpu-set`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use api::client::{Client, ClientError};
use api::types::{DomainVcpus, Guest, GuestParameter, Guests, Info, Refusal, Vcpu, VcpuPin, VcpuSet, Vcpus};
use serde_json::json;

use super::list::seconds;
use super::{change, find};
use crate::cli::{self, Shown, WhichVcpus};
use crate::table;

/// Prints the vCPUs of guests and of their stubdomains.
pub(crate) fn list(client: &mut Client, args: &Shown) -> Result<ExitCode> {
    let mut domains: Vec<DomainVcpus> = Vec::new();
    for guest in shown(client, args)? {
        match client.call::<_, Vcpus>("VcpuList", &GuestParameter { guest: guest.uuid }) {
            Ok(reply) => domains.extend(reply.domains),
            // It was listed, and has ended since.
            Err(ClientError::Refused { refusal, .. })
                if args.guests.is_empty()
                    && matches!(
                        *refusal,
                        Refusal::NoSuchGuest { .. } | Refusal::NotRunning { .. } | Refusal::Busy { .. }
                    ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&domains)?);
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> =
        domains.iter().flat_map(|domain| domain.vcpus.iter().map(move |vcpu| row(domain, vcpu))).collect();
    let headings = ["Name", ">ID", ">VCPU", ">CPU", "State", ">Time(s)", "Affinity (Hard / Soft)"];
    print!("{}", table::render(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}

/// As `xl vcpu-list` has it.
fn row(domain: &DomainVcpus, vcpu: &Vcpu) -> Vec<String> {
    let letter = |is_set, letter: char| if is_set { letter } else { '-' };
    let state = if vcpu.online {
        String::from_iter([letter(vcpu.running, 'r'), letter(vcpu.blocked, 'b'), '-'])
    } else {
        "--p".to_owned()
    };
    vec![
        domain.name.clone(),
        domain.domid.to_string(),
        vcpu.number.to_string(),
        if vcpu.online { vcpu.cpu.to_string() } else { "-".to_owned() },
        state,
        seconds(vcpu.cpu_time_ns),
        format!("{} / {}", vcpu.hard, vcpu.soft),
    ]
}

/// The guests that are named, or all.
pub(super) fn shown(client: &mut Client, args: &Shown) -> Result<Vec<Guest>> {
    if args.guests.is_empty() {
        return Ok(client.call::<_, Guests>("List", &json!({}))?.guests);
    }
    args.guests.iter().map(|guest| find(client, guest)).collect()
}

/// Chooses the CPUs of vCPUs.
pub(crate) fn pin(client: &mut Client, args: cli::VcpuPin) -> Result<ExitCode> {
    let vcpu = match args.vcpus {
        WhichVcpus::All => None,
        WhichVcpus::One(vcpu) => Some(vcpu),
    };
    let ignore_masks = args.xl.ignore_global_affinity_masks;
    let parameters = VcpuPin { guest: args.guest, vcpu, hard: args.hard.0, soft: args.soft.0, ignore_masks };
    change::steps(client, "VcpuPin", &parameters)
}

/// Sets the number of vCPUs; more than the host has CPUs only where that is wanted.
pub(crate) fn set(client: &mut Client, args: cli::VcpuSet) -> Result<ExitCode> {
    let cli::VcpuSet { ignore_host, guest, vcpus } = args;
    if !ignore_host {
        let cpus = client.call::<_, Info>("HostInfo", &json!({}))?.info.cpus;
        if vcpus > cpus && vcpus > find(client, &guest)?.vcpus {
            bail!("The host has {cpus} CPUs, fewer than {vcpus}; -i sets that number all the same");
        }
    }
    change::steps(client, "VcpuSet", &VcpuSet { guest, vcpus })
}
