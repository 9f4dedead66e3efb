//! Clients that are many, slow, rude or gone.

use std::io::Write;
use std::sync::Barrier;
use std::thread;

use api::client::ClientError;
use api::types::{Guests, Monitored};
use serde_json::{Value, json};

use super::world::{Mode, Raw, World, config, eventually, parameters};
use crate::api::server::CLIENTS;
use crate::guest::events::event;

fn call(method: &str) -> Value {
    json!({ "method": format!("io.outrigger.{method}") })
}

/// The connection is served.
fn answers(raw: &mut Raw) -> bool {
    raw.send(&call("List"));
    raw.receive().is_some_and(|reply| reply["parameters"]["guests"].is_array())
}

#[test]
fn monitor_that_is_never_read_holds_nobody_up() {
    let world = World::new();
    let service = world.start();
    service.create("").unwrap();
    let guest = service.shared.registry.find("hello", None).unwrap().view.guest.unwrap();
    let (mut deaf, mut hears) = (service.raw(), service.client());
    deaf.send(&json!({ "method": "io.outrigger.Monitor", "more": true }));
    hears.begin("Monitor", &json!({})).unwrap();
    // The test's own, and both monitors.
    eventually("both listen", || service.shared.registry.subscribers() == 3);
    // More than any buffer on the way holds.
    let detail = "x".repeat(16 << 10);
    for _ in 0..400 {
        service.shared.registry.publish(event(&guest, "test", &detail));
    }
    assert_eq!(service.list().len(), 1);
    service.shared.registry.publish(event(&guest, "last", ""));
    loop {
        let (Monitored { event }, continues) = hears.next_reply("Monitor").unwrap();
        assert!(continues);
        if event.kind == "last" {
            break;
        }
    }
    service.destroy("hello").unwrap();
}

#[test]
fn monitor_of_a_client_that_is_gone_ends() {
    let world = World::new();
    let service = world.start();
    let mut monitor = service.client();
    monitor.begin("Monitor", &json!({})).unwrap();
    eventually("it listens", || service.shared.registry.subscribers() == 2);
    drop(monitor);
    eventually("it has ended", || service.shared.registry.subscribers() == 1);
}

#[test]
fn client_that_hangs_up_does_not_end_its_create() {
    let world = World::new();
    let mut service = world.start();
    world.stubs.set(Mode::Hold);
    let mut client = service.client();
    client.begin("Create", &parameters(&config(""))).unwrap();
    world.stubs.wait_started(1);
    drop(client);
    world.stubs.set(Mode::Work);
    service.events.expect(&["created"]);
    assert_eq!(service.list().len(), 1);
}

#[test]
fn unknown_method_is_refused_and_the_connection_stays() {
    let world = World::new();
    let service = world.start();
    let mut client = service.client();
    let error = client.call::<_, Value>("Nonsense", &json!({})).unwrap_err();
    assert!(
        matches!(&error, ClientError::Unknown { error, .. } if error == "org.varlink.service.MethodNotFound"),
        "{error}"
    );
    client.call::<_, Guests>("List", &json!({})).unwrap();
    let mut raw = service.raw();
    for (sent, told) in [
        (json!({ "method": "com.example.Do" }), "org.varlink.service.InterfaceNotFound"),
        (json!({ "method": "Do" }), "org.varlink.service.InterfaceNotFound"),
        (json!({ "method": "org.varlink.service.Do" }), "org.varlink.service.MethodNotFound"),
        (call("Monitor"), "org.varlink.service.ExpectedMore"),
        (call("Get"), "org.varlink.service.InvalidParameter"),
    ] {
        raw.send(&sent);
        assert_eq!(raw.receive().unwrap()["error"], told, "{sent}");
    }
    assert!(answers(&mut raw));
}

#[test]
fn garbage_closes_its_own_connection_alone() {
    let world = World::new();
    let service = world.start();
    let mut good = service.raw();
    let endless = vec![b'x'; api::frame::MAX_FRAME + (1 << 20)];
    let deep = format!("{}\0", "[".repeat(100_000));
    for garbage in [&b"{\0"[..], b"\0", b"\xff\xfe\0", b"42\0", deep.as_bytes(), &endless] {
        let mut bad = service.raw();
        // It may be closed before all is written.
        let _ = bad.stream.write_all(garbage);
        assert_eq!(bad.receive(), None);
        assert!(answers(&mut good));
    }
}

#[test]
fn half_a_call_is_waited_for() {
    let world = World::new();
    let service = world.start();
    let mut raw = service.raw();
    raw.stream.write_all(b"{\"method\":\"io.outr").unwrap();
    assert_eq!(service.list(), []);
    raw.stream.write_all(b"igger.List\"}\0").unwrap();
    assert!(raw.receive().unwrap()["parameters"]["guests"].is_array());
}

#[test]
fn calls_sent_at_once_are_answered_in_order_and_oneway_ones_not_at_all() {
    let world = World::new();
    let service = world.start();
    let mut raw = service.raw();
    for number in 0..40 {
        raw.send(&json!({ "method": "io.outrigger.List", "oneway": true }));
        raw.send(&json!({ "method": "io.outrigger.Get", "parameters": { "guest": number.to_string() } }));
    }
    for number in 0..40 {
        assert_eq!(raw.receive().unwrap()["parameters"]["guest"], number.to_string());
    }
}

#[test]
fn interface_is_served_as_it_is_written() {
    let world = World::new();
    let service = world.start();
    let mut raw = service.raw();
    raw.send(&json!({ "method": "org.varlink.service.GetInfo" }));
    let info = raw.receive().unwrap();
    assert_eq!(info["parameters"]["interfaces"], json!(["org.varlink.service", "io.outrigger"]));
    raw.send(&json!({
        "method": "org.varlink.service.GetInterfaceDescription",
        "parameters": { "interface": "io.outrigger" },
    }));
    assert_eq!(raw.receive().unwrap()["parameters"]["description"], api::INTERFACE);
}

#[test]
fn hundred_clients_at_once_are_answered() {
    let world = World::new();
    let service = world.start();
    service.create("").unwrap();
    let start = Barrier::new(100);
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(service.list().len(), 1);
            });
        }
    });
}

#[test]
fn clients_beyond_the_limit_are_turned_away_until_there_is_room() {
    let world = World::new();
    let service = world.start();
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| service.raw()).collect();
    assert!(clients.iter_mut().all(answers));
    assert_eq!(service.raw().receive(), None);
    clients.pop();
    eventually("there is room again", || {
        let mut raw = service.raw();
        // It may be closed before all is written.
        let _ = raw.stream.write_all(format!("{}\0", call("List")).as_bytes());
        raw.receive().is_some()
    });
}
