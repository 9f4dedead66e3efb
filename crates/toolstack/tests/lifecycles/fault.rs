//! A connection to xenstored on which one chosen request fails, or which ends there.
//!
//! Between client and server, so that it counts the toolstack's requests alone.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use xen_types::DomId;
use xenstore::Xenstore;
use xenstore::server::Server;

/// `XS_ERROR` (`xen/include/public/io/xs_wire.h`).
const ERROR: u32 = 16;
const HEADER: usize = 16;

/// Chooses the request that fails.
#[derive(Clone)]
pub(crate) struct FaultyLink {
    seen: Arc<AtomicU64>,
    fail_at: Arc<AtomicU64>,
    end_at: Arc<AtomicU64>,
}

impl FaultyLink {
    /// Lets the `n`th request from now on fail with `EIO`, from 1.
    pub(crate) fn fail_nth(&self, n: u64) {
        self.fail_at.store(self.seen() + n, Ordering::SeqCst);
    }

    /// Lets the connection end at the `n`th request from now on, from 1, as when xenstored dies.
    pub(crate) fn end_at_nth(&self, n: u64) {
        self.end_at.store(self.seen() + n, Ordering::SeqCst);
    }

    /// How many requests there were.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

pub(crate) fn faulty_link(server: &Server) -> (Xenstore, FaultyLink) {
    let (ours, client) = UnixStream::pair().unwrap();
    let upstream = server.stream(DomId::DOM0);
    let link = FaultyLink { seen: Arc::default(), fail_at: Arc::default(), end_at: Arc::default() };
    let to_client = Arc::new(Mutex::new(ours.try_clone().unwrap()));
    thread::spawn({
        let (mut from_server, to_client) = (upstream.try_clone().unwrap(), Arc::clone(&to_client));
        move || {
            while let Some(frame) = read_frame(&mut from_server) {
                if to_client.lock().unwrap().write_all(&frame).is_err() {
                    return;
                }
            }
        }
    });
    thread::spawn({
        let (mut from_client, mut to_server, link) = (ours, upstream, link.clone());
        move || {
            while let Some(frame) = read_frame(&mut from_client) {
                let number = link.seen.fetch_add(1, Ordering::SeqCst) + 1;
                if link.end_at.load(Ordering::SeqCst) == number {
                    let _ = from_client.shutdown(std::net::Shutdown::Both);
                    break;
                }
                let sent = if link.fail_at.load(Ordering::SeqCst) == number {
                    to_client.lock().unwrap().write_all(&refusal(&frame))
                } else {
                    to_server.write_all(&frame)
                };
                if sent.is_err() {
                    break;
                }
            }
            // The server's side ends with the client's.
            let _ = to_server.shutdown(std::net::Shutdown::Both);
        }
    });
    (Xenstore::from_stream(client).unwrap(), link)
}

fn read_frame(from: &mut UnixStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER];
    from.read_exact(&mut frame).ok()?;
    let length = u32::from_ne_bytes(frame[12..16].try_into().unwrap()) as usize;
    frame.resize(HEADER + length, 0);
    from.read_exact(&mut frame[HEADER..]).ok()?;
    Some(frame)
}

/// The answer that refuses a request: same numbers, another type, the error's name.
fn refusal(request: &[u8]) -> Vec<u8> {
    let text = b"EIO\0";
    let mut frame = ERROR.to_ne_bytes().to_vec();
    frame.extend(&request[4..12]);
    frame.extend(u32::try_from(text.len()).unwrap().to_ne_bytes());
    frame.extend(text);
    frame
}
