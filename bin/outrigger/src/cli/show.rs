//! The grammar of the commands that list and show.

use clap::Args;

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also show UUIDs, CPU time and the stubdomain's share.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// Also show UUIDs, why guests have ended, and XSM labels.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Also show XSM labels.
    #[arg(short = 'Z', long)]
    pub(crate) context: bool,
    /// Also show CPU pools.
    #[arg(short, long)]
    pub(crate) cpupool: bool,
    /// Also show the NUMA nodes that guests are on.
    #[arg(short, long)]
    pub(crate) numa: bool,
    /// Only these guests.
    #[arg(value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of `block-list`, `network-list` and `channel-list`.
#[derive(Debug, Args)]
pub(crate) struct DeviceList {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Names, UUIDs or domids.
    #[arg(required = true, value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of the commands that show some guests, or all of them.
#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Names, UUIDs or domids; without one, all guests.
    #[arg(value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

/// Arguments of `uptime`.
#[derive(Debug, Args)]
pub(crate) struct Uptime {
    /// Print short lines, with the time of the day.
    #[arg(short, long)]
    pub(crate) short: bool,
    /// What is shown.
    #[command(flatten)]
    pub(crate) shown: Shown,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also show the host's CPUs and NUMA nodes.
    #[arg(short, long, conflicts_with = "guest")]
    pub(crate) numa: bool,
    /// Name, UUID or domid; without it, the host is shown.
    pub(crate) guest: Option<String>,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Print tables, one after the other, instead of a screen.
    #[arg(short, long)]
    pub(crate) batch: bool,
    /// Print JSON, one object a line and refresh.
    #[arg(long, conflicts_with = "batch")]
    pub(crate) json: bool,
    /// Seconds between refreshes.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) delay: u64,
    /// End after this many refreshes.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) iterations: Option<u64>,
}
