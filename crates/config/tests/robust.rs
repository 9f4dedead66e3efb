//! Whatever a file holds, there is no panic, and every span lies within the text.

use config::{Diagnostic, SourceFile, Value};
use proptest::prelude::*;

fn check_span(source: &SourceFile, span: config::Span) {
    assert!(span.start <= span.end && span.end <= source.text().len(), "{span:?} of {}", source.text().len());
    assert!(source.text().is_char_boundary(span.start), "{span:?}");
}

fn check_value(source: &SourceFile, value: &Value) {
    check_span(source, value.span());
    if let Value::List(list) = value {
        for item in &list.items {
            check_value(source, item);
        }
    }
}

fn check(source: &SourceFile) {
    let (document, _) = config::parse(source);
    for setting in &document.settings {
        check_span(source, setting.key_span);
        check_value(source, &setting.value);
    }
    let loaded = config::load_str("generated", source.text());
    for diagnostic in &loaded.diagnostics {
        for span in diagnostic.span.iter().chain(diagnostic.labels.iter().map(|label| &label.span)) {
            check_span(source, *span);
        }
    }
    assert!(
        loaded.render(false).chars().all(|c| c == '\n' || !c.is_control()),
        "a control character was shown"
    );
}

fn plausible() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = config::keys::KEYS.iter().map(|key| key.name).collect();
    let value = prop_oneof!["[0-9x]{1,6}", "'[^'\\\\\n]{0,12}'", "\\[ ('[ -&(-\\[\\]-~é]{0,40}', ){0,3}\\]"];
    let line = (prop::sample::select(keys), "\\+?=", value)
        .prop_map(|(key, op, value)| format!("{key} {op} {value}\n"));
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_without_a_panic(text in any::<String>()) {
        check(&SourceFile::new("generated", text));
    }

    #[test]
    fn any_settings_are_read_without_a_panic(text in plausible()) {
        check(&SourceFile::new("generated", text));
    }

    #[test]
    fn any_guest_that_was_written_is_read_back(text in plausible()) {
        let text = format!("type = 'hvm'\nname = 'g'\n{text}");
        if let Some(guest) = config::load_str("generated", &text).config {
            let written = config::write(&guest);
            prop_assert_eq!(config::load_str("written", &written).config, Some(guest), "{}", written);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&SourceFile::from_bytes("generated", &bytes));
    }

    #[test]
    fn any_disk_and_interface_are_read_without_a_panic(disk in "[ -!#-\\[\\]-~é]{0,60}", vif in "[ -!#-\\[\\]-~é]{0,60}") {
        check(&SourceFile::new("generated", format!("disk=[\"{disk}\"]\nvif=[\"{vif}\"]\n")));
    }
}

fn ids(diagnostics: &[Diagnostic]) -> Vec<&'static str> {
    diagnostics.iter().map(|d| d.id).collect()
}

#[test]
fn deep_nesting_ends_in_a_diagnostic() {
    let text = format!("disk = {}\n", "[".repeat(100_000));
    let (_, diagnostics) = config::parse(&SourceFile::new("deep", text));
    assert_eq!(ids(&diagnostics), ["config::too-deep"]);
}

#[test]
fn too_many_values_end_in_a_diagnostic() {
    let text = format!("disk = [ {} ]\n", "1,".repeat(config::MAX_VALUES + 10));
    let (_, diagnostics) = config::parse(&SourceFile::new("wide", text));
    assert_eq!(ids(&diagnostics), ["config::too-large"]);
}

#[test]
fn bytes_that_are_not_text_are_refused_in_strings_and_welcome_in_comments() {
    let source = SourceFile::from_bytes("latin1", b"# gr\xfcn\nname = 'gr\xfcn'\n");
    let (_, diagnostics) = config::parse(&source);
    assert_eq!(ids(&diagnostics), ["config::not-utf8"]);
    assert_eq!(diagnostics[0].position(&source), Some(config::Position { line: 2, column: 8 }));
    let (_, diagnostics) = config::parse(&SourceFile::new("nul", "name = 'a\0b'\n"));
    assert_eq!(ids(&diagnostics), ["config::nul-byte"]);
}

#[test]
fn a_file_that_is_too_large_or_missing_is_a_diagnostic() {
    let loaded = config::load_str("large", &" ".repeat(2 << 20));
    assert_eq!(ids(&loaded.diagnostics), ["config::too-large"]);
    let loaded = config::load(std::path::Path::new("/nonexistent/guest.cfg"));
    assert_eq!(ids(&loaded.diagnostics), ["config::unreadable"]);
    assert!(loaded.render(false).contains("/nonexistent/guest.cfg"));
}

#[test]
fn a_spot_within_a_string_with_escapes_is_found() {
    let text = "type='hvm'\nname='x'\ndisk=[ '/a\\\\b,raw,hde,w' ]\n";
    let loaded = config::load_str("escapes", text);
    let span = loaded.diagnostics[0].span.unwrap();
    assert_eq!(loaded.source.slice(span), "hde");
}

#[test]
fn color_is_there_only_when_asked_for() {
    let loaded = config::load_str("c", "type='hvm'\nname='x'\nmemory=64\nfoo=1\n");
    assert!(loaded.render(true).contains('\u{1b}'));
    assert!(!loaded.render(false).contains('\u{1b}'));
}
