use super::*;

const ROOT: Peer = Peer { uid: 0, gid: 0 };

fn check(role: &Role, command: &str, arguments: &str) -> Result<(), Denied> {
    role.check(command, Some(arguments).filter(|text| !text.is_empty()))
}

#[test]
fn each_role_has_what_the_one_before_it_has() {
    let (observer, operator, admin) = (Role::observer(), Role::operator(), Role::admin());
    for (command, roles) in [
        ("query-status", [true, true, true]),
        ("query-migrate", [true, true, true]),
        ("system_reset", [false, true, true]),
        ("inject-nmi", [false, true, true]),
        ("trace-event-set-state", [false, false, true]),
        ("quit", [false, false, false]),
        ("stop", [false, false, false]),
        ("device_add", [false, false, false]),
        ("netdev_del", [false, false, false]),
        ("object-add", [false, false, false]),
        ("object_add", [false, false, false]),
        ("blockdev-change-medium", [false, false, false]),
        ("migrate", [false, false, false]),
        ("xen-save-devices-state", [false, false, false]),
        ("xen-set-global-dirty-log", [false, false, false]),
        ("human-monitor-command", [false, false, false]),
        ("getfd", [false, false, false]),
        ("add-fd", [false, false, false]),
        ("dumpdtb", [false, false, false]),
        ("qom-list-get", [false, false, true]),
        ("query-something-new", [false, false, false]),
        ("QUERY-status", [false, false, false]),
        ("query-status ", [false, false, false]),
        ("", [false, false, false]),
    ] {
        for (role, allowed) in [&observer, &operator, &admin].into_iter().zip(roles) {
            assert_eq!(check(role, command, "").is_ok(), allowed, "{} {command}", role.name());
        }
        assert!(check(&admin.clone().with_toolstack(), command, "").is_ok(), "{command}");
    }
}

#[test]
fn arguments_are_held_against_their_patterns() {
    let operator = Role::operator();
    assert!(check(&operator, "screendump", r#"{"filename": "/dev/fdset/3", "format": "png"}"#).is_ok());
    for arguments in [
        r#"{"filename": "/etc/passwd"}"#,
        r#"{"filename": "/tmp/../etc/passwd"}"#,
        r#"{"filename": "/tmp/a", "other": 1}"#,
        r#"{"filename": {"a": 1}}"#,
    ] {
        assert!(
            matches!(check(&operator, "screendump", arguments), Err(Denied::Argument { .. })),
            "{arguments}"
        );
    }
}

#[test]
fn screendump_of_every_role_stays_in_the_stubdomains_files() {
    for role in [Role::operator(), Role::admin(), Role::admin().with_toolstack()] {
        assert!(check(&role, "screendump", r#"{"filename": "/tmp/a"}"#).is_ok(), "{}", role.name());
        for path in ["/dev/xvda", "/tmp/../dev/xvda", "/run/qmp", "relative"] {
            let arguments = format!(r#"{{"filename": "{path}"}}"#);
            assert!(check(&role, "screendump", &arguments).is_err(), "{} {path}", role.name());
        }
    }
}

#[test]
fn operators_get_properties_of_the_machine_alone() {
    let operator = Role::operator();
    let get = |path: &str| format!(r#"{{"path": "{path}", "property": "type"}}"#);
    for path in ["/machine", "/machine/unattached/device[0]"] {
        assert!(check(&operator, "qom-get", &get(path)).is_ok(), "{path}");
    }
    // A partial path finds objects anywhere.
    for path in ["/objects/secret0", "secret0", "/", "", "/machine/../objects/secret0", "/machines"] {
        assert!(check(&operator, "qom-get", &get(path)).is_err(), "{path}");
        assert!(check(&Role::admin(), "qom-get", &get(path)).is_ok(), "{path}");
    }
}

#[test]
fn command_is_in_one_list() {
    let classes = [Class::Observer, Class::Operator, Class::Admin, Class::Toolstack];
    let mut all: Vec<_> = classes.iter().flat_map(|class| class.commands()).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    for (class, name) in
        classes.iter().flat_map(|class| class.commands().iter().map(move |name| (class, name)))
    {
        assert_eq!(Class::of(name), Some(*class), "{name}");
    }
}

#[test]
fn role_of_a_file_gets_no_unknown_command() {
    let policy = Policy::parse("[role.all]\ncommands = ['*', 'query-new']\n[peers]\n0 = ['all']").unwrap();
    let role = policy.first_role(ROOT).unwrap();
    assert!(check(&role, "query-status", "").is_ok());
    assert!(matches!(check(&role, "query-new", ""), Err(Denied::Unknown { .. })));
    assert!(matches!(check(&role, "quit", ""), Err(Denied::Toolstack { .. })));
    assert!(check(&policy.take(ROOT, "all", true).unwrap(), "query-new", "").is_ok());
}

#[test]
fn file_adds_roles_and_peers() {
    let policy = Policy::parse(
        r#"
        [role.watcher]
        inherits = "observer"
        deny = ["query-qmp-schema"]
        events = ["STOP", "RESUME"]
        answers.query-status = ["status"]

        [role.clicker]
        inherits = "watcher"
        commands = ["send-key"]
        arguments.send-key = { keys = ["*"] }

        [peers]
        1000 = ["watcher", "clicker"]
        "@7" = ["observer"]
        "#,
    )
    .unwrap();
    let peer = Peer { uid: 1000, gid: 1000 };
    let watcher = policy.first_role(peer).unwrap();
    assert_eq!(watcher.name(), "watcher");
    assert!(check(&watcher, "query-status", "").is_ok() && check(&watcher, "query-qmp-schema", "").is_err());
    assert!(watcher.allows_event("STOP") && !watcher.allows_event("RESET"));
    let answer = watcher.filter("query-status", r#"{"status": "running", "running": true}"#);
    assert_eq!(answer.as_deref(), Some(r#"{"status":"running"}"#));
    let clicker = policy.take(peer, "clicker", false).unwrap();
    assert!(check(&clicker, "send-key", r#"{"keys": [1]}"#).is_ok());
    assert!(check(&clicker, "send-key", r#"{"keys": [1], "hold-time": 5}"#).is_err());
    assert!(policy.take(peer, "admin", false).is_none() && policy.take(peer, "clicker", true).is_none());
    assert!(policy.first_role(Peer { uid: 5, gid: 5 }).is_none());
    assert_eq!(policy.first_role(Peer { uid: 5, gid: 7 }).unwrap().name(), "observer");
    assert_eq!(policy.first_role(ROOT).unwrap().name(), "operator");
    assert!(policy.take(ROOT, "observer", true).unwrap().check("quit", None).is_ok());
}

#[test]
fn wrong_file_is_refused_with_its_reason() {
    for (text, part) in [
        ("[role.a]\ninherits = 'b'", "inherits from b"),
        ("[role.a]\ninherits = 'b'\n[role.b]\ninherits = 'a'", "inherits"),
        ("[role.admin]", "built in"),
        ("[peers]\nroot = ['admin']", "neither a user ID"),
        ("[peers]\n5 = ['king']", "king"),
        ("[role.a]\nanswer = 1", "cannot be read"),
    ] {
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}
