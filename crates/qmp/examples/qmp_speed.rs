//! Measures the decoder: events in megabytes a second, and what a hostile megabyte costs; then what one costs a session,
//! which is given up long before its end. The best of some runs counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qmp::mux::{Action, Mux, MuxConfig};
use qmp::policy::Policy;
use qmp::{Decoder, Kind, Limits, Member};

const EVENT: &str = "{\"timestamp\": {\"seconds\": 1795511106, \"microseconds\": 311975}, \"event\": \
                     \"DEVICE_TRAY_MOVED\", \"data\": {\"device\": \"ide2-cd0\", \"tray-open\": true, \"id\": \"cd0\"}}\r\n";
const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 1, \"minor\": 2, \"major\": 7}, \
                        \"package\": \"x\"}, \"capabilities\": [\"oob\"]}}\r\n";
const MEGABYTE: usize = 1 << 20;

/// Decodes all of it as it would come; gives how many events and errors there were.
fn decode(bytes: &[u8]) -> (usize, usize) {
    let mut decoder = Decoder::new(Limits::QEMU);
    let (mut events, mut errors) = (0, 0);
    for chunk in bytes.chunks(4096) {
        decoder.push(chunk);
        while let Some(message) = decoder.next_message() {
            match message {
                Ok(message) if message.kind() == Kind::Event && message.get(Member::Data).is_some() => {
                    events += 1;
                }
                Ok(_) => {}
                Err(_) => {
                    errors += 1;
                    decoder.skip_line();
                }
            }
        }
    }
    (events, errors)
}

/// A session that works, to which all of it comes while it lives.
fn session(bytes: &[u8]) -> Duration {
    let now = Instant::now();
    let mut mux = Mux::new(MuxConfig::default(), Arc::new(Policy::default()), now);
    mux.tick(now);
    mux.connected(now);
    mux.session_bytes(GREETING.as_bytes(), now);
    mux.session_bytes(b"{\"return\": {}, \"id\": 0}\n", now);
    let mut lost = false;
    let start = Instant::now();
    for chunk in bytes.chunks(4096) {
        mux.session_bytes(chunk, now);
        while let Some(action) = mux.next_action() {
            lost |= matches!(action, Action::Hangup);
        }
        if lost {
            break;
        }
    }
    start.elapsed()
}

fn best(bytes: &[u8], run: impl Fn(&[u8])) -> Duration {
    let run = || {
        let start = Instant::now();
        run(std::hint::black_box(bytes));
        start.elapsed()
    };
    (0..20).map(|_| run()).min().unwrap_or_default()
}

fn filled(start: &str, part: impl Fn(usize) -> String, end: &str) -> Vec<u8> {
    let mut text = start.to_owned();
    let mut n = 0;
    while text.len() < MEGABYTE - 64 {
        text.push_str(&part(n));
        n += 1;
    }
    text.push_str(end);
    text.into_bytes()
}

fn main() {
    let whole = |bytes: &[u8]| {
        std::hint::black_box(decode(bytes));
    };
    let events = EVENT.repeat(8 * MEGABYTE / EVENT.len());
    let rate = f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX))
        / best(events.as_bytes(), whole).as_secs_f64()
        / 1e6;
    println!("events: {rate:.0} MB/s ({} of them)", decode(events.as_bytes()).0);
    let text = |text: &'static str| move |_: usize| text.to_owned();
    let hostile: [(&str, Vec<u8>); 10] = [
        ("one string", filled("{\"a\":\"", text("x"), "\"}")),
        ("strings at their limit", filled("{\"a\":[", |_| format!("\"{}\",", "x".repeat(250_000)), "0]}")),
        (
            "escapes",
            filled(
                "{\"a\":[\"\"",
                |n| format!("{}\\ud83d\\ude00", if n % 2000 == 0 { "\",\"" } else { "" }),
                "\"]}",
            ),
        ),
        ("numbers", filled("{\"a\":[0", text(",1e9"), "]}")),
        ("empty objects", filled("{\"a\":[0", text(",{}"), "]}")),
        ("small messages", filled("{}", text("{}"), "{}")),
        (
            "distinct keys in objects of 250",
            filled(
                "{\"z\":[{",
                |n| {
                    format!(
                        "{}\"k{n}\":0",
                        match n {
                            0 => "",
                            n if n % 250 == 0 => "},{",
                            _ => ",",
                        }
                    )
                },
                "}]}",
            ),
        ),
        (
            "small events",
            filled("{}", text("{\"event\":\"A\",\"timestamp\":{\"seconds\":1,\"microseconds\":1}}"), "{}"),
        ),
        ("broken lines", filled("", text("{!\n"), "")),
        (
            "wide text",
            filled("{\"a\":[\"\"", |n| format!("{}é€", if n % 2000 == 0 { "\",\"" } else { "" }), "\"]}"),
        ),
    ];
    for (name, bytes) in &hostile {
        let (_, errors) = decode(bytes);
        let met = (0..20).map(|_| session(bytes)).min().unwrap_or_default();
        println!(
            "hostile megabyte, {name}: {:.2} ms, {errors} errors; a session: {:.2} ms",
            best(bytes, whole).as_secs_f64() * 1e3,
            met.as_secs_f64() * 1e3
        );
    }
}
