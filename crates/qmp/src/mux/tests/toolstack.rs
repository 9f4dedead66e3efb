//! What the toolstack itself asks.

use super::*;
use crate::commands::XenSetGlobalDirtyLog;

#[test]
fn toolstack_goes_first_and_keeps_its_deadlines() {
    let mut world = World::new(MuxConfig::default());
    world.mux.ask(Token(1), Request::new("stop"), world.now + Duration::from_millis(30), world.now);
    world.pass(40);
    assert!(
        world.done.iter().any(|done| done.starts_with("answer 1 QEMU cannot execute stop")),
        "{:?}",
        world.done
    );
    world.done.clear();
    world.mux.disconnected("test", world.now);
    world.connect();
    world.mux.ask(Token(2), Request::new("stop"), world.now + Duration::from_millis(30), world.now);
    world.look();
    world.pass(40);
    assert!(
        world.done.iter().any(|done| done.starts_with("answer 2 QEMU did not answer")),
        "{:?}",
        world.done
    );
    // The late answer is no strike.
    world.answer();
    assert_eq!(world.mux.counts().strikes, 0);
    world.mux.ask(Token(3), Request::new("stop"), world.now + Duration::from_secs(1), world.now);
    world.look();
    let (id, _) = world.asked.pop_front().unwrap();
    world.say(&format!(
        "{{\"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"a\\u001b[2Jb\"}}, \"id\": {id}}}"
    ));
    assert!(world.done.iter().any(|done| done.contains("DeviceNotFound") && done.contains("a [2Jb")));
}

#[test]
fn toolstack_asks_what_no_client_may() {
    let mut world = World::up();
    let client = world.client();
    world.ask(client, r#"{"execute": "xen-set-global-dirty-log", "arguments": {"enable": true}, "id": 1}"#);
    let refusal: Value = serde_json::from_str(&world.read(client)).unwrap();
    let text = refusal["error"]["desc"].as_str().unwrap_or_default();
    assert!(text.contains("the toolstack's records") && world.asked.is_empty(), "{refusal}");
    let request = Request::of(&XenSetGlobalDirtyLog { enable: true }).unwrap();
    world.mux.ask(Token(1), request, world.now + Duration::from_secs(1), world.now);
    world.look();
    let (id, asked) = world.asked.pop_front().expect("QEMU is asked");
    assert_eq!(asked["execute"], "xen-set-global-dirty-log");
    assert_eq!(asked["arguments"], json!({"enable": true}));
    world.say(&format!("{{\"return\": {{}}, \"id\": {id}}}\r\n"));
    assert!(world.done.contains(&"answer 1 {}".to_owned()), "{:?}", world.done);
}
