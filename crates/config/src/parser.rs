//! The grammar: what bison makes of the tokens in `tools/libs/util/libxlu_cfg_y.y`, with spans and without ever
//! giving up before the end of the file.

use crate::diagnostic::Diagnostic;
use crate::document::{Atom, Document, List, Operator, Setting, Value};
use crate::lexer::{Token, TokenKind, tokens};
use crate::source::{SourceFile, Span};
use crate::text::Text;
use crate::units;

/// How deep lists may be nested. xl.cfg(5) needs three.
pub const MAX_DEPTH: usize = 32;
/// How many values a file may hold.
pub const MAX_VALUES: usize = 65_536;
/// How many diagnostics the parser makes of one file before it stops making more.
const MAX_DIAGNOSTICS: usize = 100;

/// Parses a file. Whatever could be understood is in the document, whatever could not is in the diagnostics.
#[must_use]
pub fn parse(source: &SourceFile) -> (Document, Vec<Diagnostic>) {
    let (document, diagnostics, _) = grammar(source);
    (document, diagnostics)
}

/// Parses a guest's file. One that is a Python program has one mistake, from which all others follow.
pub(crate) fn parse_guest(source: &SourceFile) -> (Document, Vec<Diagnostic>) {
    match grammar(source) {
        (_, _, Some(span)) => (Document::default(), vec![python(span)]),
        (document, diagnostics, None) => (document, diagnostics),
    }
}

/// What is in a file, and its first statement of Python.
fn grammar(source: &SourceFile) -> (Document, Vec<Diagnostic>, Option<Span>) {
    let mut diagnostics = Vec::new();
    let tokens = tokens(source, &mut diagnostics);
    let mut parser =
        Parser { source, tokens: &tokens, at: 0, depth: 0, values: 0, diagnostics, key: None, python: None };
    let document = parser.file();
    let (mut diagnostics, python) = (parser.diagnostics, parser.python);
    diagnostics.sort_by_key(|d| (d.span.is_none(), d.span));
    diagnostics.truncate(MAX_DIAGNOSTICS);
    (document, diagnostics, python)
}

struct Parser<'a> {
    source: &'a SourceFile,
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    values: usize,
    diagnostics: Vec<Diagnostic>,
    /// The key of the statement.
    key: Option<Span>,
    /// The first statement of Python.
    python: Option<Span>,
}

/// What begins a statement of Python and no setting.
const PYTHON: &[&str] = &[
    "import", "from", "def", "class", "if", "elif", "else", "for", "while", "try", "except", "with",
    "return", "pass", "print", "raise",
];

/// The diagnostic of a file that is a program.
pub(crate) const PYTHON_ID: &str = "config::python";

fn python(span: Span) -> Diagnostic {
    Diagnostic::error(PYTHON_ID, "The file is a Python program, which only the old `xm` could run")
        .at(span)
        .help(
            "keep the lines `key = value` whose values are numbers, strings in quotes and lists of these, and write \
             what the program computes as such values; remove everything else",
        )
}

/// The statement is broken; a diagnostic was made.
struct Broken;

