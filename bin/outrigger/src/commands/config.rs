//! `outrigger config`, and the check before a create.

mod image_format;
mod preview;

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use config::{GuestConfig, Loaded, Report};
use serde::Serialize;
use xen_types::Release;

use crate::cli::Config;
use crate::closed_pipe;
use crate::report::BadConfig;

/// Does what was asked of configuration files.
pub(crate) fn run(command: &Config) -> Result<ExitCode> {
    match command {
        Config::Check { json, image, files } => check(files, image, *json),
        Config::Convert { output, force, file } => convert(file, output.as_deref(), *force),
    }
}

/// What `config check --json` prints.
#[derive(Serialize)]
struct Document {
    /// Whether all of them are usable.
    usable: bool,
    files: Vec<CheckedFile>,
}

/// One file of it.
#[derive(Serialize)]
struct CheckedFile {
    file: String,
    usable: bool,
    diagnostics: Vec<Report>,
    /// The effective configuration; absent when there is an error.
    config: Option<GuestConfig>,
}

fn check(files: &[PathBuf], image: &Path, json: bool) -> Result<ExitCode> {
    let mut document = Document { usable: true, files: Vec::new() };
    for file in files {
        let mut loaded = load(file);
        preview::add(&mut loaded, image);
        let usable = loaded.config.is_some();
        document.usable &= usable;
        if !json {
            show(&loaded);
        }
        match &loaded.config {
            Some(config) if !json => {
                output(&format!("{}: guest {} is fine\n", loaded.source.name(), config.name))?;
            }
            _ => {}
        }
        let diagnostics = loaded.diagnostics.iter().map(|d| d.report(&loaded.source)).collect();
        let file = loaded.source.name().to_owned();
        document.files.push(CheckedFile { file, usable, diagnostics, config: loaded.config });
    }
    if json {
        output(&format!("{}\n", serde_json::to_string_pretty(&document)?))?;
    }
    if document.usable { Ok(ExitCode::SUCCESS) } else { Err(BadConfig.into()) }
}

fn convert(file: &Path, output: Option<&Path>, force: bool) -> Result<ExitCode> {
    let loaded = load(file);
    show(&loaded);
    let text = config::write(loaded.config.as_ref().ok_or(BadConfig)?);
    match output {
        Some(output) => {
            save(output, &text, force)
                .with_context(|| format!("Cannot write the file {}", output.display()))?;
        }
        None => self::output(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that is complete or as it was before.
fn save(output: &Path, text: &str, force: bool) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The permissions of an ordinary new file, which the umask limits, and not those of a temporary one.
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    let persisted = if force { file.persist(output) } else { file.persist_noclobber(output) };
    match persisted.map_err(|error| error.error) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("It exists; use --force to replace it")
        }
        Err(error) => Err(error.into()),
    }
}

/// What a guest is to be created from.
pub(crate) struct Checked {
    /// The file's text, with the lines that follow it.
    pub(crate) text: String,
    /// What that means.
    pub(crate) config: GuestConfig,
}

/// Checks a file and the lines that follow it before the daemon is asked, so that the person sees all errors in colour.
///
/// # Errors
/// [`BadConfig`] when they are not usable.
pub(crate) fn check_for_create(path: &Path, settings: &[&str]) -> Result<Checked> {
    // What was checked is what is sent: the file is read once.
    let mut text = read(path)?;
    for setting in settings {
        // A file may end without a newline.
        text.push('\n');
        text.push_str(setting);
    }
    let loaded = judge(config::load_text(&name(path), &text, folder(path).as_deref()));
    show(&loaded);
    loaded.config.map(|config| Checked { text, config }).ok_or_else(|| BadConfig.into())
}

/// A file that cannot be read is a diagnostic, too, so that others are checked nevertheless.
fn load(path: &Path) -> Loaded {
    if !is_stdin(path) {
        return judge(config::load(path));
    }
    let mut bytes = Vec::new();
    let loaded = match io::stdin().lock().take(config::MAX_FILE_SIZE + 1).read_to_end(&mut bytes) {
        Ok(_) => config::load_bytes(STDIN, &bytes),
        Err(error) => config::unreadable(STDIN, &error),
    };
    judge(loaded)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What diagnostics call standard input.
const STDIN: &str = "<stdin>";

/// What diagnostics call a file.
fn name(path: &Path) -> String {
    if is_stdin(path) { STDIN.to_owned() } else { path.display().to_string() }
}

/// The directory that the daemon takes relative paths to start from; standard input has none.
fn folder(path: &Path) -> Option<PathBuf> {
    if is_stdin(path) {
        return None;
    }
    std::path::absolute(path).ok()?.parent().map(Path::to_owned)
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let source: Result<Box<dyn Read>, io::Error> = if is_stdin(path) {
        Ok(Box::new(io::stdin().lock()))
    } else {
        File::open(path).map(|file| Box::new(file) as Box<dyn Read>)
    };
    // One byte more than is allowed, so that a longer file is noticed and not cut.
    source
        .and_then(|source| source.take(config::MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .with_context(|| format!("Cannot read the configuration file {}", name(path)))?;
    String::from_utf8(bytes).with_context(|| format!("The file {} is not UTF-8 text", name(path)))
}

/// Adds what there is to say of the file on the Xen that runs here, if one does.
fn judge(mut loaded: Loaded) -> Loaded {
    if let Some(running) = Release::running() {
        loaded.warn_of_newer(running);
    }
    loaded
}

fn output(text: &str) -> Result<()> {
    closed_pipe::print(text).context("Cannot write to standard output")
}

fn show(loaded: &Loaded) {
    let text = loaded.render(io::stderr().is_terminal());
    if !text.is_empty() {
        // Nobody can be told that standard error is gone.
        let _ = writeln!(io::stderr(), "{text}\n");
    }
}
