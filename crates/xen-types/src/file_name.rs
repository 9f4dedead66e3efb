//! Names of domains and consoles in names of files.

use std::fmt::Write as _;

/// The longest name of a file that [`file_name`] returns, in bytes. What programs add to it fits into the 255 bytes of
/// Linux's file systems.
pub const MAX_FILE_NAME: usize = 200;

/// Encodes the name of a domain or console, any text, as a part of a file's name. Every program uses this function, so
/// that one finds the files of another.
///
/// Two names never have the same encoding. Most names are their own encoding: letters, digits and printable ASCII stay
/// as they are. Percent signs, slashes, blanks and everything else are encoded as in URLs, byte for byte, and so are a
/// full stop at the beginning, and the one in front of digits at the end: whoever adds a full stop and a number to an
/// encoded name gets no other name's file. An encoding longer than [`MAX_FILE_NAME`] is cut, and ends in `%~` and a
/// hash of the name. Only then can two names meet, by a chance of one in 2¹²⁸; configurations have no such names.
#[must_use]
pub fn file_name(name: &str) -> String {
    let number = name.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix('.').map(str::len);
    let mut encoded = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        let is_plain = match c {
            '%' | '/' => false,
            '.' => at != 0 && number != Some(at),
            _ => c.is_ascii_graphic() || c.is_alphanumeric(),
        };
        if is_plain { encoded.push(c) } else { escape(c, &mut encoded) }
    }
    if encoded.is_empty() {
        // No other name's encoding, since a percent sign stands in front of digits everywhere else.
        return "%".to_owned();
    }
    if encoded.len() > MAX_FILE_NAME { shortened(&encoded, name) } else { encoded }
}

fn escape(c: char, into: &mut String) {
    let mut bytes = [0; 4];
    for byte in c.encode_utf8(&mut bytes).bytes() {
        // Writing into a string does not fail.
        let _ = write!(into, "%{byte:02X}");
    }
}

fn shortened(encoded: &str, name: &str) -> String {
    let tail = format!("%~{:032x}", hash(name.as_bytes()));
    let mut end = MAX_FILE_NAME - tail.len();
    while !encoded.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", encoded.get(..end).unwrap_or_default())
}

/// FNV-1a of 128 bits.
fn hash(bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn usual_names_stay_as_they_are_and_others_are_encoded() {
        for (name, encoded) in [
            ("guest-dm", "guest-dm"),
            ("web.example.org", "web.example.org"),
            ("Grün", "Grün"),
            ("a_b", "a_b"),
            ("a b", "a%20b"),
            ("a/b", "a%2Fb"),
            ("../x", "%2E.%2Fx"),
            ("100%", "100%25"),
            ("a.1", "a%2E1"),
            ("a.1-dm", "a.1-dm"),
            ("a.", "a%2E"),
            ("1.2.3", "1.2%2E3"),
            ("7", "7"),
            ("\u{202e}x", "%E2%80%AEx"),
            ("a\nb", "a%0Ab"),
            ("", "%"),
            (".", "%2E"),
        ] {
            assert_eq!(file_name(name), encoded, "{name:?}");
        }
    }

    #[test]
    fn no_two_names_have_the_same_files() {
        const PARTS: [&str; 12] = ["", "a", "b", ".", "1", "%", "20", " ", "/", "_", "ü", "log"];
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for (first, second, third, fourth) in PARTS.iter().flat_map(|first| {
            PARTS.iter().flat_map(move |second| {
                PARTS.iter().flat_map(move |third| PARTS.iter().map(move |last| (first, second, third, last)))
            })
        }) {
            let name = format!("{first}{second}{third}{fourth}");
            let encoded = file_name(&name);
            assert!(!encoded.contains('/') && !encoded.starts_with('.') && !encoded.is_empty());
            // As logs of either naming, and as sockets.
            for file in [
                format!("{encoded}.0.log"),
                format!("{encoded}.1.log"),
                format!("guest-{encoded}.log"),
                format!("guest-{encoded}.1.log"),
                format!("{encoded}.sock"),
            ] {
                let other = files.insert(file.clone(), name.clone());
                assert!(other.is_none_or(|other| other == name), "{name:?} has {file} of another");
            }
        }
    }

    #[test]
    fn long_names_are_cut_but_differ() {
        let long = |last: &str| file_name(&format!("{}{last}", "é ".repeat(100)));
        for name in [long("a"), long("b")] {
            assert!(name.len() <= MAX_FILE_NAME && name.len() > 150, "{name}");
        }
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a"), long("a"));
        assert_eq!(file_name(&"x".repeat(MAX_FILE_NAME)), "x".repeat(MAX_FILE_NAME));
    }
}
