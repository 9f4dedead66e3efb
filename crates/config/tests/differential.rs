//! Ours against Xen's own parser: the same keys and values, or a difference that `docs/xl-cfg-differences.md` lists.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use config::{Access, DiskKind, DiskSource, SourceFile, Value};
use proptest::prelude::*;
use xlutil_oracle::{Oracle, Value as Theirs};

fn ours(value: &Value) -> Theirs {
    match value {
        Value::Atom(atom) => Theirs::Atom(atom.text.as_str().as_bytes().to_vec()),
        Value::List(list) => Theirs::List(list.items.iter().map(ours).collect()),
    }
}

/// Keys of generated files; asked of both sides, so that neither can have one that the other lacks.
const POOL: &[&str] = &["a", "b0", "memory", "disk", "x.y_z"];

/// What is listed in the document: files that only one side accepts.
fn expected_difference(source: &SourceFile, errors: &[&str]) -> bool {
    let text = source.text();
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    // Accepted by us alone: a last comment without a newline, and lines that end in CR LF.
    let lenient = last_line.contains('#') || text.contains("\r\n");
    // Accepted by libxlutil alone: NUL bytes, numerical escapes, and deeper or larger files than ours may be.
    let strict = errors.iter().all(|id| {
        matches!(
            *id,
            "config::nul-byte" | "config::numeric-escape" | "config::too-deep" | "config::too-large"
        )
    });
    if errors.is_empty() { lenient } else { strict || only_the_last_byte_is_wrong(source) }
}

/// libxlutil overlooks a character that belongs nowhere when it is the file's last byte.
fn only_the_last_byte_is_wrong(source: &SourceFile) -> bool {
    let text = source.text();
    let Some(rest) = text.len().checked_sub(1).and_then(|end| text.get(..end)) else { return false };
    config::parse(&SourceFile::new("rest", rest)).1.iter().all(|d| !d.is_error())
}

fn compare(name: &str, text: &str) -> Result<(), String> {
    let source = SourceFile::new(name, text);
    let (document, diagnostics) = config::parse(&source);
    let (entries, more) = document.entries();
    let errors: Vec<&str> = diagnostics.iter().chain(&more).filter(|d| d.is_error()).map(|d| d.id).collect();
    let theirs = Oracle::new().parse(text.as_bytes());
    let Some(theirs) = theirs.filter(|_| errors.is_empty()) else {
        let they_accept = Oracle::new().parse(text.as_bytes()).is_some();
        if errors.is_empty() == they_accept || expected_difference(&source, &errors) {
            return Ok(());
        }
        return Err(format!("{name}: libxlutil accepts: {they_accept}; our errors: {errors:?}\n{text}"));
    };
    let keys = entries.iter().map(|entry| entry.key.as_str()).chain(POOL.iter().copied());
    for key in keys {
        let mine = entries.iter().find(|entry| entry.key == key).map(|entry| ours(&entry.value));
        if mine != theirs.get(key) {
            return Err(format!(
                "{name}: `{key}` is {mine:?} to us and {:?} to libxlutil\n{text}",
                theirs.get(key)
            ));
        }
    }
    Ok(())
}

#[test]
fn both_read_the_corpus_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        compare(&path.display().to_string(), &text).unwrap();
        files += 1;
    }
    assert!(files >= 10, "the corpus is gone");
}

#[test]
fn the_listed_differences_are_as_the_document_says() {
    let theirs = |text: &str| Oracle::new().parse(text.as_bytes());
    let accepted = |text: &str| {
        let (document, diagnostics) = config::parse(&SourceFile::new("x", text));
        diagnostics.iter().all(|d| !d.is_error()) && document.entries().1.iter().all(|d| !d.is_error())
    };
    for ours_alone in ["a = 1 # end", "a = 1\r\nb0 = 2\r\n"] {
        assert!(accepted(ours_alone) && theirs(ours_alone).is_none(), "{ours_alone:?}");
    }
    // The digits vanish.
    let octal = theirs("a = 'x\\101y'\n").and_then(|parsed| parsed.get("a"));
    assert_eq!(octal, Some(Theirs::Atom(b"xy".to_vec())));
    assert!(!accepted("a = 'x\\101y'\n"));
    assert!(theirs("a = 'x\\x41y'\n").is_none());
    assert!(theirs("a = 1\n'").is_some() && !accepted("a = 1\n'"));
    let deep = format!("a = {}{}\n", "[".repeat(40), "]".repeat(40));
    assert!(theirs(&deep).is_some() && !accepted(&deep));
}

