//! The grammar of `save`, `restore` and `dump-core`.

use std::path::PathBuf;

use clap::Args;

use super::refused::{RestoreXl, SaveXl};

/// Arguments of `save`.
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// Let the guest go on after it was saved.
    #[arg(short, long)]
    pub(crate) checkpoint: bool,
    /// Keep the guest, paused, after it was saved; also with -c.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Print one JSON object per step, on standard error if the file is `-`.
    #[arg(long)]
    pub(crate) json: bool,
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The file, a named pipe, or `-` for standard output. Only an empty file or an earlier save of the same guest is replaced.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What only xl has.
    #[command(flatten)]
    pub(super) xl: SaveXl,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Attach to the guest's first serial port as soon as the guest runs.
    #[arg(short = 'c', long)]
    pub(crate) console: bool,
    /// Leave the guest paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Restore it although its disks were written to after it was saved.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Give the guest this name instead of its saved one.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Print one JSON object per step; the last one contains the guest.
    #[arg(long, conflicts_with = "console")]
    pub(crate) json: bool,
    /// Wait until the guest has ended, across its reboots; its events go to standard error.
    #[arg(short = 'F', long, conflicts_with = "console")]
    pub(crate) foreground: bool,
    /// The file, which may be one of `xl save`, a named pipe, or `-` for standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What only xl has.
    #[command(flatten)]
    pub(super) xl: RestoreXl,
}

/// Arguments of `dump-core`.
#[derive(Debug, Args)]
pub(crate) struct DumpCore {
    /// Let the guest run meanwhile, as xl does; the file is then not of one moment.
    #[arg(long)]
    pub(crate) live: bool,
    /// Print one JSON object per step.
    #[arg(long)]
    pub(crate) json: bool,
    /// Name, UUID or domid.
    pub(crate) guest: String,
    /// The file; one that exists and is not empty is refused.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use crate::cli::{Cli, Command};

    fn parse(words: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(words.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn save_takes_a_guest_and_a_file_which_may_be_a_dash() {
        let Command::Save(save) = parse("outrigger save -c -p --json hello -").unwrap() else { panic!() };
        assert!(save.checkpoint && save.paused && save.json);
        assert_eq!((save.guest.as_str(), save.file.as_path()), ("hello", Path::new("-")));
        let Command::Save(save) = parse("outrigger save hello x.save").unwrap() else { panic!() };
        assert!(!save.checkpoint && !save.paused && !save.json);
        for wrong in ["save hello", "save hello x y z", "save -f hello x"] {
            assert!(parse(&format!("outrigger {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dump_takes_a_guest_and_a_file() {
        let Command::DumpCore(dump) = parse("outrigger dump-core --live hello x.core").unwrap() else {
            panic!()
        };
        assert!(dump.live && !dump.json && dump.file == Path::new("x.core"));
        for wrong in ["dump-core hello", "dump-core hello x y", "dump-core -L hello x"] {
            assert!(parse(&format!("outrigger {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn restore_takes_a_file_and_shows_a_console_or_json() {
        let Command::Restore(restore) = parse("outrigger restore -c -p -f --name x -").unwrap() else {
            panic!()
        };
        assert!(restore.console && restore.paused && restore.force && !restore.json);
        assert_eq!((restore.name.as_deref(), restore.file.as_path()), (Some("x"), Path::new("-")));
        let error = parse("outrigger restore --json -c x.save").unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
        for wrong in ["restore", "restore x y z", "restore --name x", "restore -F -c x"] {
            assert!(parse(&format!("outrigger {wrong}")).is_err(), "{wrong}");
        }
    }
}
