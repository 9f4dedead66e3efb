use serde::Serialize;

use crate::diagnostic::{Diagnostic, Severity};
use crate::source::SourceFile;

/// A diagnostic for programs. Its fields are an interface: more may come, none will go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kind: stable, like `config::unknown-key`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence without a full stop.
    pub message: String,
    /// The file, as it was named.
    pub file: String,
    /// The line from 1; absent when it is about the file as a whole.
    pub line: Option<usize>,
    /// The column from 1, in characters.
    pub column: Option<usize>,
    /// What to do.
    pub help: Vec<String>,
    /// Other places that belong to it.
    pub related: Vec<Related>,
}

/// A place that belongs to a diagnostic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    /// A few words about it.
    pub message: String,
    /// The line from 1.
    pub line: usize,
    /// The column from 1, in characters.
    pub column: usize,
}

impl Diagnostic {
    /// The diagnostic for programs.
    #[must_use]
    pub fn report(&self, source: &SourceFile) -> Report {
        let position = self.position(source);
        let labels = self.labels.iter().filter(|label| Some(label.span) != self.span);
        let related = labels.map(|label| {
            let position = source.position(label.span.start);
            Related { message: label.text.clone(), line: position.line, column: position.column }
        });
        Report {
            id: self.id,
            severity: self.severity,
            message: self.message.clone(),
            file: source.name().to_owned(),
            line: position.map(|position| position.line),
            column: position.map(|position| position.column),
            help: self.help.clone(),
            related: related.collect(),
        }
    }
}