#[test]
fn the_listed_differences_of_disks_and_rates_are_as_the_document_says() {
    // Taken for the target: the scanner that Xen ships does not know the words that its grammar lists.
    let disk = Oracle::new().disk(c"vdev=hda,trusted").map(|disk| disk.target);
    assert_eq!(disk, Some(Some("trusted".to_owned())));
    // Old toolstacks' mode for sharing without a check: xl does not accept it either.
    for spec in [c"/a,raw,hda,w!", c"/a,raw,hda,access=w!"] {
        assert_eq!(Oracle::new().disk(spec), None);
        assert!(config::load_disk("d", spec.to_str().unwrap()).device.is_none());
    }
    // Overlooked at the very end.
    assert!(Oracle::new().disk(c"/a,raw,hda,=").is_some());
    // Octal up to the first other digit, and then no unit.
    assert_eq!(Oracle::new().rate(c"0180b/s@1"), Some((1, 1_000_000)));
}

fn atom() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9][0-9a-fx]{0,4}",
        r"'([ -&(-\[\]-~äß#]|\\[abfnrtv'\x22\\]){0,6}'",
        r#""([ !#-\[\]-~é#]|\\[abfnrtv'"\\]){0,6}""#,
    ]
}

fn value() -> impl Strategy<Value = String> {
    atom().prop_recursive(3, 12, 4, |inner| {
        (prop::collection::vec(inner, 0..4), "[ \n\t]{0,2}", prop::bool::ANY).prop_map(
            |(items, gap, comma)| {
                let end = if comma && !items.is_empty() { "," } else { "" };
                format!("[{gap}{}{end}{gap}]", items.join(&format!("{gap},{gap}")))
            },
        )
    })
}

/// A file that is mostly right: assignments with whatever may stand between them.
fn file() -> impl Strategy<Value = String> {
    let key = prop::sample::select(POOL);
    let operator = prop::sample::select(&["=", " = ", "+=", "\t+= "][..]);
    let end = prop::sample::select(&["\n", ";", " # note ' [\n", "\n\n", " ; \n"][..]);
    let statement = (key, operator, value(), end)
        .prop_map(|(key, operator, value, end)| format!("{key}{operator}{value}{end}"));
    prop::collection::vec(statement, 0..8).prop_map(|statements| statements.concat())
}

/// A file with something put into it that may break it.
fn damaged_file() -> impl Strategy<Value = String> {
    let damage = prop::sample::select(
        &["'", "\"", "[", "]", ",", "=", "\n", "A", "é", "1", "a", "\\", " ", "#", "+"][..],
    );
    (file(), prop::collection::vec((any::<prop::sample::Index>(), damage), 1..4)).prop_map(
        |(mut text, damages)| {
            for (at, damage) in damages {
                let places: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
                text.insert_str(*at.get(&places), damage);
            }
            text
        },
    )
}

fn word() -> impl Strategy<Value = String> {
    let fixed = &[
        "",
        "/dev/vg/a",
        "a.img",
        "raw",
        "qcow2",
        "empty",
        "vhd",
        "hda",
        "xvdb",
        "hdc:cdrom",
        "sda:disk",
        "hdd:x",
        "w",
        "rw",
        "r",
        "ro",
        "w!",
        "x",
        "cdrom",
        "devtype=cdrom",
        "devtype=disk",
        "devtype=x",
        "format=raw",
        "format=",
        "format=qed",
        "vdev=hda",
        "vdev=xvda",
        "vdev=",
        "access=ro",
        "access=",
        "target=/a,b=c",
        "target=",
        "script=s",
        "backend=d1",
        "backendtype=phy",
        "backendtype=qdisk",
        "backendtype=x",
        "specification=xen",
        "direct-io-safe",
        "discard",
        "no-discard",
        "phy:/dev/a",
        "file:b",
        "raw:/a",
        "nbd:x",
        "foo:/x",
        "foo=bar",
        "f=b",
        "hdb:",
        "tap2:aio:/x",
        "cdromx",
        " hda",
    ][..];
    prop::sample::select(fixed).prop_map(str::to_owned)
}

fn disk_spec() -> impl Strategy<Value = String> {
    (prop::collection::vec((word(), prop::sample::select(&["", " ", "\t"][..])), 0..6), prop::bool::ANY)
        .prop_map(|(words, comma)| {
            let words: Vec<String> =
                words.into_iter().map(|(word, blank)| format!("{blank}{word}")).collect();
            words.join(",") + if comma { "," } else { "" }
        })
}

