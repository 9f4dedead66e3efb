//! What a device model pays for.

use super::*;

#[test]
fn flood_of_events_is_cut_down_and_read_slowly() {
    let mut world = World::up();
    let client = world.client();
    let event = "{\"event\": \"X\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\n";
    let flood = event.repeat(1000);
    let mut fed = 0;
    while world.mux.session_pause(world.now).is_none() {
        world.say(&flood);
        fed += flood.len();
    }
    assert!(fed <= 5 << 20, "{fed}");
    let counts = world.mux.counts();
    assert!(counts.events - counts.dropped <= 2000, "{counts:?}");
    // Requests still get through.
    world.ask(client, r#"{"execute": "query-status", "id": 1}"#);
    world.answer();
    let mut lines = Vec::new();
    loop {
        match world.read(client) {
            line if line.is_empty() => break,
            line => lines.push(line),
        }
    }
    assert!(lines.last().unwrap().ends_with("\"id\":1}"));
}

#[test]
fn costly_work_has_to_wait_and_is_a_quarter_of_the_time() {
    let mut world = World::up();
    let second = Duration::from_secs(1);
    let (start, mut worked) = (world.now, Duration::ZERO);
    let took = Duration::from_millis(3);
    while world.now < start + 20 * second {
        match world.mux.session_pause(world.now) {
            Some(pause) => world.now += pause,
            None => {
                world.now += took;
                worked += took;
                world.mux.session_worked(took, world.now);
            }
        }
    }
    // Half a second at once, and then a quarter of the time.
    assert!(worked > 5 * second && worked < 6 * second, "{worked:?}");
}

#[test]
fn process_that_was_stopped_does_not_wait_for_long() {
    let mut world = World::up();
    for _ in 0..10 {
        assert_eq!(world.mux.session_pause(world.now), None);
        world.now += Duration::from_secs(100);
        world.mux.session_worked(Duration::from_secs(100), world.now);
    }
    assert_eq!(world.mux.session_pause(world.now), None);
}
