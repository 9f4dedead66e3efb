//! The grammar of `vcpu-pin` and `vcpu-set`.

use std::str::FromStr;

use clap::Args;
use config::CpuSet;

/// Arguments of `vcpu-pin`.
#[derive(Debug, Args)]
pub(crate) struct VcpuPin {
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The vCPU's number, or `all`.
    #[arg(value_name = "VCPU")]
    pub(crate) vcpus: WhichVcpus,
    /// The CPUs that it may run on: numbers and ranges such as 0-3,^1; `all`; `-` for no change.
    #[arg(value_name = "HARD", allow_hyphen_values = true)]
    pub(crate) hard: Cpus,
    /// The CPUs that it runs on if they are free, in the same form.
    #[arg(value_name = "SOFT", allow_hyphen_values = true, default_value = "-")]
    pub(crate) soft: Cpus,
    /// Options of xl.
    #[command(flatten)]
    pub(crate) xl: PinXl,
}

/// Options of `xl vcpu-pin`. The first has no effect: it is about what dom0's kernel has pinned.
#[derive(Debug, Args)]
pub(crate) struct PinXl {
    #[arg(short = 'f', long, hide = true)]
    force: bool,
    /// Use CPUs too that vm.cpumask and vm.hvm.cpumask in xl.conf exclude.
    #[arg(short = 'i', long)]
    pub(crate) ignore_global_affinity_masks: bool,
}

/// The vCPUs that are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhichVcpus {
    /// All of the guest.
    All,
    /// One.
    One(u32),
}

impl FromStr for WhichVcpus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::One).map_err(|_| "expected a vCPU's number, or `all`"),
        }
    }
}

/// A set of CPUs in the form of the `cpus` key; none for no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) Option<String>);

impl FromStr for Cpus {
    type Err = config::CpuSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self(None));
        }
        text.parse::<CpuSet>().map(|_| Self(Some(text.to_owned())))
    }
}

/// Arguments of `vcpu-set`.
#[derive(Debug, Args)]
pub(crate) struct VcpuSet {
    /// Allow more vCPUs than the host has CPUs.
    #[arg(short, long)]
    pub(crate) ignore_host: bool,
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The number, at most maxvcpus.
    pub(crate) vcpus: u32,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn pin(words: &str) -> Option<VcpuPin> {
        let words = format!("outrigger vcpu-pin {words}");
        match Cli::try_parse_from(words.split_whitespace()).ok()?.command {
            Command::VcpuPin(pin) => Some(pin),
            other => panic!("not vcpu-pin: {other:?}"),
        }
    }

    #[test]
    fn affinities_are_sets_all_or_a_dash_for_no_change() {
        let cpus = |text: &str| Cpus((text != "-").then(|| text.to_owned()));
        for (words, vcpus, hard, soft) in [
            ("g 3 3,4", WhichVcpus::One(3), "3,4", "-"),
            ("g 3 3,4 -", WhichVcpus::One(3), "3,4", "-"),
            ("g all - 6-9", WhichVcpus::All, "-", "6-9"),
            ("g all all all", WhichVcpus::All, "all", "all"),
            ("-f g 0 0-3,^1", WhichVcpus::One(0), "0-3,^1", "-"),
        ] {
            let pin = pin(words).unwrap_or_else(|| panic!("{words}"));
            assert_eq!((pin.vcpus, pin.hard, pin.soft), (vcpus, cpus(hard), cpus(soft)), "{words}");
        }
        for wrong in ["g", "g 0", "g x 1", "g 0 x", "g 0 4-2", "g -1 0", "g 0 1 2 3"] {
            assert!(pin(wrong).is_none(), "{wrong}");
        }
    }
}
