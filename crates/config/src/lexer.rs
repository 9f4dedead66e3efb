//! The tokens of the format, as flex makes them of a file in `tools/libs/util/libxlu_cfg_l.l`, with spans.

use crate::bare::{self, Place};
use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, Span};
use crate::text::Text;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Ident,
    Number,
    Text(Text),
    Comma,
    Open,
    Close,
    Assign,
    Append,
    Semicolon,
    Newline,
    /// Something that is no word of the language; a diagnostic was made.
    Bad,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) span: Span,
}

/// Cuts a file into tokens; the last one is [`TokenKind::End`].
pub(crate) fn tokens(source: &SourceFile, diagnostics: &mut Vec<Diagnostic>) -> Vec<Token> {
    let mut lexer = Lexer {
        source,
        text: source.text(),
        at: 0,
        diagnostics,
        returns: 0,
        place: Place::Key,
        depth: 0,
        key: "",
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next() {
        tokens.push(token);
    }
    let end = lexer.text.len();
    lexer.report_returns();
    tokens.push(Token { kind: TokenKind::End, span: Span::new(end, end) });
    tokens
}

struct Lexer<'a> {
    source: &'a SourceFile,
    text: &'a str,
    /// What belongs at this place, for what is said of something else.
    place: Place,
    /// How many lists are open.
    depth: usize,
    /// The key of this line.
    key: &'a str,
    at: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
    /// Carriage returns before newlines.
    returns: usize,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = self.text.get(self.at..)?;
            let start = self.at;
            let c = rest.chars().next()?;
            match c {
                ' ' | '\t' => {
                    self.at += 1;
                    continue;
                }
                '\r' if rest.starts_with("\r\n") => {
                    self.returns += 1;
                    self.at += 1;
                    continue;
                }
                '#' => {
                    // Up to, not including, the newline. A last comment without one is welcome.
                    self.at += rest.find('\n').unwrap_or(rest.len());
                    continue;
                }
                _ => {}
            }
            let kind = self.token(c, rest);
            self.move_on(&kind, start);
            return Some(Token { kind, span: Span::new(start, self.at) });
        }
    }

    /// Takes note of what may follow a token.
    fn move_on(&mut self, kind: &TokenKind, start: usize) {
        match kind {
            TokenKind::Open => self.depth += 1,
            TokenKind::Close => self.depth = self.depth.saturating_sub(1),
            // A line that sets a key is outside every list, also below one that was not closed.
            TokenKind::Assign | TokenKind::Append => self.depth = 0,
            _ => {}
        }
        self.place = match kind {
            TokenKind::Assign | TokenKind::Append | TokenKind::Open | TokenKind::Comma => Place::Value,
            TokenKind::Newline if self.depth > 0 => self.place,
            TokenKind::Newline | TokenKind::Semicolon => Place::Key,
            TokenKind::Ident if self.place == Place::Key => {
                self.key = self.text.get(start..self.at).unwrap_or_default();
                Place::AfterKey
            }
            _ => Place::End,
        };
    }

    fn token(&mut self, c: char, rest: &'a str) -> TokenKind {
        let single = match c {
            '\n' => Some(TokenKind::Newline),
            ',' => Some(TokenKind::Comma),
            '[' => Some(TokenKind::Open),
            ']' => Some(TokenKind::Close),
            '=' => Some(TokenKind::Assign),
            ';' => Some(TokenKind::Semicolon),
            _ => None,
        };
        if let Some(kind) = single {
            self.at += 1;
            return kind;
        }
        if rest.starts_with("+=") {
            self.at += 2;
            return TokenKind::Append;
        }
        let (kind, length) = match c {
            'a'..='z' => {
                (TokenKind::Ident, run(rest, |b| matches!(b, b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z')))
            }
            '0'..='9' => (TokenKind::Number, run(rest, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'x'))),
            '\'' | '"' => return self.string(c, rest),
            _ => return self.bad(rest),
        };
        if self.place == Place::Value && bare::goes_on(rest, length) {
            return self.bad(rest);
        }
        self.at += length;
        kind
    }

    fn string(&mut self, quote: char, rest: &str) -> TokenKind {
        let start = self.at;
        let mut text = Text::default();
        let mut chars = rest.char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            match c {
                '\n' => break,
                '\\' => match chars.next() {
                    None | Some((_, '\n')) => break,
                    Some((_, escaped)) => self.escape(escaped, start + offset, &mut text),
                },
                c if c == quote => {
                    self.at = start + offset + 1;
                    self.check_content(Span::new(start, self.at));
                    return TokenKind::Text(text);
                }
                c => text.push(c, start + offset),
            }
        }
        self.at = start + rest.find('\n').unwrap_or(rest.len());
        self.diagnostics.push(
            Diagnostic::error("config::unterminated-string", format!("The string has no closing {quote}"))
                .at_with(Span::new(start, start + 1), "opened here")
                .help("a string ends on the line on which it begins"),
        );
        TokenKind::Bad
    }

    fn escape(&mut self, escaped: char, at: usize, text: &mut Text) {
        let decoded = match escaped {
            '"' | '\'' | '\\' => escaped,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            _ => {
                self.diagnostics.push(bad_escape(escaped, at));
                return;
            }
        };
        text.push_escape(decoded, at);
    }

    fn check_content(&mut self, span: Span) {
        if let Some(at) = self.source.slice(span).find('\0') {
            let at = span.start + at;
            self.diagnostics.push(
                Diagnostic::error("config::nul-byte", "A string cannot contain a NUL byte")
                    .at(Span::new(at, at + 1)),
            );
        }
        if self.source.has_invalid(span) {
            self.diagnostics.push(
                Diagnostic::error("config::not-utf8", "The string is not UTF-8")
                    .at(span)
                    .help("save the file as UTF-8"),
            );
        }
    }

    /// What is no word of the language: one mistake that is reported once.
    fn bad(&mut self, rest: &'a str) -> TokenKind {
        let bare::Mistake { diagnostic, length } = bare::mistake(self.place, self.key, rest, self.at);
        self.at += length;
        self.diagnostics.push(diagnostic);
        TokenKind::Bad
    }

    fn report_returns(&mut self) {
        if self.returns > 0 {
            self.diagnostics.push(
                Diagnostic::warning("config::carriage-return", "The file has lines that end in CR LF")
                    .help("xl cannot read such files; convert the file with `dos2unix`"),
            );
        }
    }
}

fn run(text: &str, accept: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|b| accept(*b)).count()
}

fn bad_escape(escaped: char, at: usize) -> Diagnostic {
    let span = Span::new(at, at + 1 + escaped.len_utf8());
    if escaped.is_ascii_digit() || escaped == 'x' {
        return Diagnostic::error("config::numeric-escape", "Numerical escapes do not work in xl's format")
            .at(span)
            .help("write the character itself; Xen's own parser drops or refuses these escapes");
    }
    Diagnostic::error("config::bad-escape", format!("`\\{}` is not an escape", escaped.escape_debug()))
        .at(span)
        .help("for a backslash itself, write `\\\\`")
}
