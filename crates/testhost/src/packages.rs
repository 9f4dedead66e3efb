//! Remembers what apt said about packages, because asking it again takes three seconds.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use image::packages::{Package, Progress, Store, Take};
use image::root::{Layer, Root};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Observer;
use crate::build::hex;

/// What changes whenever apt's answer may change: its lists, its configuration, its sources.
const APT: [&str; 4] = ["/var/lib/apt/lists", "/etc/apt", "/etc/apt/sources.list.d", "/etc/apt/preferences.d"];

/// An earlier answer of apt's.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// When what it depends on was changed last.
    apt: SystemTime,
    packages: Vec<Package>,
}

/// The packages as one tree: resolved anew only when apt's lists have changed, fetched and unpacked as needed.
pub(crate) fn root(store: &Store, wanted: &[&str], observer: &mut dyn Observer) -> image::Result<Root> {
    let mut progress = |step: Progress<'_>| match step {
        Progress::Resolving => {}
        Progress::Fetching { packages, bytes } => {
            observer.progress(&format!("Fetching {packages} Debian packages ({} MB)", bytes / 1_000_000));
        }
        Progress::Unpacking { package } => observer.progress(&format!("Unpacking {}", package.name)),
    };
    let apt = apt_changed();
    let path = store.folder().join(format!("resolved-{}.json", hex(&Sha256::digest(wanted.join(" ")))));
    if let Some(packages) = remembered(&path, apt) {
        let debs = store.fetch(&packages, &mut progress)?;
        let mut layers = Vec::with_capacity(packages.len());
        for (package, deb) in packages.into_iter().zip(debs) {
            let folder = store.unpack(&package, &deb, &mut progress)?;
            layers.push(Layer { package: Some(package), folder });
        }
        return Ok(Root::new(layers));
    }
    let root = store.root(wanted, Take::Libraries, &mut progress)?;
    let answer = Answer { apt, packages: root.packages().cloned().collect() };
    // Without the memory the next build asks apt again, nothing worse.
    if let Ok(text) = serde_json::to_vec(&answer) {
        let _ = fs::write(&path, text);
    }
    Ok(root)
}

/// When apt's lists, configuration or sources were changed last.
pub(crate) fn apt_changed() -> SystemTime {
    newest(&APT)
}

fn remembered(path: &Path, apt: SystemTime) -> Option<Vec<Package>> {
    let answer: Answer = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (answer.apt == apt && !answer.packages.is_empty()).then_some(answer.packages)
}

/// The time of the last change of these folders and of the files in them.
fn newest(folders: &[&str]) -> SystemTime {
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    folders
        .iter()
        .flat_map(|folder| {
            let inner = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            inner.chain([Path::new(folder).to_owned()]).collect::<Vec<_>>()
        })
        .filter_map(|path| changed(&path))
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_forgotten_when_apt_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolved.json");
        let package = Package {
            name: "a".into(),
            version: "1".into(),
            architecture: "all".into(),
            section: "libs".into(),
            size: 1,
            sha256: "00".into(),
        };
        let before = newest(&[folder.path().to_str().unwrap()]);
        let answer = Answer { apt: before, packages: vec![package.clone()] };
        fs::write(&path, serde_json::to_vec(&answer).unwrap()).unwrap();
        assert_eq!(remembered(&path, before), Some(vec![package]));
        assert_eq!(remembered(&path, before + std::time::Duration::from_secs(1)), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(remembered(&path, before), None);
    }
}
