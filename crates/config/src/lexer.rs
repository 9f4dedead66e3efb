//! The tokens of the format, as flex makes them of a file in `tools/libs/util/libxlu_cfg_l.l`, with spans.

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
    let mut lexer = Lexer { source, text: source.text(), at: 0, diagnostics, returns: 0 };
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
    at: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
    /// Carriage returns before newlines.
    returns: usize,
}

impl Lexer<'_> {
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
            return Some(Token { kind, span: Span::new(start, self.at) });
        }
    }

    fn token(&mut self, c: char, rest: &str) -> TokenKind {
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
        match c {
            'a'..='z' => {
                self.at += run(rest, |b| matches!(b, b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z'));
                TokenKind::Ident
            }
            '0'..='9' => {
                self.at += run(rest, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'x'));
                TokenKind::Number
            }
            '\'' | '"' => self.string(c, rest),
            _ => self.bad(rest),
        }
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

    fn bad(&mut self, rest: &str) -> TokenKind {
        let start = self.at;
        // Everything up to a blank is one mistake, as in libxlu, so that one mistake is reported once.
        let length = rest.find([' ', '\t', '\n']).unwrap_or(rest.len()).max(1);
        self.at += length;
        let span = Span::new(start, self.at);
        let first = rest.chars().next().unwrap_or_default();
        let mut diagnostic = Diagnostic::error(
            "config::unexpected-character",
            format!("`{}` is not expected here", show(first)),
        )
        .at(Span::new(start, start + first.len_utf8()));
        if first.is_ascii_uppercase() {
            diagnostic = diagnostic.help(format!(
                "keys are written in lower case, strings in quotes: `{}` or `\"{}\"`",
                self.source.slice(span).to_ascii_lowercase(),
                self.source.slice(span)
            ));
        } else if matches!(first, '(' | ')' | '.' | ':' | '+' | '-') {
            diagnostic = diagnostic
                .help("values are numbers, strings in quotes and lists in brackets; Python is not supported");
        }
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

fn show(c: char) -> String {
    c.escape_debug().collect()
}

fn bad_escape(escaped: char, at: usize) -> Diagnostic {
    let span = Span::new(at, at + 1 + escaped.len_utf8());
    if escaped.is_ascii_digit() || escaped == 'x' {
        return Diagnostic::error("config::numeric-escape", "Numerical escapes do not work in xl's format")
            .at(span)
            .help("write the character itself; Xen's own parser drops or refuses these escapes");
    }
    Diagnostic::error("config::bad-escape", format!("`\\{}` is not an escape", show(escaped)))
        .at(span)
        .help("for a backslash itself, write `\\\\`")
}
