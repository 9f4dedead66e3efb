//! Channels: PV consoles with a name.

use std::collections::HashMap;

use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{Channel, ChannelConnection, GuestConfig};
use crate::reader::{Reader, choices};
use crate::source::Span;

const KEYS: &[&str] = &["backend", "connection", "name", "path"];
const NAME_MAX: usize = 64;

pub(super) fn channels(reader: &mut Reader<'_>) -> Vec<Channel> {
    let Some(atoms) = reader.strings("channel") else { return Vec::new() };
    if let Some(extra) = atoms.get(GuestConfig::MAX_CHANNELS) {
        let message = format!("A guest has at most {} channels", GuestConfig::MAX_CHANNELS);
        reader.push(
            Diagnostic::error("config::too-many", message)
                .at(extra.span)
                .help("Linux numbers PV consoles beside the first 1 to 9"),
        );
    }
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut channels = Vec::new();
    for atom in atoms.into_iter().take(GuestConfig::MAX_CHANNELS) {
        match channel(atom) {
            Ok(channel) => {
                if let Some(other) = seen.insert(channel.name.clone(), atom.span) {
                    let message = format!("Two channels have the name {}", channel.name);
                    reader.push(
                        Diagnostic::error("config::conflict", message)
                            .at(atom.span)
                            .also(other, "the other one"),
                    );
                }
                channels.push(channel);
            }
            Err(problem) => reader.push(problem),
        }
    }
    channels
}

/// The parameters of one channel, with their spans.
#[derive(Default)]
struct Words<'a> {
    name: Option<(&'a str, Span)>,
    connection: Option<(&'a str, Span)>,
    path: Option<(&'a str, Span)>,
}

fn channel(atom: &Atom) -> Result<Channel, Diagnostic> {
    let mut words = Words::default();
    let text = atom.text.as_str();
    let mut start = 0;
    for part in text.split(',') {
        let word = part.trim_start_matches(' ');
        let at = start + (part.len() - word.len());
        start += part.len() + 1;
        if word.is_empty() {
            continue;
        }
        let span = atom.text.span(at..at + word.len());
        let Some((key, value)) = word.split_once('=') else {
            return Err(
                bad(span, format!("`{word}` is not a parameter of a channel")).help(choices(word, KEYS))
            );
        };
        let value = value.trim_end_matches(' ');
        let place = match key {
            "name" => &mut words.name,
            "connection" => &mut words.connection,
            "path" => &mut words.path,
            "backend" if matches!(value, "0" | "Domain-0") => continue,
            "backend" => {
                return Err(Diagnostic::error("config::refused", "`backend` is not supported")
                    .at(span)
                    .help("consoles are served in dom0"));
            }
            _ => {
                return Err(
                    bad(span, format!("`{key}` is not a parameter of a channel")).help(choices(key, KEYS))
                );
            }
        };
        *place = Some((value, span));
    }
    let (name, span) = words.name.ok_or_else(|| bad(atom.span, "The channel has no `name`".to_owned()))?;
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with('.')
        && !name.bytes().all(|b| b.is_ascii_digit());
    if !good {
        let message = format!("\"{}\" is not a channel's name", name.escape_debug());
        return Err(bad(span, message).help(format!(
            "a name has 1 to {NAME_MAX} letters, digits, `.`, `_` and `-`, does not begin with a dot, and is not \
             a number"
        )));
    }
    Ok(Channel { name: name.to_owned(), connection: connection(atom, &words)? })
}

fn connection(atom: &Atom, words: &Words<'_>) -> Result<ChannelConnection, Diagnostic> {
    let Some((connection, span)) = words.connection else {
        return Err(
            bad(atom.span, "The channel has no `connection`".to_owned()).help("it is `pty` or `socket`")
        );
    };
    match (connection, words.path) {
        ("pty", None) => Ok(ChannelConnection::Pty),
        ("pty", Some((_, path))) => {
            Err(bad(path, "A channel to a pseudo-terminal has no `path`".to_owned())
                .help("`path` is a socket's"))
        }
        ("socket", Some((path, _))) if path.starts_with('/') && !path.contains('\0') => {
            Ok(ChannelConnection::Socket(path.to_owned()))
        }
        ("socket", Some((path, span))) => {
            Err(bad(span, format!("\"{}\" is not an absolute path", path.escape_debug())))
        }
        ("socket", None) => Err(bad(span, "A channel to a socket needs a `path`".to_owned())),
        _ => Err(bad(span, format!("`connection` has no value \"{}\"", connection.escape_debug()))
            .help("it is `pty` or `socket`")),
    }
}

fn bad(span: Span, message: String) -> Diagnostic {
    Diagnostic::error("config::bad-channel", message).at(span)
}
