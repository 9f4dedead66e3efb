//! The corpus: what is made of each file, and what is said of it.

use std::fs;
use std::path::{Path, PathBuf};

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder can be listed").path()).collect();
    files.sort();
    files
}

#[test]
fn every_file_of_the_corpus_reads_as_recorded() {
    for path in corpus() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let loaded = config::load_str(&name, &text);
        assert_eq!(loaded.config.is_none(), loaded.errors() > 0, "{name}");
        let mut report = loaded.render(false);
        if let Some(guest) = &loaded.config {
            report.push_str("\n---\n");
            report.push_str(&serde_json::to_string_pretty(guest).unwrap());
        }
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, report.trim_start());
        });
    }
}

#[test]
fn a_guest_survives_being_stored() {
    for path in corpus() {
        let Some(guest) = config::load(&path).config else { continue };
        let stored = serde_json::to_string(&guest).unwrap();
        assert_eq!(
            serde_json::from_str::<config::GuestConfig>(&stored).unwrap(),
            guest,
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_guest_that_was_written_is_read_back() {
    let mut written = 0;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realworld");
    let more = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in corpus().into_iter().chain(more) {
        let Some(guest) = config::load(&path).config else { continue };
        let text = config::write(&guest);
        let again = config::load_str("written.cfg", &text);
        assert_eq!(
            again.config.as_ref(),
            Some(&guest),
            "{}:\n{text}\n{}",
            path.display(),
            again.render(false)
        );
        // Nothing in it is old or without effect.
        let ids: Vec<&str> = again.diagnostics.iter().map(|d| d.id).collect();
        assert!(
            ids.iter().all(|id| !matches!(*id, "config::no-effect" | "config::deprecated")),
            "{text}\n{ids:?}"
        );
        written += 1;
    }
    assert!(written > 15, "the corpus is gone");
}

/// The examples that Xen's packages ship. The variable names their folder; Debian's is tried without it.
#[test]
fn examples_that_xen_ships_are_understood() {
    let folder =
        std::env::var_os("XEN_EXAMPLES_DIR").map_or_else(|| PathBuf::from("/etc/xen"), PathBuf::from);
    let Ok(entries) = fs::read_dir(&folder) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("xlexample") {
            continue;
        }
        let loaded = config::load(&path);
        let (_, syntax) = config::parse(&loaded.source);
        assert!(syntax.is_empty(), "{name}: {}", loaded.render(false));
        if name.ends_with("hvm") {
            assert!(loaded.config.is_some(), "{name}: {}", loaded.render(false));
        } else {
            let refusals = loaded.diagnostics.iter().filter(|d| d.is_error());
            assert!(
                refusals.map(|d| d.id).any(|id| id == "config::not-hvm"),
                "{name}: {}",
                loaded.render(false)
            );
        }
    }
}
