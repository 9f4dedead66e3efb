//! The example's configuration, `/examples/hello.cfg`, changed for a measurement.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::FOLDER;

/// The configuration's text.
#[derive(Debug, Clone)]
pub(super) struct Example(String);

impl Example {
    /// Reads it.
    pub(super) fn read() -> Result<Self> {
        Ok(Self(fs::read_to_string("/examples/hello.cfg").context("cannot read the example")?))
    }

    /// Sets a key, in the place of the line that it has.
    pub(super) fn set(mut self, key: &str, value: &str) -> Self {
        let line = format!("{key} = {value}");
        let is_its = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        let mut lines: Vec<&str> = self.0.lines().collect();
        match lines.iter().position(|line| is_its(line)) {
            Some(at) => lines[at] = &line,
            None => lines.push(&line),
        }
        self.0 = lines.join("\n") + "\n";
        self
    }

    /// Gives it a name, and disks of its own: no two guests may write one disk.
    pub(super) fn named(self, name: &str) -> Result<Self> {
        let folder = folder()?;
        for disk in ["disk", "data"] {
            let copy = folder.join(format!("{name}-{disk}.img"));
            fs::copy(format!("/examples/hello-{disk}.img"), &copy)
                .with_context(|| format!("cannot make {}", copy.display()))?;
        }
        let mut named = self.set("name", &format!("'{name}'"));
        named.0 = named.0.replace("/examples/hello-", &format!("{FOLDER}/{name}-"));
        Ok(named)
    }

    /// Writes it, and returns its path.
    pub(super) fn write(&self, name: &str) -> Result<PathBuf> {
        let path = folder()?.join(name);
        fs::write(&path, &self.0).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// The folder of the measurements' files.
pub(super) fn folder() -> Result<&'static Path> {
    fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
    Ok(Path::new(FOLDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_takes_the_place_of_the_line_it_had() {
        let example = Example("name = \"hello\"\nvga = \"none\"\nvnc = 0\n".to_owned());
        let changed = example.set("vga", "'stdvga'").set("videoram", "16");
        assert_eq!(changed.0, "name = \"hello\"\nvga = 'stdvga'\nvnc = 0\nvideoram = 16\n");
    }
}
