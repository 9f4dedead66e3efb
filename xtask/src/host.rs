//! `cargo xtask host`: builds the embedded host, runs a script in it, or gives a shell.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use testhost::accel::{self, Choice};
use testhost::pair::{PairRequest, Role};
use testhost::{
    Accel, Host, Job, Machine, Observer as _, Put, Recipe, Report, Request, TimeScale, Xenstored,
};

use crate::binaries::{self, Profile, Xen};
use crate::pair::{self, PairOptions};
use crate::releases::DebianOptions;
use crate::view::View;
use crate::{debian, emulator, guest, workspace};

/// What to do with the embedded host.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Builds it if necessary, and prints its directory.
    Build(BuildOptions),
    /// Runs a script as root in its dom0 and exits with the script's status.
    Run {
        #[command(flatten)]
        build: BuildOptions,
        #[command(flatten)]
        run: RunOptions,
        #[command(flatten)]
        pair: PairOptions,
        /// The script; its `#!` line selects the interpreter. `/bin/sh` is busybox's.
        script: PathBuf,
    },
    /// Opens a shell in its dom0.
    Shell {
        #[command(flatten)]
        build: BuildOptions,
        #[command(flatten)]
        run: RunOptions,
    },
}

/// What the host is made of.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BuildOptions {
    /// Adds stock xl, xenconsoled, QEMU for dom0 and their scripts.
    #[arg(long)]
    pub(crate) with_xen_tools: bool,
    /// Omits our programs and the stubdomain's image.
    #[arg(long)]
    pub(crate) bare: bool,
    /// Omits the stubdomain's image.
    #[arg(long)]
    pub(crate) no_stubdom: bool,
    /// Uses our programs as they were last compiled.
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Compiles our programs as users get them, rather than quickly.
    #[arg(long)]
    pub(crate) release: bool,
    #[command(flatten)]
    pub(crate) debian: DebianOptions,
}

/// How the host runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// Copies a file or directory into dom0 before the script starts; may be repeated.
    #[arg(long, value_name = "FILE:PATH", value_parser = parse_put)]
    pub(crate) put: Vec<Put>,
    /// Time limit of the script in seconds (times OUTRIGGER_TIME_SCALE).
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Number of the host's CPUs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) cpus: u32,
    /// The host's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(crate) memory: u32,
    /// Options for Xen's command line, such as `loglvl=all guest_loglvl=all` (shows hvmloader and SeaBIOS, too).
    #[arg(long, value_name = "WORDS", default_value = "loglvl=warning guest_loglvl=warning")]
    pub(crate) xen_arguments: String,
    /// Options for the command line of dom0's kernel.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) dom0_arguments: String,
    /// A raw file that is the host's disk, /dev/vda; its contents persist for the next run. Boots from scratch.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) xenstored: XenstoredOption,
    #[command(flatten)]
    pub(crate) accel: AccelOption,
    /// Boots from scratch: neither uses nor makes a snapshot.
    #[arg(long, env = "OUTRIGGER_FRESH")]
    pub(crate) fresh: bool,
    #[command(flatten)]
    pub(crate) emulator: emulator::EmulatorOption,
    /// Shows Xen's and dom0's console too.
    #[arg(long)]
    pub(crate) console: bool,
    /// Prints only the script's output.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What keeps xenstore in dom0.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct XenstoredOption {
    /// What keeps xenstore in dom0: `c` for xenstored, `ocaml` for oxenstored.
    #[arg(long, value_name = "WHICH", env = Xenstored::VARIABLE, default_value = Xenstored::default().word())]
    pub(crate) xenstored: Xenstored,
}

/// What executes the host's instructions.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct AccelOption {
    /// What executes the host's instructions: `kvm`, `tcg` (software emulation), or `auto` for KVM where it can nest.
    #[arg(long, value_name = "WHAT", env = Choice::VARIABLE, default_value = "auto")]
    accel: Choice,
}

impl AccelOption {
    /// Decides, and shows why when KVM would have been used.
    pub(crate) fn decide(self, view: &mut View) -> Result<Accel> {
        let decision = accel::choose(self.accel)?;
        if let Some(reason) = decision.reason {
            view.progress(&format!("Software emulation is used, not KVM: {reason}"));
        }
        Ok(decision.accel)
    }
}

