//! What compiling has given, on record, so that every machine can see that the same inputs give the same bytes.

use super::{Compiled, Program};
use crate::Result;
use crate::files::{sha256_bytes, sha256_file};
use crate::root::Root;

/// Lines of a program, the key of its inputs ([`Compiled::key`]) and the sum of its files ([`Compiled::sum`]).
const KNOWN: &str = include_str!("sums.txt");

impl Compiled {
    /// A SHA-256 over the paths and contents of all its files.
    ///
    /// # Errors
    /// That they cannot be read.
    pub fn sum(&self) -> Result<String> {
        let root = Root::new(vec![self.layer.clone()]);
        let mut lines = String::new();
        for path in root.walk("/")? {
            lines.push_str(&format!("{} {path}\n", sha256_file(&root.find(&path)?.host)?));
        }
        Ok(sha256_bytes(lines.as_bytes()))
    }
}

impl Program {
    /// The sum that the inputs with this key have given, where that is on record.
    pub fn known_sum(self, key: &str) -> Option<&'static str> {
        find(KNOWN, self.folder(), key)
    }

    /// The line that puts a sum on record.
    pub fn record(self, key: &str, sum: &str) -> String {
        format!("{} {key} {sum}", self.folder())
    }
}

fn find<'a>(known: &'a str, program: &str, key: &str) -> Option<&'a str> {
    known.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next()? == program && words.next()? == key).then(|| words.next())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Layer;

    #[test]
    fn sum_is_of_names_and_contents() {
        let folder = tempfile::tempdir().unwrap();
        let compiled =
            Compiled { layer: Layer { package: None, folder: folder.path().to_owned() }, key: String::new() };
        std::fs::create_dir(folder.path().join("boot")).unwrap();
        std::fs::write(folder.path().join("boot/vmlinuz"), "one").unwrap();
        let first = compiled.sum().unwrap();
        assert_eq!(compiled.sum().unwrap(), first);
        std::fs::write(folder.path().join("boot/vmlinuz"), "two").unwrap();
        let second = compiled.sum().unwrap();
        std::fs::rename(folder.path().join("boot/vmlinuz"), folder.path().join("boot/vmlinux")).unwrap();
        assert!(first != second && second != compiled.sum().unwrap());
    }

    #[test]
    fn records_are_found_and_well_formed() {
        let known = "# x\nkernel a 1\nqemu a 2\nqemu b 3\n";
        assert_eq!(find(known, "qemu", "a"), Some("2"));
        assert_eq!(find(known, "kernel", "b"), None);
        for line in KNOWN.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(
                matches!(words[..], ["kernel" | "qemu" | "emulator", key, sum] if key.len() == 64 && sum.len() == 64),
                "{line}"
            );
        }
    }
}
