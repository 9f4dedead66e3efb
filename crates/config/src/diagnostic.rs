use std::borrow::Cow;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::source::{Position, SourceFile, Span};

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something to know; nothing is wrong.
    Note,
    /// The file is usable, but may not mean what its author thinks.
    Warning,
    /// No guest is made of this file.
    Error,
}

/// A place in the file that a diagnostic points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What there is to say of it.
    pub text: String,
}

/// One thing to say about a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is, for programs and for documentation: stable, like `config::unknown-key`.
    pub id: &'static str,
    /// One sentence without a full stop.
    pub message: String,
    /// Where it is; absent when it is about the file as a whole.
    pub span: Option<Span>,
    /// Places that belong to it, with a few words each; one of them may be its own.
    pub labels: Vec<Label>,
    /// What the user can do.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// Makes an error.
    #[must_use]
    pub fn error(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, id, message)
    }

    /// Makes a warning.
    #[must_use]
    pub fn warning(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, message)
    }

    /// Makes a note.
    #[must_use]
    pub fn note(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, id, message)
    }

    fn new(severity: Severity, id: &'static str, message: impl Into<String>) -> Self {
        Self { severity, id, message: message.into(), span: None, labels: Vec::new(), help: Vec::new() }
    }

    /// Says where it is.
    #[must_use]
    pub fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// Says where it is, with a few words for that place.
    #[must_use]
    pub fn at_with(self, span: Span, label: impl Into<String>) -> Self {
        self.at(span).also(span, label)
    }

    /// Points at another place.
    #[must_use]
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// Says what the person can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Whether it is an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The line and column that it points at.
    #[must_use]
    pub fn position(&self, source: &SourceFile) -> Option<Position> {
        self.span.map(|span| source.position(span.start))
    }

    /// The diagnostic on one line: `file:line:column: error[id]: message`.
    #[must_use]
    pub fn one_line(&self, source: &SourceFile) -> String {
        let place = self.position(source).map_or_else(String::new, |p| format!("{}:{}:", p.line, p.column));
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        format!("{}:{place} {severity}[{}]: {}", source.name(), self.id, self.message)
    }

    /// The diagnostic for a person: the message, the lines of the file that it points at, and help; the text has
    /// no newline at its end. With `color`, ANSI escapes are in it.
    #[must_use]
    pub fn render(&self, source: &SourceFile, color: bool) -> String {
        let level = match self.severity {
            Severity::Note => Level::NOTE,
            Severity::Warning => Level::WARNING,
            Severity::Error => Level::ERROR,
        };
        let title = level.primary_title(printable(&self.message)).id(self.id);
        let text = printable_source(source.text());
        let mut group = match self.span {
            Some(span) => title.element(self.snippet(source, &text, span)),
            None => Group::with_title(title).element(annotate_snippets::Origin::path(source.name())),
        };
        for help in &self.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.decor_style(DecorStyle::Ascii).render(&[group])
    }

    fn snippet<'a>(
        &'a self,
        source: &'a SourceFile,
        text: &'a str,
        span: Span,
    ) -> Snippet<'a, Annotation<'a>> {
        let (own, others): (Vec<_>, Vec<_>) = self.labels.iter().partition(|label| label.span == span);
        let own = own.first().map(|label| label.text.as_str());
        let primary = AnnotationKind::Primary.span(clamp(source, span).range()).label(own);
        let others = others.into_iter().map(|label| {
            AnnotationKind::Context.span(clamp(source, label.span).range()).label(label.text.as_str())
        });
        Snippet::source(text).path(source.name()).annotation(primary).annotations(others)
    }
}

/// A span that lies within the text, on character boundaries, whatever was asked for.
fn clamp(source: &SourceFile, span: Span) -> Span {
    let text = source.text();
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    Span::new(floor(span.start), floor(span.end))
}

/// A message without the control characters that a value quoted in it may hold: a terminal must not obey a file.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The source without the control characters that the renderer would let through, each replaced by one of the same
/// length, so that spans fit.
fn printable_source(text: &str) -> Cow<'_, str> {
    let is_c1 = |c: char| ('\u{80}'..='\u{9f}').contains(&c);
    if text.contains(is_c1) { Cow::Owned(text.replace(is_c1, "\u{b7}")) } else { Cow::Borrowed(text) }
}
