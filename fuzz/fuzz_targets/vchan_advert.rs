//! The keys with which a stubdomain offers a vchan, as dom0 reads them.
#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use vchan::{Advert, Place, VchanError};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Connection, Store as _, XsPath};

const KEYS: [&str; 3] = ["ring-ref", "event-channel", "fresh-rings"];

thread_local! {
    static STORE: OnceCell<(Server, Connection)> = const { OnceCell::new() };
}

fn start() -> (Server, Connection) {
    let server = Server::start();
    let store = server.connection(DomId::DOM0);
    (server, store)
}

fuzz_target!(|data: &[u8]| STORE.with(|store| play(&store.get_or_init(start).1, data)));

fn play(store: &Connection, data: &[u8]) {
    let dir = XsPath::new("/vchan").expect("a path");
    let mut values = data.splitn(KEYS.len(), |byte| *byte == b'\n');
    let mut written = [None; KEYS.len()];
    for (key, slot) in KEYS.iter().zip(&mut written) {
        let path = dir.join(key).expect("a path");
        // A value that begins with a hyphen is none.
        match values.next().filter(|value| !value.starts_with(b"-") && value.len() < 2048) {
            Some(value) => {
                store.write(&path, value).expect("dom0 may");
                *slot = Some(value);
            }
            None => drop(store.rm(&path)),
        }
    }
    let number = |value: &[u8]| -> Option<u32> {
        let plain = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(value).ok()?.parse().ok().filter(|number| plain && *number > 0)
    };
    match (Advert::read(store, &Place::from(dir)), written) {
        (Ok(None), [ring, port, _]) => assert!(ring.is_none() || port.is_none()),
        (Ok(Some(advert)), [Some(ring), Some(port), fresh]) => {
            assert_eq!((Some(advert.ring_ref.0), Some(advert.port.0)), (number(ring), number(port)));
            assert_eq!(advert.fresh, fresh == Some(b"1"));
        }
        (Err(VchanError::BadAdvert { .. }), [Some(ring), Some(port), _]) => {
            assert!(number(ring).is_none() || number(port).is_none());
        }
        (other, written) => panic!("{written:?}: {other:?}"),
    }
}
