//! The grammar of `create`, `shutdown` and `reboot`.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};

use super::refused::CreateXl;

/// Arguments of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Attach to the guest's first serial port as soon as the guest runs.
    #[arg(short = 'c', long)]
    pub(crate) console: bool,
    /// Leave the guest paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Create the guest although it was migrated to another host. If it runs there too, both corrupt its disks.
    #[arg(long)]
    pub(crate) force: bool,
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
    /// Options of xl without effect.
    #[arg(short = 'd', hide = true)]
    debug: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
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
    /// How long it is waited for the guests' ends.
    #[command(flatten)]
    pub(crate) wait: Wait,
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
    /// How long it is waited for the guests' new starts.
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Reset a guest without PV drivers, which cannot be asked: it loses what it has not written to its disks.
    #[arg(short = 'F')]
    pub(crate) fallback: bool,
    /// Which guests.
    #[command(flatten)]
    pub(crate) which: Several,
}

/// Whether and for how long a command waits for its guests.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait until the guests have shut down, or with `reboot` run again, for at most this many seconds (default: 300). Given
    /// twice, wait until guests that have shut down are destroyed: one that is preserved is not.
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300", action = ArgAction::Append)]
    wait: Vec<u64>,
}

impl Wait {
    /// How long, in seconds; none for not at all.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.wait.last().copied()
    }

    /// Whether only a guest that does not exist any more has ended.
    pub(crate) const fn is_for_destruction(&self) -> bool {
        self.wait.len() > 1
    }
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
    fn options_of_create_are_those_of_xl() {
        let args = create("a.cfg -q -d -e -F -p").unwrap();
        assert!(args.quiet && args.foreground && args.paused);
        assert!(create("-n --dryrun a.cfg").is_none(), "once is enough");
        assert!(create("-n -F a.cfg").is_none());
    }

    #[test]
    fn shutdown_and_reboot_take_guests_or_all_of_them() {
        let parse = |words: &str| Cli::try_parse_from(words.split_whitespace()).map(|cli| cli.command);
        let Ok(Command::Shutdown(stop)) = parse("outrigger shutdown -w hello") else { panic!() };
        assert_eq!((stop.wait.limit(), stop.which.guests), (Some(300), vec!["hello".to_owned()]));
        let Ok(Command::Shutdown(stop)) = parse("outrigger shutdown -a -F -w=5") else { panic!() };
        assert!(stop.which.all && stop.fallback && stop.wait.limit() == Some(5));
        assert!(!stop.wait.is_for_destruction());
        let Ok(Command::Reboot(reboot)) = parse("outrigger reboot -a -w -F") else { panic!() };
        assert!(reboot.which.all && reboot.fallback && reboot.wait.limit() == Some(300));
        for twice in ["-ww", "-w -w", "--wait --wait=300", "-w=5 -w"] {
            let Ok(Command::Shutdown(stop)) = parse(&format!("outrigger shutdown {twice} g")) else {
                panic!("{twice}")
            };
            assert_eq!((stop.wait.limit(), stop.wait.is_for_destruction()), (Some(300), true), "{twice}");
            assert_eq!(stop.which.guests, ["g"], "{twice}");
        }
        for wrong in ["shutdown", "reboot", "shutdown -a hello"] {
            assert!(parse(&format!("outrigger {wrong}")).is_err(), "{wrong}");
        }
    }
}