fn parse_put(text: &str) -> Result<Put, String> {
    match text.rsplit_once(':') {
        Some((source, target)) if !source.is_empty() && target.starts_with('/') => {
            Ok(Put { source: source.into(), target: target.into() })
        }
        _ => Err("FILE:PATH is expected, PATH absolute in dom0".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn main(command: Command) -> Result<ExitCode> {
    debian::ensure(&debian::RUN_HOST, true)?;
    match command {
        Command::Build(build) => {
            let host = built(&build, &[], &mut View::new(false, false))?;
            println!("{}", host.folder.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { build, run, pair, script } => {
            std::fs::metadata(&script)
                .with_context(|| format!("Cannot find the script {}", script.display()))?;
            job(&build, &run, &pair, Job::Script(script))
        }
        Command::Shell { build, run } => job(&build, &run, &PairOptions::default(), Job::Shell),
    }
}

/// Builds the host with everything that the options ask for, and `more` programs.
pub(crate) fn built(options: &BuildOptions, more: &[Put], view: &mut View) -> Result<Host> {
    let store = options.debian.store()?;
    let mut recipe =
        Recipe { with_xen_tools: options.with_xen_tools, ..Recipe::minimal(store.debian().xen()) };
    if !options.bare {
        let profile = if options.release { Profile::Release } else { Profile::Dev };
        recipe.programs = binaries::dom0(profile, !options.no_build, &Xen::of(&store, recipe.xen)?)?;
        if !options.no_stubdom {
            recipe.files.extend(guest::stubdom(&options.debian.image_store()?, !options.no_build, view)?);
        }
    }
    recipe.files.extend(guest::examples()?);
    recipe.programs.extend_from_slice(more);
    let host = testhost::build(&recipe, &store, &workspace::kept("hosts"), view)?;
    view.progress(&format!("The host is in {}", host.folder.display()));
    Ok(host)
}

/// The request for a run with these options.
pub(crate) fn request(options: &RunOptions, accel: Accel, job: Job, view: &mut View) -> Result<Request> {
    let timeout = match job {
        Job::Script(_) => Some(Duration::from_secs(options.timeout)),
        Job::Shell => None,
    };
    let scale = TimeScale::from_env()?;
    let machine = Machine {
        cpus: options.cpus,
        memory_mib: options.memory,
        xen_arguments: options.xen_arguments.clone(),
        dom0_arguments: options.dom0_arguments.clone(),
        xenstored: options.xenstored.xenstored,
        // QEMU runs in the host's folder.
        disk: options.disk.as_deref().map(std::path::absolute).transpose()?,
        ..options.emulator.machine(accel, view)?
    };
    Ok(Request {
        machine: machine.stretched(scale),
        preparations: Vec::new(),
        job,
        puts: options.put.clone(),
        timeout,
        fresh: options.fresh,
        logs: testhost::fresh_log_folder(&workspace::kept("logs")),
        scale,
    })
}

fn job(build: &BuildOptions, run: &RunOptions, pair: &PairOptions, job: Job) -> Result<ExitCode> {
    let mut view = View::new(run.quiet, run.console);
    let accel = run.accel.decide(&mut view)?;
    let host = built(build, &[], &mut view)?;
    let each = request(run, accel, job, &mut view)?;
    if pair.pair {
        let request = PairRequest { each, shared_disks: pair.shared_disk.clone() };
        let reports = pair::run(&host, &request, &mut view)?;
        Role::BOTH.iter().zip(&reports).for_each(|(role, report)| {
            show(run, &format!("{}: ", role.letter()), report);
        });
        return Ok(exit_code(pair::status(&reports)));
    }
    let report = testhost::run(&host, &each, &mut view)?;
    show(run, "", &report);
    Ok(exit_code(report.status))
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Shows how a run ended.
fn show(run: &RunOptions, prefix: &str, report: &Report) {
    if !run.quiet {
        eprintln!(
            "{prefix}Exit status {} after {:.1} s ({:?} in {:.1} s); the logs are in {}",
            report.status,
            report.job.as_secs_f64(),
            report.origin,
            report.startup.as_secs_f64(),
            report.logs.display()
        );
    }
}
