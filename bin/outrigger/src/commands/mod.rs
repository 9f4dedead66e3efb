//! One module for each family of commands.

mod change;
mod channel;
mod config;
mod console;
mod create;
mod devices;
mod follow;
mod guests;
mod image;
mod info;
mod list;
mod meta;
mod migrate;
mod peer;
mod power;
mod qmp;
mod save;
mod top;
mod uptime;
mod vcpus;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use api::client::{Client, ClientError};
use api::types::{Guest, GuestParameter, OneGuest, Refusal, Rename};

use crate::cli::{Cli, Command};
use crate::report::{self, Usage};

/// How long the daemon may take for an answer that needs no lifecycle.
const QUICK: Duration = Duration::from_secs(30);

/// Does what the command line asks.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(refusal) = cli.xl.refusal().or_else(|| cli.command.refusal()) {
        return Err(Usage(refusal.to_owned()).into());
    }
    let socket = cli.socket;
    let connect = move || connected(&socket);
    match cli.command {
        Command::Create(args) => create::create(connect, &args),
        Command::ConfigUpdate(args) => create::config_update(connect, args),
        Command::VmList { json } => list::vm_list(&mut connect()?, json),
        Command::List(args) => list::list(&mut connect()?, &args),
        Command::Destroy(args) => guests::destroy(&mut connect()?, &args.guests),
        Command::Pause(args) => guests::each(&mut connect()?, "Pause", &args.guests),
        Command::Unpause(args) => guests::each(&mut connect()?, "Unpause", &args.guests),
        Command::Shutdown(args) => power::shutdown(connect, &args),
        Command::Reboot(args) => power::reboot(connect, &args),
        Command::Console(args) => console::console(&mut connect()?, &args),
        Command::DmLog(args) => console::dm_log(connect, &args),
        Command::Info(args) => info::info(&mut connect()?, &args),
        Command::Domid { guest } => show(find(&mut connect()?, &guest)?.domid),
        Command::Domname { guest } => show(find(&mut connect()?, &guest)?.name),
        Command::BlockAttach { guest, disk } => devices::block_attach(&mut connect()?, guest, &disk),
        Command::BlockDetach { force, guest, vdev } => {
            devices::block_detach(&mut connect()?, guest, vdev, force)
        }
        Command::CdInsert { force, guest, vdev, file } => {
            devices::cd_insert(&mut connect()?, guest, vdev, &file, force)
        }
        Command::CdEject { force, guest, vdev } => devices::cd_eject(&mut connect()?, guest, vdev, force),
        Command::BlockList(args) => change::disks(&mut connect()?, &args),
        Command::NetworkAttach { guest, vif } => devices::network_attach(&mut connect()?, guest, &vif),
        Command::NetworkDetach { force, guest, nic } => {
            devices::network_detach(&mut connect()?, guest, nic, force)
        }
        Command::NetworkList(args) => change::nics(&mut connect()?, &args),
        Command::NetworkSetBridge { guest, nic, bridge } => {
            devices::network_set_bridge(&mut connect()?, guest, nic, bridge)
        }
        Command::ChannelList(args) => change::channels(&mut connect()?, &args),
        Command::VcpuList(args) => vcpus::list(&mut connect()?, &args),
        Command::VcpuPin(args) => vcpus::pin(&mut connect()?, args),
        Command::VcpuSet(args) => vcpus::set(&mut connect()?, args),
        Command::MemMax { guest, memory } => change::memory(&mut connect()?, "MemMax", guest, memory),
        Command::MemSet { guest, memory } => change::memory(&mut connect()?, "MemSet", guest, memory),
        Command::Save(args) => save::save(connect, &args),
        Command::DumpCore(args) => save::dump_core(connect, &args),
        Command::Restore(args) => save::restore(connect, &args),
        Command::Suspend(args) => save::each(&mut connect()?, "Suspend", &args.guests),
        Command::Resume(args) => save::each(&mut connect()?, "Resume", &args.guests),
        Command::Screenshot { guest, file } => change::screenshot(&mut connect()?, guest, &file),
        Command::Migrate(args) => migrate::migrate(connect, &args),
        Command::MigrateReceive => migrate::receive(connect),
        Command::Migrations { json } => migrate::migrations(&mut connect()?, json),
        Command::Trigger { guest, trigger, vcpu } => change::trigger(&mut connect()?, guest, trigger, vcpu),
        Command::ButtonPress { guest, button } => change::trigger(&mut connect()?, guest, button.into(), 0),
        Command::Sysrq { guest, key } => change::sysrq(&mut connect()?, guest, key),
        Command::Rename { guest, name } => change::steps(&mut connect()?, "Rename", &Rename { guest, name }),
        Command::Qmp(args) => qmp::qmp(&mut connect()?, &args),
        Command::Uptime(args) => uptime::uptime(&mut connect()?, &args),
        Command::Top(args) => top::top(&mut connect()?, &args),
        Command::Events { json } => guests::events(&mut connect()?, json),
        Command::Config { command } => config::run(&command),
        Command::Image { command } => image::run(&command),
        Command::Completion { shell } => meta::completion(shell),
        Command::Man { dir } => meta::man(&dir),
    }
}

/// A connection to the daemon.
fn connected(socket: &Path) -> Result<Client> {
    let client = Client::connect(socket)?;
    client.set_deadline(Some(QUICK))?;
    Ok(client)
}

/// Does something with each of these guests, whatever becomes of the others; without a daemon, with none of them.
fn each_of(guests: &[String], mut act: impl FnMut(&str) -> Result<()>) -> Result<ExitCode> {
    if let [guest] = guests {
        return act(guest).map(|()| ExitCode::SUCCESS);
    }
    let mut failed: Vec<&str> = Vec::new();
    for guest in guests {
        match act(guest) {
            Ok(()) => {}
            Err(error) if refusal(&error).is_some() => {
                report::print_for(&format!("{guest}: "), &error);
                failed.push(guest);
            }
            Err(error) => return Err(error),
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("Not done with {}; see above", failed.join(", "))
}

/// What the daemon has refused, if it was the daemon.
fn refusal(error: &anyhow::Error) -> Option<&Refusal> {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { refusal, .. }) => Some(refusal),
        _ => None,
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