impl Parser<'_> {
    fn peek(&self) -> &TokenKind {
        self.tokens.get(self.at).map_or(&TokenKind::End, |token| &token.kind)
    }

    fn span(&self) -> Span {
        self.tokens.get(self.at).map(|token| token.span).unwrap_or_default()
    }

    fn advance(&mut self) {
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    fn file(&mut self) -> Document {
        let mut document = Document::default();
        loop {
            match self.peek() {
                TokenKind::End => return document,
                TokenKind::Newline | TokenKind::Semicolon => self.advance(),
                _ => match self.assignment() {
                    Ok(setting) => document.settings.push(setting),
                    Err(Broken) => self.recover(),
                },
            }
            if self.values > MAX_VALUES {
                let diagnostic = Diagnostic::error(
                    "config::too-large",
                    format!("The file contains more than {MAX_VALUES} values; the rest was not read"),
                );
                self.diagnostics.push(diagnostic.at(self.span()));
                return document;
            }
        }
    }

    /// Skips the rest of a broken line.
    fn recover(&mut self) {
        while !matches!(self.peek(), TokenKind::End | TokenKind::Newline) {
            self.advance();
        }
    }

    fn assignment(&mut self) -> Result<Setting, Broken> {
        let key_span = self.span();
        if *self.peek() != TokenKind::Ident {
            return Err(self.unexpected("a key"));
        }
        self.key = Some(key_span);
        self.advance();
        let operator = match self.peek() {
            TokenKind::Assign => Operator::Assign,
            TokenKind::Append => Operator::Append,
            _ => {
                if PYTHON.contains(&self.source.slice(key_span)) {
                    self.python.get_or_insert(key_span);
                }
                return Err(self.unexpected("`=` or `+=`"));
            }
        };
        self.advance();
        let value = self.value()?;
        if !matches!(self.peek(), TokenKind::Newline | TokenKind::Semicolon | TokenKind::End) {
            return Err(self.unexpected("the end of the line"));
        }
        Ok(Setting { key: self.source.slice(key_span).to_owned(), key_span, operator, value })
    }

    fn value(&mut self) -> Result<Value, Broken> {
        self.values += 1;
        let span = self.span();
        match self.peek() {
            TokenKind::Open => self.list(),
            TokenKind::Number => {
                let text = Text::verbatim(self.source.slice(span), span.start);
                self.advance();
                Ok(Value::Atom(Atom { text, span, quoted: false }))
            }
            TokenKind::Text(text) => {
                let text = text.clone();
                self.advance();
                Ok(Value::Atom(Atom { text, span, quoted: true }))
            }
            _ => Err(self.unexpected("a value")),
        }
    }

    fn list(&mut self) -> Result<Value, Broken> {
        let open = self.span();
        if self.depth == MAX_DEPTH {
            let diagnostic = Diagnostic::error(
                "config::too-deep",
                format!("Lists are nested deeper than {MAX_DEPTH} levels"),
            );
            self.diagnostics.push(diagnostic.at(open));
            return Err(Broken);
        }
        self.depth += 1;
        self.advance();
        let result = self.items(open);
        self.depth -= 1;
        result
    }

    fn items(&mut self, open: Span) -> Result<Value, Broken> {
        let mut items = Vec::new();
        self.newlines();
        loop {
            if *self.peek() == TokenKind::Close {
                let span = open.to(self.span());
                self.advance();
                return Ok(Value::List(List { items, span }));
            }
            if self.values > MAX_VALUES {
                return Err(Broken);
            }
            items.push(self.value().inspect_err(|_| self.unclosed(open))?);
            self.newlines();
            match self.peek() {
                TokenKind::Comma => {
                    self.advance();
                    self.newlines();
                }
                TokenKind::Close => {}
                _ => {
                    let broken = self.unexpected("`,` or `]`");
                    self.unclosed(open);
                    return Err(broken);
                }
            }
        }
    }

    fn newlines(&mut self) {
        while *self.peek() == TokenKind::Newline {
            self.advance();
        }
    }

    /// Adds to the last diagnostic where the list began, when the two are not on the same line.
    fn unclosed(&mut self, open: Span) {
        let line = self.source.position(open.start).line;
        if let Some(last) = self.diagnostics.last_mut()
            && last.labels.is_empty()
            && last.span.is_some_and(|span| self.source.position(span.start).line != line)
        {
            last.labels.push(crate::diagnostic::Label { span: open, text: "the list began here".to_owned() });
        }
    }

    fn unexpected(&mut self, wanted: &str) -> Broken {
        let span = self.span();
        let found = match self.peek() {
            // The lexer has said what is wrong with it.
            TokenKind::Bad => return Broken,
            TokenKind::End => "the end of the file".to_owned(),
            TokenKind::Newline => "the end of the line".to_owned(),
            TokenKind::Text(_) => "a string".to_owned(),
            _ => format!("`{}`", self.source.slice(span)),
        };
        let mut diagnostic = Diagnostic::error(
            "config::syntax",
            format!("{wanted} was expected, not {found}", wanted = upper(wanted)),
        )
        .at(span);
        if *self.peek() == TokenKind::Ident && wanted == "a value" {
            let word = self.source.slice(span);
            diagnostic = diagnostic.help(match word {
                "true" | "yes" | "on" => "write `1` for yes".to_owned(),
                "false" | "no" | "off" => "write `0` for no".to_owned(),
                "none" | "null" => "remove the line to get the default".to_owned(),
                _ if self.key.is_some_and(|key| units::is_number(self.source.slice(key))) => {
                    units::NUMBER_HELP.to_owned()
                }
                _ => format!("write a string in quotes: `\"{word}\"`"),
            });
        }
        self.diagnostics.push(diagnostic);
        Broken
    }
}

fn upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
