//! `outrigger config`, and the check before a create.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use config::Loaded;
use xen_types::Release;

use crate::cli::Config;
use crate::report::BadConfig;

/// Does what was asked of configuration files.
pub(crate) fn run(command: &Config) -> Result<ExitCode> {
    match command {
        Config::Check { json, files } => check(files, *json),
    }
}

fn check(files: &[PathBuf], json: bool) -> Result<ExitCode> {
    let mut good = true;
    for file in files {
        let loaded = judge(config::load(file));
        show(&loaded);
        match &loaded.config {
            Some(config) if json => println!("{}", serde_json::to_string_pretty(config)?),
            Some(config) => println!("{}: guest {} is fine", file.display(), config.name),
            None => good = false,
        }
    }
    if good { Ok(ExitCode::SUCCESS) } else { Err(BadConfig.into()) }
}

/// Checks a file before the daemon is asked, so that the person sees all errors in colour, and gives its text.
///
/// # Errors
/// [`BadConfig`] when it is not usable.
pub(crate) fn check_for_create(path: &Path) -> Result<String> {
    // What was checked is what is sent: the file is read once.
    let text = read(path)?;
    let loaded = judge(config::load_str(&path.display().to_string(), &text));
    show(&loaded);
    if loaded.config.is_some() { Ok(text) } else { Err(BadConfig.into()) }
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that a longer file is noticed and not cut.
    File::open(path)
        .and_then(|file| file.take(config::MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .with_context(|| format!("Cannot read the configuration file {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("The file {} is not UTF-8 text", path.display()))
}

/// Adds what there is to say of the file on the Xen that runs here, if one does.
fn judge(mut loaded: Loaded) -> Loaded {
    if let Some(running) = Release::running() {
        loaded.warn_of_newer(running);
    }
    loaded
}

fn show(loaded: &Loaded) {
    let text = loaded.render(std::io::stderr().is_terminal());
    if !text.is_empty() {
        eprintln!("{text}\n");
    }
}
