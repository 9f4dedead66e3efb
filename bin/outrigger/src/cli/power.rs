//! The grammar of `create`, `shutdown` and `reboot`.

use std::path::{Path, PathBuf};

use clap::Args;

/// Arguments of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Attach to the guest's first serial port as soon as the guest runs.
    #[arg(short = 'c', long)]
    pub(crate) console: bool,
    /// Leave the guest paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Check the configuration, print it as JSON, and create nothing.
    #[arg(short = 'n', long = "dryrun", conflicts_with_all = ["console", "foreground", "quiet"])]
    pub(crate) dry_run: bool,
    /// Wait until the guest has ended, across its reboots; its events go to standard error.
    #[arg(short = 'F', long, conflicts_with = "console")]
    pub(crate) foreground: bool,
    /// Print only warnings and errors.
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// Print one JSON object per step; the last one contains the guest.
    #[arg(long, conflicts_with_all = ["console", "dry_run"])]
    pub(crate) json: bool,
    /// The configuration file, if it is not the first argument.
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    file: Option<PathBuf>,
    /// What only xl has.
    #[command(flatten)]
    pub(crate) xl: CreateXl,
    /// The configuration file, in the format of xl.cfg(5), or `-` for standard input, and lines that follow it, such as
    /// memory=512 or 'name="b"'. A later line overrides an earlier one.
    #[arg(value_name = "CFG|KEY=VALUE", required_unless_present = "file")]
    words: Vec<String>,
}

/// Options of `xl create` that are accepted without effect, or refused with a reason.
#[derive(Debug, Args)]
pub(crate) struct CreateXl {
    #[arg(short = 'd', hide = true)]
    debug: bool,
    #[arg(short = 'e', hide = true)]
    unwatched: bool,
    #[arg(long, hide = true)]
    ignore_global_affinity_masks: bool,
    #[arg(short = 'V', long, hide = true)]
    vncviewer: bool,
    #[arg(short = 'A', long, hide = true)]
    vncviewer_autopass: bool,
}

/// Why one of `create`'s options is refused.
const NO_VNC: &str = "-V and -A are not supported: guests have no VNC display yet; `outrigger screenshot` shows the \
                      screen, `-c` attaches to the serial port";

/// The same.
const MASKS: &str = "--ignore-global-affinity-masks is not supported: outriggerd keeps every new guest on the CPUs that \
                     vm.cpumask and vm.hvm.cpumask in xl.conf allow; `outrigger vcpu-pin` moves it later";

impl CreateXl {
    /// Why one of them is refused, if one is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        if self.vncviewer || self.vncviewer_autopass {
            return Some(NO_VNC);
        }
        self.ignore_global_affinity_masks.then_some(MASKS)
    }
}

/// A configuration file, and the lines that follow it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CreateSource<'a> {
    /// The file.
    pub(crate) file: &'a Path,
    /// The lines.
    pub(crate) settings: Vec<&'a str>,
}

impl Create {
    /// What the guest is made from. As in xl, a word with `=` is a line; a file with such a name needs `-f`.
    ///
    /// # Errors
    /// When there is no file, or more than one; the text names it.
    pub(crate) fn source(&self) -> Result<CreateSource<'_>, String> {
        source(self.file.as_deref(), &self.words)
    }
}

fn source<'a>(file: Option<&'a Path>, words: &'a [String]) -> Result<CreateSource<'a>, String> {
    let (settings, files): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| word.contains('='));
    let mut files = file.into_iter().chain(files.into_iter().map(Path::new));
    let Some(file) = files.next() else { return Err("no configuration file is given".to_owned()) };
    match files.next() {
        None => Ok(CreateSource { file, settings }),
        Some(other) => Err(format!("{} is a second configuration file", other.display())),
    }
}

/// Arguments of `config-update`.
#[derive(Debug, Args)]
pub(crate) struct ConfigUpdate {
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The configuration file, if it is not the first argument.
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    file: Option<PathBuf>,
    /// An option of xl without effect.
    #[arg(short = 'd', hide = true)]
    debug: bool,
    /// The configuration file, and lines that follow it, as for `create`.
    #[arg(value_name = "CFG|KEY=VALUE", required_unless_present = "file")]
    words: Vec<String>,
}

