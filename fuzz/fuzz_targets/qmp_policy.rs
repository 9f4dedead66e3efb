//! A policy file, and commands in any spelling: no role gets a command that is the toolstack's alone or unknown, and the
//! values of arguments are held against their patterns.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qmp::policy::{Class, Peer, Policy, Role, is_for_toolstack};
use serde_json::Value;

/// Every command, so that a number in the input chooses one.
fn command(choice: u8, text: &str) -> String {
    let classes = [Class::Observer, Class::Operator, Class::Admin, Class::Toolstack];
    let all = classes.iter().flat_map(|class| class.commands());
    let known = all.clone().nth(usize::from(choice) % all.count()).expect("it is less than their number");
    match text.bytes().next() {
        // As it is, in another case, with something before or behind it, or the text alone.
        Some(b'=') => (*known).to_owned(),
        Some(b'^') => known.to_uppercase(),
        Some(b'_') => known.replace('-', "_"),
        Some(b'<') => format!("{}{known}", &text[1..]),
        Some(b'>') => format!("{known}{}", &text[1..]),
        _ => text.to_owned(),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (spelling, arguments, file) = (part(), part(), part());
    let command = command(*choice, spelling);
    let arguments = Some(arguments).filter(|text| !text.is_empty());
    let mut roles = vec![Role::observer(), Role::operator(), Role::admin()];
    if let Ok(policy) = Policy::parse(file) {
        roles.extend(policy.names().filter_map(|name| policy.role(name)).map(|role| Role::clone(&role)));
        let peer = Peer { uid: u32::from(*choice), gid: 7 };
        let first = policy.first_role(peer);
        assert!(peer.uid == 0 || first.is_none() || policy.has_others());
        // Nobody but root gets what is the toolstack's.
        assert!(peer.uid == 0 || policy.names().all(|name| policy.take(peer, name, true).is_none()));
    }
    for role in roles {
        let passes = role.check(&command, arguments).is_ok();
        assert!(!passes || !is_for_toolstack(&command), "{} may {command:?}", role.name());
        assert!(!passes || Class::of(&command).is_some());
        if passes && command == "screendump" && ["operator", "admin"].contains(&role.name()) {
            check_file(arguments);
        }
        let answer = arguments.unwrap_or("null");
        if let Some(filtered) = role.filter(&command, answer) {
            serde_json::from_str::<Value>(&filtered).expect("a filtered answer is JSON");
        }
        let _ = role.allows_event(spelling);
    }
});

/// The file of a screendump is in one of the stubdomain's folders for it.
fn check_file(arguments: Option<&str>) {
    let Some(value) = arguments.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return };
    if let Some(name) = value["filename"].as_str() {
        assert!(name.starts_with("/tmp/") || name.starts_with("/dev/fdset/"), "{name:?}");
        assert!(!name.contains(".."), "{name:?}");
    }
}
