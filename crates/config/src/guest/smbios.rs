//! `smbios`: strings for hvmloader's SMBIOS tables.

use crate::diagnostic::Diagnostic;
use crate::document::Atom;
use crate::model::{SmbiosField, SmbiosString};
use crate::reader::{Reader, choices};

pub(super) fn strings(reader: &mut Reader<'_>) -> Vec<SmbiosString> {
    let mut strings: Vec<SmbiosString> = Vec::new();
    for atom in reader.strings("smbios").unwrap_or_default() {
        let string = string(atom).and_then(|string| fits(&strings, &string, atom).map(|()| string));
        match string {
            Ok(string) => {
                // As in xenstore, the last one counts.
                strings.retain(|other| other.field != string.field || string.field == SmbiosField::Oem);
                strings.push(string);
            }
            Err(problem) => reader.push(problem),
        }
    }
    strings
}

fn bad(message: impl Into<String>, atom: &Atom) -> Diagnostic {
    Diagnostic::error("config::bad-smbios", message).at(atom.span)
}

/// One string, `NAME=VALUE`.
fn string(atom: &Atom) -> Result<SmbiosString, Diagnostic> {
    let text = atom.text.as_str();
    let (name, value) = text.split_once('=').ok_or_else(|| bad(format!("`{text}` has no `=`"), atom))?;
    let Some((_, field)) = SmbiosField::NAMES.iter().find(|(known, _)| *known == name) else {
        let names = SmbiosField::NAMES.map(|(name, _)| name);
        return Err(bad(format!("`{name}` is no SMBIOS string"), atom).help(choices(name, &names)));
    };
    if value.is_empty() {
        return Err(bad(format!("`{name}` is empty"), atom).help("omit it for the usual string"));
    }
    if value.len() > SmbiosString::MAX_SIZE {
        let size = value.len();
        let limit = SmbiosString::MAX_SIZE;
        return Err(bad(format!("`{name}` has {size} bytes, at most {limit} fit"), atom));
    }
    Ok(SmbiosString { field: *field, value: value.to_owned() })
}

fn fits(before: &[SmbiosString], new: &SmbiosString, atom: &Atom) -> Result<(), Diagnostic> {
    let others = before.iter().filter(|other| other.field == SmbiosField::Oem).count();
    if new.field == SmbiosField::Oem && others >= SmbiosString::MAX_OEM {
        return Err(bad(format!("There can be {} strings `oem`", SmbiosString::MAX_OEM), atom));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    fn load(list: &str) -> crate::Loaded {
        crate::load_str("g", &format!("type='hvm'\nname='g'\nmemory=64\nsmbios=[{list}]\n"))
    }

    #[test]
    fn strings_are_kept_in_order_and_the_last_of_a_name_counts() {
        let loaded = load("'oem=a=b', 'bios_vendor=x', 'oem=c', 'bios_vendor=y z'");
        let strings = loaded.config.expect("a guest").firmware.smbios_strings;
        let shown: Vec<_> = strings.iter().map(|s| (s.field.name(), s.value.as_str())).collect();
        assert_eq!(shown, [("oem", "a=b"), ("oem", "c"), ("bios_vendor", "y z")]);
    }

    #[test]
    fn what_hvmloader_does_not_know_is_refused() {
        let long = format!("'oem={}'", "x".repeat(1025));
        let many = "'oem=x',".repeat(100);
        for (list, words) in [
            ("'product=x'", "no SMBIOS string"),
            ("'bios_vendors=x'", "no SMBIOS string"),
            ("'oem'", "has no `=`"),
            ("'oem='", "is empty"),
            (long.as_str(), "at most 1024"),
            (many.trim_end_matches(','), "99 strings"),
        ] {
            let loaded = load(list);
            assert!(loaded.config.is_none(), "{words}");
            assert!(loaded.render(false).contains(words), "{}", loaded.render(false));
        }
    }
}
