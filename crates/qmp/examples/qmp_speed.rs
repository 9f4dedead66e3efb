//! Measures the decoder: events in megabytes a second, and what a hostile megabyte costs. The best of some runs counts.

use std::time::{Duration, Instant};

use qmp::{Decoder, Kind, Limits, Member};

const EVENT: &str = "{\"timestamp\": {\"seconds\": 1795511106, \"microseconds\": 311975}, \"event\": \
                     \"DEVICE_TRAY_MOVED\", \"data\": {\"device\": \"ide2-cd0\", \"tray-open\": true, \"id\": \"cd0\"}}\r\n";
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

fn best(bytes: &[u8]) -> Duration {
    let run = || {
        let start = Instant::now();
        std::hint::black_box(decode(std::hint::black_box(bytes)));
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
    let events = EVENT.repeat(8 * MEGABYTE / EVENT.len());
    let rate = f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX))
        / best(events.as_bytes()).as_secs_f64()
        / 1e6;
    println!("events: {rate:.0} MB/s ({} of them)", decode(events.as_bytes()).0);
    let text = |text: &'static str| move |_: usize| text.to_owned();
    let hostile: [(&str, Vec<u8>); 9] = [
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
        ("broken lines", filled("", text("{!\n"), "")),
        (
            "wide text",
            filled("{\"a\":[\"\"", |n| format!("{}é€", if n % 2000 == 0 { "\",\"" } else { "" }), "\"]}"),
        ),
    ];
    for (name, bytes) in &hostile {
        let (_, errors) = decode(bytes);
        println!("hostile megabyte, {name}: {:.2} ms, {errors} errors", best(bytes).as_secs_f64() * 1e3);
    }
}
