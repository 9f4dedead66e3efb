//! The interactive prompt, with history and completion.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Editor, ExternalPrinter as _, Helper};

use super::schema::Schema;

/// Lines that are remembered.
const HISTORY: usize = 1000;

struct Completion(Schema);

impl Completer for Completion {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.0.complete(line.get(..position).unwrap_or_default()))
    }
}

impl Hinter for Completion {
    type Hint = String;
}
impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

/// A prompt on the terminal.
pub(crate) struct Prompt {
    editor: Editor<Completion, FileHistory>,
    text: String,
    history: Option<PathBuf>,
}

impl Prompt {
    /// A prompt for a guest.
    pub(crate) fn new(guest: &str, schema: Schema) -> Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY)
            .and_then(|builder| builder.history_ignore_dups(true))
            .context("Cannot set up the prompt")?
            .completion_type(CompletionType::List)
            .auto_add_history(true)
            .build();
        let mut editor = Editor::with_config(config).context("Cannot set up the prompt")?;
        editor.set_helper(Some(Completion(schema)));
        let history = history_file();
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        Ok(Self { editor, text: format!("qmp {guest}> "), history })
    }

    /// What prints lines above the line that is being typed, from any thread.
    pub(crate) fn printer(&mut self) -> Result<impl FnMut(&str) + Send + 'static> {
        let mut printer = self.editor.create_external_printer().context("Cannot set up the prompt")?;
        // A terminal that has gone needs no lines.
        Ok(move |line: &str| drop(printer.print(format!("{line}\n"))))
    }

    /// The next line; nothing at the end of the input.
    pub(crate) fn next(&mut self) -> Result<Option<String>> {
        match self.editor.readline(&self.text) {
            Ok(line) => Ok(Some(line)),
            // Ctrl-C gives up the line, as in a shell.
            Err(ReadlineError::Interrupted) => Ok(Some(String::new())),
            Err(ReadlineError::Eof) => Ok(None),
            Err(error) => Err(error).context("Cannot read from the terminal"),
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(file) = &self.history {
            if let Some(folder) = file.parent() {
                let _ = std::fs::create_dir_all(folder);
            }
            // A history that cannot be kept is no reason to complain at the end.
            let _ = self.editor.save_history(file);
        }
    }
}

/// `$XDG_STATE_HOME/outrigger/qmp_history`, by default below `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("outrigger/qmp_history"))
}
