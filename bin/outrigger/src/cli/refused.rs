//! Options and arguments that only xl has: accepted without effect, or refused with a reason.

use std::path::PathBuf;

use clap::Args;

use super::Command;

/// Guests have no VNC display yet.
const NO_VNC: &str = "-V and -A are not supported: guests have no VNC display yet; `outrigger screenshot` shows the \
                      screen, `-c` attaches to the serial port";
const MASKS: &str = "--ignore-global-affinity-masks is not supported: outriggerd keeps every new guest on the CPUs that \
                     vm.cpumask and vm.hvm.cpumask in xl.conf allow; `outrigger vcpu-pin` moves it later";
const DOM0: &str = "-f is not supported: it lets xl destroy domain 0, which no guest of Outrigger is; \
                    a guest is always destroyed at once";
const DOMID: &str = "-D is not supported: a host chooses the domids of its guests; name them by name or UUID";
const OWN_CONFIG: &str = "a saved guest has the configuration that it ran with: no other file can be given; \
                          `outrigger config-update` changes it for the next start";

/// Of `xl create`.
#[derive(Debug, Args)]
pub(crate) struct CreateXl {
    #[arg(short = 'd', hide = true)]
    debug: bool,
    #[arg(short = 'e', hide = true)]
    unwatched: bool,
    #[arg(short = 'i', long, hide = true)]
    ignore_global_affinity_masks: bool,
    #[command(flatten)]
    vnc: VncXl,
}

/// Of `xl create` and `xl restore`.
#[derive(Debug, Args)]
pub(crate) struct VncXl {
    #[arg(short = 'V', long, hide = true)]
    vncviewer: bool,
    #[arg(short = 'A', long, hide = true)]
    vncviewer_autopass: bool,
}

impl VncXl {
    const fn refusal(&self) -> Option<&'static str> {
        if self.vncviewer || self.vncviewer_autopass { Some(NO_VNC) } else { None }
    }
}

/// Of `xl destroy`.
#[derive(Debug, Args)]
pub(crate) struct DestroyXl {
    #[arg(short = 'f', hide = true)]
    force: bool,
}

/// Of `xl save`.
#[derive(Debug, Args)]
pub(crate) struct SaveXl {
    #[arg(short = 'D', hide = true)]
    domid: bool,
    #[arg(value_name = "CFG", hide = true)]
    config: Option<PathBuf>,
}

/// Of `xl restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreXl {
    #[arg(short = 'd', hide = true)]
    debug: bool,
    #[arg(short = 'e', hide = true)]
    unwatched: bool,
    #[command(flatten)]
    vnc: VncXl,
    #[arg(value_name = "SECOND_FILE", hide = true)]
    second: Option<PathBuf>,
}

impl Command {
    /// Why an option or argument of xl is refused, if one is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        let first = |reasons: &[(bool, &'static str)]| {
            reasons.iter().find_map(|(is_given, reason)| is_given.then_some(*reason))
        };
        match self {
            Self::Create(args) => {
                args.xl.vnc.refusal().or_else(|| first(&[(args.xl.ignore_global_affinity_masks, MASKS)]))
            }
            Self::Destroy(args) => first(&[(args.xl.force, DOM0)]),
            Self::Save(args) => first(&[(args.xl.domid, DOMID), (args.xl.config.is_some(), OWN_CONFIG)]),
            Self::Restore(args) => {
                args.xl.vnc.refusal().or_else(|| first(&[(args.xl.second.is_some(), OWN_CONFIG)]))
            }
            Self::Migrate(args) => args.xl.refusal(),
            Self::Console(args) => args.which.refusal(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn refusal(words: &str) -> Option<&'static str> {
        let words = format!("outrigger {words}");
        match Cli::try_parse_from(words.split_whitespace()) {
            Ok(cli) => cli.command.refusal(),
            Err(error) => panic!("{words}: {error}"),
        }
    }

    #[test]
    fn options_of_xl_are_refused_with_their_reason() {
        for (words, reason) in [
            ("create -V a.cfg", NO_VNC),
            ("create --vncviewer-autopass a.cfg", NO_VNC),
            ("create -i a.cfg", MASKS),
            ("create a.cfg --ignore-global-affinity-masks", MASKS),
            ("destroy -f 0", DOM0),
            ("save -D g file", DOMID),
            ("save g file a.cfg", OWN_CONFIG),
            ("restore -A file", NO_VNC),
            ("restore a.cfg file", OWN_CONFIG),
        ] {
            assert_eq!(refusal(words), Some(reason), "{words}");
        }
        for words in ["migrate -D g host", "migrate -e g host", "console -t vuart g"] {
            assert!(refusal(words).is_some(), "{words}");
        }
    }

    #[test]
    fn options_of_xl_that_need_nothing_here_are_accepted() {
        for words in [
            "create -d -e -q a.cfg",
            "config-update -d -q g a.cfg",
            "restore -d -e -p file",
            "restore -F file",
            "vcpu-pin -f -i g 0 0",
            "migrate --live g host",
            "migrate -C a.cfg g host",
            "destroy g",
            "save -c -p g file",
        ] {
            assert_eq!(refusal(words), None, "{words}");
        }
    }
}