fn compare_disk(spec: &str) -> Result<(), String> {
    let text = format!("type='hvm'\nname='x'\nmemory=64\ndisk=[ \"{}\" ]\n", spec.replace('\\', "\\\\"));
    let loaded = config::load_str("disk.cfg", &text);
    let theirs = Oracle::new().disk(&CString::new(spec).expect("generated disks hold no NUL byte"));
    let problem =
        |what: &str| Err(format!("{spec:?}: {what}; libxlutil: {theirs:?}\n{}", loaded.render(false)));
    let disk = loaded.config.as_ref().and_then(|config| config.disks.first());
    match (disk, &theirs) {
        (None, None) => Ok(()),
        (Some(_), None) => problem("accepted by us alone"),
        (None, Some(disk)) => {
            // Listed: what libxl would refuse, or a dom0 without QEMU cannot serve.
            let unusable = !matches!(disk.format, 4 | 5)
                || disk.backend_type == 4
                || disk.target.as_deref().is_some_and(is_address)
                || !matches!(disk.specification, 0 | 1)
                || (disk.format == 5 && !disk.cdrom)
                || (!disk.writable
                    && !disk.cdrom
                    && disk.vdev.as_deref().is_some_and(|vdev| vdev.starts_with("hd")))
                || disk.target.as_deref().unwrap_or_default().is_empty()
                || disk
                    .vdev
                    .as_deref()
                    .is_none_or(|vdev| vdev.is_empty() || vdev.contains(':') || !is_vdev(vdev));
            if unusable { Ok(()) } else { problem("refused by us alone") }
        }
        (Some(mine), Some(disk)) => {
            let target = match &mine.source {
                DiskSource::Empty => None,
                DiskSource::Path(path) => Some(path.clone()),
                DiskSource::Script { target, .. } => Some(target.clone()),
            };
            let script = match &mine.source {
                DiskSource::Script { script, .. } => Some(script.clone()),
                _ => None,
            };
            let their_target = disk.target.clone().filter(|target| !target.is_empty() && disk.format != 5);
            let their_target = match their_target {
                Some(path) if script.is_none() && !path.starts_with('/') => Some(format!("/dev/{path}")),
                other => other,
            };
            let same = target == their_target
                && (target.is_none() || script == disk.script.clone().filter(|script| !script.is_empty()))
                && Some(mine.vdev.to_string()) == disk.vdev
                && (mine.access == Access::ReadWrite) == disk.writable
                && (mine.kind == DiskKind::CdRom) == disk.cdrom
                && mine.direct_io_safe == disk.direct_io_safe
                && mine.discard == disk.discard
                && mine.backend.clone().unwrap_or_default() == disk.backend.clone().unwrap_or_default();
            if same { Ok(()) } else { problem(&format!("not the same: {mine:?}")) }
        }
    }
}

/// An address that a QEMU in dom0 would open: listed.
fn is_address(target: &str) -> bool {
    target.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'))
}

fn is_vdev(text: &str) -> bool {
    ["hd", "sd", "xvd"].iter().any(|bus| text.strip_prefix(bus).is_some_and(|rest| rest.len() == 1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_read_generated_files_alike(text in file()) {
        if let Err(problem) = compare("generated", &text) {
            prop_assert!(false, "{problem}");
        }
    }

    #[test]
    fn both_refuse_the_same_damaged_files(text in damaged_file()) {
        if let Err(problem) = compare("damaged", &text) {
            prop_assert!(false, "{problem}");
        }
    }

    #[test]
    fn both_read_disks_alike(spec in disk_spec()) {
        if let Err(problem) = compare_disk(&spec) {
            prop_assert!(false, "{problem}");
        }
    }

    #[test]
    fn both_read_rates_alike(rate in "[1-9][0-9]{0,4}[GMK]?[Bb]/?s?(@[1-9][0-9]{0,3}[mu]?s?)?") {
        let text = format!("type='hvm'\nname='x'\nmemory=64\nvif=[ 'rate={rate}' ]\n");
        let loaded = config::load_str("rate.cfg", &text);
        let mine = loaded.config.and_then(|config| config.nics.first().and_then(|nic| nic.rate));
        let theirs = Oracle::new().rate(&CString::new(rate.as_str()).unwrap());
        // Listed: a limit that lets nothing pass is refused.
        let theirs = theirs.filter(|(bytes, _)| *bytes > 0);
        prop_assert_eq!(mine.map(|rate| (rate.bytes_per_interval, rate.interval_usecs)), theirs);
    }
}