impl ConfigUpdate {
    /// What the guest is made from the next time; as for [`Create::source`].
    ///
    /// # Errors
    /// As for [`Create::source`].
    pub(crate) fn source(&self) -> Result<CreateSource<'_>, String> {
        source(self.file.as_deref(), &self.words)
    }
}

/// Arguments of `shutdown`.
#[derive(Debug, Args)]
pub(crate) struct Shutdown {
    /// Wait until the guests have ended, for at most this many seconds.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    pub(crate) wait: Option<u64>,
    /// Use the ACPI power button for a guest without PV drivers; this is the default.
    #[arg(short = 'F')]
    pub(crate) fallback: bool,
    /// Which guests.
    #[command(flatten)]
    pub(crate) which: Several,
}

/// Arguments of `reboot`.
#[derive(Debug, Args)]
pub(crate) struct Reboot {
    /// Wait until the guests run again, for at most this many seconds.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    pub(crate) wait: Option<u64>,
    /// Reset a guest without PV drivers, which cannot be asked: it loses what it has not written to its disks.
    #[arg(short = 'F')]
    pub(crate) fallback: bool,
    /// Which guests.
    #[command(flatten)]
    pub(crate) which: Several,
}

/// Guests by name, or all of them.
#[derive(Debug, Args)]
pub(crate) struct Several {
    /// All guests of Outrigger; those of xl are left alone.
    #[arg(short, long, conflicts_with = "guests")]
    pub(crate) all: bool,
    /// Names, UUIDs or domids.
    #[arg(required_unless_present = "all", value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn create(words: &str) -> Option<Create> {
        let words = format!("outrigger create {words}");
        match Cli::try_parse_from(words.split_whitespace()).ok()?.command {
            Command::Create(create) => Some(create),
            other => panic!("not create: {other:?}"),
        }
    }

    #[test]
    fn words_with_an_equals_sign_are_lines_wherever_they_stand() {
        for words in ["a.cfg memory=64 vcpus=2", "memory=64 a.cfg vcpus=2", "-f a.cfg memory=64 vcpus=2"] {
            let args = create(words).unwrap();
            let expected = CreateSource { file: Path::new("a.cfg"), settings: vec!["memory=64", "vcpus=2"] };
            assert_eq!(args.source(), Ok(expected), "{words}");
        }
        assert!(create("-f a=b.cfg").unwrap().source().is_ok());
        assert!(create("memory=64").unwrap().source().is_err());
        assert!(create("a.cfg b.cfg").unwrap().source().unwrap_err().starts_with("b.cfg"));
        assert!(create("").is_none());
    }

    #[test]
    fn options_of_xl_are_accepted_or_refused_with_a_reason() {
        let args = create("a.cfg -q -d -e -F -p").unwrap();
        assert!(args.quiet && args.foreground && args.paused && args.xl.refusal().is_none());
        for vnc in ["-A", "-V", "--vncviewer", "--vncviewer-autopass"] {
            assert_eq!(create(&format!("{vnc} a.cfg")).unwrap().xl.refusal(), Some(NO_VNC), "{vnc}");
        }
        let masks = create("a.cfg --ignore-global-affinity-masks").unwrap();
        assert_eq!(masks.xl.refusal(), Some(MASKS));
        assert!(create("-n --dryrun a.cfg").is_none(), "once is enough");
        assert!(create("-n -F a.cfg").is_none());
    }

    #[test]
    fn shutdown_and_reboot_take_guests_or_all_of_them() {
        let parse = |words: &str| Cli::try_parse_from(words.split_whitespace()).map(|cli| cli.command);
        let Ok(Command::Shutdown(stop)) = parse("outrigger shutdown -w hello") else { panic!() };
        assert_eq!((stop.wait, stop.which.guests), (Some(300), vec!["hello".to_owned()]));
        let Ok(Command::Shutdown(stop)) = parse("outrigger shutdown -a -F -w=5") else { panic!() };
        assert!(stop.which.all && stop.fallback && stop.wait == Some(5));
        let Ok(Command::Reboot(reboot)) = parse("outrigger reboot -a -w -F") else { panic!() };
        assert!(reboot.which.all && reboot.fallback && reboot.wait == Some(300));
        for wrong in ["shutdown", "reboot", "shutdown -a hello"] {
            assert!(parse(&format!("outrigger {wrong}")).is_err(), "{wrong}");
        }
    }
}
