//! One module for each family of commands.

mod change;
mod channel;
mod config;
mod console;
mod create;
mod follow;
mod guests;
mod image;
mod info;
mod meta;
mod migrate;
mod peer;
mod qmp;
mod save;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use api::client::Client;
use api::types::{
    BlockAttach, BlockDetach, CdEject, CdInsert, Guest, GuestParameter, MemSet, NetworkAttach, NetworkDetach,
    NetworkSetBridge, OneGuest, Rename, VcpuSet,
};

use crate::cli::{Cli, Command};

/// How long the daemon may take for an answer that needs no lifecycle.
const QUICK: Duration = Duration::from_secs(30);

/// Does what the command line asks.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let socket = cli.socket;
    let connect = move || -> Result<Client> {
        let client = Client::connect(&socket)?;
        client.set_deadline(Some(QUICK))?;
        Ok(client)
    };
    match cli.command {
        Command::Create(args) => create::create(connect, &args),
        Command::List(args) => guests::list(&mut connect()?, &args),
        Command::Destroy(args) => guests::destroy(&mut connect()?, &args.guests),
        Command::Pause(args) => guests::each(&mut connect()?, "Pause", &args.guests),
        Command::Unpause(args) => guests::each(&mut connect()?, "Unpause", &args.guests),
        Command::Shutdown(args) => guests::shutdown(connect, &args),
        Command::Reboot(args) => guests::request(&mut connect()?, "Reboot", &args.guests),
        Command::Console(args) => console::console(&mut connect()?, &args),
        Command::DmLog(args) => console::dm_log(connect, &args),
        Command::Info(args) => info::info(&mut connect()?, &args),
        Command::Domid { guest } => show(find(&mut connect()?, &guest)?.domid),
        Command::Domname { guest } => show(find(&mut connect()?, &guest)?.name),
        Command::BlockAttach { guest, disk } => {
            change::steps(&mut connect()?, "BlockAttach", &BlockAttach { guest, disk: disk.join(",") })
        }
        Command::BlockDetach { force, guest, vdev } => {
            change::steps(&mut connect()?, "BlockDetach", &BlockDetach { guest, vdev, force })
        }
        Command::CdInsert { force, guest, vdev, file } => {
            // The daemon does not know this folder.
            let file = std::path::absolute(file)?.display().to_string();
            change::steps(&mut connect()?, "CdInsert", &CdInsert { guest, vdev, file, force })
        }
        Command::CdEject { force, guest, vdev } => {
            change::steps(&mut connect()?, "CdEject", &CdEject { guest, vdev, force })
        }
        Command::BlockList(args) => change::disks(&mut connect()?, &args),
        Command::NetworkAttach { guest, vif } => {
            change::steps(&mut connect()?, "NetworkAttach", &NetworkAttach { guest, vif: vif.join(",") })
        }
        Command::NetworkDetach { force, guest, nic } => {
            change::steps(&mut connect()?, "NetworkDetach", &NetworkDetach { guest, nic, force })
        }
        Command::NetworkList(args) => change::nics(&mut connect()?, &args),
        Command::NetworkSetBridge { guest, nic, bridge } => {
            change::steps(&mut connect()?, "NetworkSetBridge", &NetworkSetBridge { guest, nic, bridge })
        }
        Command::VcpuSet { guest, vcpus } => {
            change::steps(&mut connect()?, "VcpuSet", &VcpuSet { guest, vcpus })
        }
        Command::MemSet { guest, memory } => {
            change::steps(&mut connect()?, "MemSet", &MemSet { guest, memory_kib: memory })
        }
        Command::Save(args) => save::save(connect, &args),
        Command::Restore(args) => save::restore(&mut connect()?, &args),
        Command::Suspend(args) => save::each(&mut connect()?, "Suspend", &args.guests),
        Command::Resume(args) => save::each(&mut connect()?, "Resume", &args.guests),
        Command::Screenshot { guest, file } => change::screenshot(&mut connect()?, guest, &file),
        Command::Migrate(args) => migrate::migrate(connect, &args),
        Command::MigrateReceive => migrate::receive(connect),
        Command::Migrations { json } => migrate::migrations(&mut connect()?, json),
        Command::Trigger { guest, trigger, vcpu } => change::trigger(&mut connect()?, guest, trigger, vcpu),
        Command::Sysrq { guest, key } => change::sysrq(&mut connect()?, guest, key),
        Command::Rename { guest, name } => change::steps(&mut connect()?, "Rename", &Rename { guest, name }),
        Command::Qmp(args) => qmp::qmp(&mut connect()?, &args),
        Command::Events { json } => guests::events(&mut connect()?, json),
        Command::Config { command } => config::run(&command),
        Command::Image { command } => image::run(&command),
        Command::Completion { shell } => meta::completion(shell),
        Command::Man { dir } => meta::man(&dir),
    }
}

/// Prints one value.
fn show(value: impl std::fmt::Display) -> Result<ExitCode> {
    println!("{value}");
    Ok(ExitCode::SUCCESS)
}

fn find(client: &mut Client, guest: &str) -> Result<Guest> {
    let reply: OneGuest = client.call("Get", &GuestParameter { guest: guest.to_owned() })?;
    Ok(reply.guest)
}
